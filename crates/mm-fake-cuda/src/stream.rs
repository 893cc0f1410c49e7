//! Streams: what is enqueued, and running it late and in random order.

use crate::{
    driver::{Driver, misuse},
    order::{Clock, Handle},
};
use std::collections::VecDeque;

pub(crate) enum Work {
    /// What memory held when the copy was enqueued.
    ToDevice {
        into: u64,
        from: usize,
        bytes: Vec<u8>,
        is_locked: bool,
    },
    ToHost {
        into: usize,
        from: u64,
        length: usize,
    },
    /// Reads device memory, which must hold these bytes.
    Kernel {
        from: u64,
        expected: Vec<u8>,
    },
    /// Computes for so long.
    Spend {
        ns: u64,
    },
    Record {
        record: u64,
    },
    Wait {
        record: u64,
    },
}

#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) context: Handle,
    pub(crate) queue: VecDeque<Work>,
    pub(crate) clock: Clock,
    /// When what has run so far ended, in bytes moved, which are nanoseconds: the time of a machine whose host takes none.
    pub(crate) time: u64,
}

/// A point in a stream at which an event was recorded.
pub(crate) struct Record {
    pub(crate) clock: Clock,
    pub(crate) time: u64,
    pub(crate) done: bool,
}

/// Work that ran: when, and whether it was a copy to the device.
pub(crate) struct Ran {
    pub(crate) is_copy: bool,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Starting work takes as long as moving so many bytes, each a nanosecond.
const LATENCY: u64 = 64;

impl Driver {
    /// Runs a little of what is enqueued, sometimes.
    pub(crate) fn progress(&mut self) {
        if self.seed != 0 && self.random(4) == 0 {
            for _ in 0..self.random(3) {
                self.run_one();
            }
        }
    }

    /// Runs what is enqueued until `done`.
    pub(crate) fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            if !self.run_one() {
                misuse("a wait that can never end");
            }
        }
    }

    /// Runs the next work of some stream that is not waiting; `false` where there is none.
    fn run_one(&mut self) -> bool {
        let can_run = |stream: &Stream| match stream.queue.front() {
            None => false,
            Some(Work::Wait { record }) => self.records[record].done,
            Some(_) => true,
        };
        let ready: Vec<Handle> = self.streams.iter().filter(|(_, s)| can_run(s)).map(|(handle, _)| *handle).collect();
        if ready.is_empty() {
            return false;
        }
        let stream = ready[self.random(ready.len() as u64) as usize];
        if let Some(work) = self.streams.get_mut(&stream).and_then(|s| s.queue.pop_front()) {
            self.run(stream, work);
        }
        true
    }

    fn run(&mut self, handle: Handle, work: Work) {
        let mut time = self.streams[&handle].time;
        let mut took = |is_copy: bool, length: usize| {
            let start = time;
            time += length as u64 + LATENCY;
            Ran { is_copy, start, end: time }
        };
        match work {
            Work::ToDevice { into, from, bytes, is_locked } => {
                let ran = took(true, bytes.len());
                self.ran.push(ran);
                self.copies += 1;
                if is_locked && !self.is_page_locked(from, bytes.len()) {
                    misuse("memory was unlocked or freed before the copy from it ran");
                }
                // SAFETY: page-locked and alive, asked just above: it lies in a block of this driver's, which nobody frees while
                // the driver is locked; or ordinary, and then the caller of the copy promised CUDA to keep it as long.
                let now = unsafe { std::slice::from_raw_parts(from as *const u8, bytes.len()) };
                if now != bytes {
                    misuse("memory was changed before the copy from it ran");
                }
                self.device_bytes(into, bytes.len()).copy_from_slice(&bytes);
            }
            Work::ToHost { into, from, length } => {
                let ran = took(false, length);
                self.ran.push(ran);
                if !self.is_page_locked(into, length) {
                    misuse("memory was unlocked or freed before the copy into it ran");
                }
                let bytes = self.device_bytes(from, length);
                // SAFETY: as for a copy to the device; the caller of the copy promised CUDA not to use it meanwhile.
                unsafe { std::slice::from_raw_parts_mut(into as *mut u8, length) }.copy_from_slice(bytes);
            }
            Work::Kernel { from, expected } => {
                let ran = took(false, expected.len());
                self.ran.push(ran);
                if self.device_bytes(from, expected.len()) != expected {
                    misuse("a kernel read other bytes than those expected");
                }
            }
            Work::Spend { ns } => time += ns,
            Work::Record { record } => {
                if let Some(record) = self.records.get_mut(&record) {
                    (record.done, record.time) = (true, time);
                }
            }
            Work::Wait { record } => time = time.max(self.records[&record].time),
        }
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.time = time;
        }
    }
}
