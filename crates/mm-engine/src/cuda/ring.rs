//! The staging ring: page-locked buffers that reader threads fill from files and the driver copies from.
//!
//! Pieces are taken in order, each with the next buffer of the ring, filled beside each other, and enqueued in order, so
//! that what was asked for first arrives first.
#![allow(unsafe_code)]

use super::{
    CudaBuffer,
    driver::{Event, Gpu, Lane, PageLocked},
};
use crate::{
    EngineError, Result, Slab,
    device::CopyFailed,
    timeline::{Kind, Label, Timeline},
};
use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

pub(super) type Outcome = Result<(CudaBuffer, Event), CopyFailed<CudaBuffer>>;

/// A copy of a slab, in one piece or several.
pub(super) struct Job {
    pub(super) label: Label,
    pub(super) slab: Arc<Slab>,
    pub(super) into: CudaBuffer,
    pub(super) after: Option<Event>,
    pub(super) done: Sender<Outcome>,
}

/// What its pieces share: the job, until the last piece ends it, and the first error.
type Shared = Arc<Mutex<(Option<Job>, Option<EngineError>)>>;

pub(super) struct Piece {
    job: Shared,
    slab: Arc<Slab>,
    label: Label,
    start: u64,
    length: usize,
    is_last: bool,
}

/// Whether the driver may still read a buffer.
enum Busy {
    No,
    Until(Event),
    /// A copy was enqueued, and the event after it could not be recorded.
    Unknown,
}

struct Buffer {
    /// `None`: forgotten, because the driver may read it for ever.
    memory: Option<PageLocked>,
    busy: Busy,
}

pub(super) struct Ring {
    gpu: Arc<Gpu>,
    timeline: Arc<Timeline>,
    buffers: Vec<Mutex<Buffer>>,
    piece: usize,
    queue: Receiver<Piece>,
    /// The number of the next piece taken.
    next: Mutex<u64>,
    /// The number of the next piece enqueued.
    turn: Mutex<u64>,
    turned: Condvar,
}

