//! Host memory that the driver copies from: page-locked, booked before it is allocated; or, as the last resort, ordinary. Given back
//! once the driver is known not to read it any more.
#![allow(unsafe_code)]

use super::driver::{Event, Gpu, Lane, PageLocked};
use crate::{EngineError, Result, source::zeroed};
use parking_lot::Mutex;
use std::{ops::Range, sync::Arc};

/// Each allocation is rounded up to it, bytes: less can't be locked.
const PAGE: u64 = 4096;

/// Bytes that are locked for `length` of them.
pub(super) fn locked_bytes(length: u64) -> Option<u64> {
    length.max(1).checked_next_multiple_of(PAGE)
}

/// What is page-locked for a device, and how much may be.
pub(super) struct Account {
    gpu: Arc<Gpu>,
    limit: u64,
    held: Mutex<Held>,
}

struct Held {
    /// Bytes, those of `kept` included.
    booked: u64,
    /// What nobody needs any more, and the driver may still read.
    kept: Vec<(Memory, Busy)>,
}

/// Memory that the driver copies from.
enum Memory {
    PageLocked(PageLocked),
    /// The driver copies it to memory of its own first, or reads it in place: it says neither which nor when.
    Ordinary(Vec<u8>),
}

impl Memory {
    const fn bytes(&self) -> &[u8] {
        match self {
            Self::PageLocked(memory) => memory.bytes(),
            Self::Ordinary(memory) => memory.as_slice(),
        }
    }

    const fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::PageLocked(memory) => memory.bytes_mut(),
            Self::Ordinary(memory) => memory.as_mut_slice(),
        }
    }

    /// Bytes in the account.
    fn booked(&self) -> u64 {
        match self {
            Self::PageLocked(memory) => locked_bytes(memory.bytes().len() as u64).unwrap_or(0),
            Self::Ordinary(_) => 0,
        }
    }

    /// Frees it, unless the driver can't be asked to.
    fn free(self) -> Result<(), Self> {
        match self {
            Self::PageLocked(memory) => memory.free().map_err(Self::PageLocked),
            Self::Ordinary(_) => Ok(()),
        }
    }
}

/// Whether the driver may still read a piece of memory.
enum Busy {
    No,
    Until(Event),
    /// A copy was enqueued, and the event after it could not be recorded.
    Unknown,
}

impl Busy {
    /// Waits until the driver no longer reads. Where that fails it stays busy, and may be asked again.
    fn end(&mut self, gpu: &Gpu) -> Result<()> {
        match self {
            Self::No => {}
            Self::Until(event) => gpu.wait(event)?,
            Self::Unknown => gpu.settle_lane(Lane::Copies)?,
        }
        *self = Self::No;
        Ok(())
    }
}

impl Account {
    pub(super) fn new(gpu: &Arc<Gpu>, limit: u64) -> Arc<Self> {
        Arc::new(Self { gpu: gpu.clone(), limit, held: Mutex::new(Held { booked: 0, kept: Vec::new() }) })
    }

    /// Bytes page-locked, exactly.
    pub(super) fn booked(&self) -> u64 {
        self.held.lock().booked
    }

    /// Page-locks `length` bytes, zeroed. `PageLock` where they are over the limit, then nothing is asked of the driver, or where the
    /// system refuses.
    pub(super) fn lock(self: &Arc<Self>, length: u64) -> Result<Locked> {
        let over = |limit| EngineError::PageLock { need: length, limit };
        let (need, length) = locked_bytes(length).zip(usize::try_from(length).ok()).ok_or_else(|| over(None))?;
        {
            let mut held = self.held.lock();
            self.give_back(&mut held);
            let booked = held.booked.checked_add(need).filter(|sum| *sum <= self.limit);
            held.booked = booked.ok_or_else(|| over(Some(self.limit)))?;
        }
        match PageLocked::new(&self.gpu, length) {
            Ok(Some(memory)) => Ok(self.own(Memory::PageLocked(memory))),
            refused => {
                self.held.lock().booked -= need;
                refused?;
                Err(over(None))
            }
        }
    }

    /// `length` bytes of ordinary memory, zeroed, which are not in the account. `HostMemory`.
    pub(super) fn ordinary(self: &Arc<Self>, length: u64) -> Result<Locked> {
        Ok(self.own(Memory::Ordinary(zeroed(length)?)))
    }

    fn own(self: &Arc<Self>, memory: Memory) -> Locked {
        Locked { memory: Some(memory), busy: Busy::No, account: self.clone() }
    }

    /// Frees what the driver no longer reads, waiting for it. What it does not answer for is kept, and stays in the account.
    fn give_back(&self, held: &mut Held) {
        for (memory, mut busy) in std::mem::take(&mut held.kept) {
            if busy.end(&self.gpu).is_err() {
                held.kept.push((memory, busy));
                continue;
            }
            let bytes = memory.booked();
            match memory.free() {
                Ok(()) => held.booked = held.booked.saturating_sub(bytes),
                Err(memory) => held.kept.push((memory, busy)),
            }
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut held = std::mem::replace(self.held.get_mut(), Held { booked: 0, kept: Vec::new() });
        // One last time; otherwise the driver may read it for ever, and it is better leaked than freed.
        self.give_back(&mut held);
        held.kept.into_iter().for_each(|(memory, _)| std::mem::forget(memory));
    }
}

/// Memory to copy from. Dropping it waits for the copies from it and gives it back.
pub(super) struct Locked {
    /// `None` only while it is dropped.
    memory: Option<Memory>,
    busy: Busy,
    account: Arc<Account>,
}

impl Locked {
    /// Its bytes, to be written, once the driver has read them; waits for that.
    pub(super) fn reclaim(&mut self) -> Result<&mut [u8]> {
        self.busy.end(&self.account.gpu)?;
        Ok(self.memory.as_mut().map_or(&mut [], Memory::bytes_mut))
    }

    /// Enqueues a copy of the bytes in `range` on the lane of copies; the event is the end of it.
    ///
    /// # Safety
    /// `into` is device memory of the account's context with room for them, which is not freed before the lane has settled.
    pub(super) unsafe fn copy(&mut self, range: Range<usize>, into: u64) -> Result<Event> {
        let from = self.memory.as_ref().and_then(|memory| memory.bytes().get(range));
        let from = from.ok_or_else(|| EngineError::Internal("a copy from beyond its memory".to_owned()))?;
        if !from.is_empty() {
            // From here on the driver may read it, whatever it answers.
            self.busy = Busy::Unknown;
            // SAFETY: (1) `into` is the caller's promise. (2) `from` is ours: it is written only after `reclaim`, and freed only by
            // `give_back`; both wait for the event recorded below, which is the last on a lane that keeps its order, or for the
            // lane. (3) Where waiting fails they leave it alone.
            unsafe { self.account.gpu.copy(into, from) }?;
        }
        let event = self.account.gpu.record(Lane::Copies)?;
        self.busy = Busy::Until(event.clone());
        Ok(event)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut held = self.account.held.lock();
        held.kept.push((memory, std::mem::replace(&mut self.busy, Busy::Unknown)));
        self.account.give_back(&mut held);
    }
}