impl Ring {
    /// Page-locks `count` buffers of `piece` bytes. On an error none is left.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        timeline: Arc<Timeline>,
        count: usize,
        piece: usize,
        queue: Receiver<Piece>,
    ) -> Result<Self> {
        let mut buffers = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(memory) = PageLocked::new(gpu, piece)? else {
                let need = (count as u64).saturating_mul(piece as u64);
                return Err(EngineError::PageLock { need, limit: None });
            };
            buffers.push(Mutex::new(Buffer { memory: Some(memory), busy: Busy::No }));
        }
        Ok(Self {
            gpu: gpu.clone(),
            timeline,
            buffers,
            piece,
            queue,
            next: Mutex::new(0),
            turn: Mutex::new(0),
            turned: Condvar::new(),
        })
    }

    pub(super) fn pieces(job: Job, piece: usize) -> impl Iterator<Item = Piece> {
        let (slab, label) = (job.slab.clone(), job.label.clone());
        let (bytes, piece) = (slab.bytes(), piece as u64);
        let count = bytes.div_ceil(piece).max(1);
        let job: Shared = Arc::new(Mutex::new((Some(job), None)));
        (0..count).map(move |index| {
            let start = index * piece;
            // At most `piece`, which was a `usize`.
            let length = (bytes - start).min(piece) as usize;
            let (job, slab, label) = (job.clone(), slab.clone(), label.clone());
            Piece { job, slab, label, start, length, is_last: index + 1 == count }
        })
    }

    /// Reads and enqueues until the device is dropped. `lane`: which reader this is.
    pub(super) fn read(&self, lane: usize) {
        loop {
            // Held while waiting for a piece, so that numbers are given in the order of the queue.
            let mut next = self.next.lock();
            let Ok(piece) = self.queue.recv() else { return };
            let number = *next;
            *next += 1;
            // Whoever had this buffer last enqueues before us, so this wait ends.
            let mut buffer = self.buffers[(number % self.buffers.len() as u64) as usize].lock();
            drop(next);
            let start = self.timeline.now();
            let filled = self.fill(&mut buffer, &piece);
            let mut turn = self.turn.lock();
            while *turn != number {
                self.turned.wait(&mut turn);
            }
            self.enqueue(&mut buffer, &piece, filled);
            *turn += 1;
            drop(turn);
            self.turned.notify_all();
            self.timeline.span(Kind::Copy, lane, &piece.label, start, piece.length as u64);
        }
    }

    fn fill(&self, buffer: &mut Buffer, piece: &Piece) -> Result<()> {
        self.reclaim(buffer)?;
        let memory = buffer.memory.as_mut().ok_or_else(forgotten)?;
        let into = memory.bytes_mut().get_mut(..piece.length).ok_or_else(|| {
            EngineError::Internal(format!("a piece of {} bytes, buffers of {}", piece.length, self.piece))
        })?;
        catch_unwind(AssertUnwindSafe(|| piece.slab.fill_piece(piece.start, into)))
            .unwrap_or_else(|_| Err(EngineError::Internal("reading weights panicked".to_owned())))
    }

    /// Waits until the driver no longer reads the buffer. Where that fails it stays busy, and the next asks again.
    fn reclaim(&self, buffer: &mut Buffer) -> Result<()> {
        match &buffer.busy {
            Busy::No => {}
            Busy::Until(event) => self.gpu.wait(event)?,
            Busy::Unknown => self.gpu.settle_lane(Lane::Copies)?,
        }
        buffer.busy = Busy::No;
        Ok(())
    }

    /// Hands the piece to the driver; the last one of a copy ends it.
    fn enqueue(&self, buffer: &mut Buffer, piece: &Piece, filled: Result<()>) {
        let mut shared = piece.job.lock();
        let (job, error) = &mut *shared;
        let mut recorded = None;
        if let Some(job) = job.as_ref().filter(|_| error.is_none()) {
            match filled.and_then(|()| self.hand_over(buffer, piece, job)) {
                Ok(event) => recorded = Some(event),
                Err(failed) => *error = Some(failed),
            }
        }
        if !piece.is_last {
            return;
        }
        let (Some(Job { into, done, .. }), error) = (job.take(), error.take()) else { return };
        let outcome = match (recorded, error) {
            (Some(event), None) => Ok((into, event)),
            (_, error) => {
                let error = error.unwrap_or_else(|| EngineError::Internal("a copy without an end".to_owned()));
                // Earlier pieces may still be on their way into it: on the lane, as all that is written later.
                Err(CopyFailed { buffer: Some(into), error })
            }
        };
        drop(shared);
        // Nobody waits any more: then the buffer is dropped, which waits and frees.
        let _ = done.send(outcome);
    }

    fn hand_over(&self, buffer: &mut Buffer, piece: &Piece, job: &Job) -> Result<Event> {
        if let Some(after) = job.after.as_ref().filter(|_| piece.start == 0) {
            self.gpu.wait_on(Lane::Copies, after)?;
        }
        if piece.length > 0 {
            let from = buffer.memory.as_ref().and_then(|memory| memory.bytes().get(..piece.length));
            let into = job.into.part(piece.start, piece.length as u64);
            let (Some(from), Some(into)) = (from, into) else {
                return Err(EngineError::Internal("a slab is larger than its buffer".to_owned()));
            };
            // From here on the driver may read the buffer, whatever it answers.
            buffer.busy = Busy::Unknown;
            // SAFETY: (1) `into` lies in memory of this context, checked by `part`, which lives in `job` and after it in the
            // outcome; freeing it settles the lane first. (2) `from` is the ring's: it is written again, or freed, only after
            // `reclaim`, which waits for the event recorded below or for the lane. (3) `reclaim` failing leaves it alone.
            unsafe { self.gpu.copy(into, from) }?;
        }
        let event = self.gpu.record(Lane::Copies)?;
        buffer.busy = Busy::Until(event.clone());
        Ok(event)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for index in 0..self.buffers.len() {
            let mut buffer = std::mem::replace(self.buffers[index].get_mut(), Buffer { memory: None, busy: Busy::No });
            if self.reclaim(&mut buffer).is_err() {
                // The driver may read it for ever: better leaked than freed.
                std::mem::forget(buffer.memory.take());
            }
        }
    }
}

fn forgotten() -> EngineError {
    EngineError::DeviceLost { reason: "a staging buffer was given up after the driver failed".to_owned() }
}
