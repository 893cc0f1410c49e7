//! The staging ring: buffers, page-locked where that may be, that reader threads fill from files and the driver copies from.
//!
//! Pieces are taken in order, each with the next buffer of the ring, filled beside each other, and enqueued in order, so
//! that what was asked for first arrives first.
#![allow(unsafe_code)]

use super::{
    CudaBuffer,
    driver::{Event, Gpu, Lane},
    locked::{Account, Locked},
    nvtx,
    source::CudaSource,
    times::Times,
};
use crate::{
    EngineError, Result,
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
    pub(super) source: CudaSource,
    pub(super) into: CudaBuffer,
    pub(super) after: Option<Event>,
    pub(super) done: Sender<Outcome>,
}

/// What its pieces share: the job, until the last piece ends it, and the first error.
type Shared = Arc<Mutex<(Option<Job>, Option<EngineError>)>>;

pub(super) struct Piece {
    job: Shared,
    source: CudaSource,
    label: Label,
    start: u64,
    length: usize,
    is_last: bool,
}

pub(super) struct Ring {
    gpu: Arc<Gpu>,
    times: Arc<Times>,
    timeline: Arc<Timeline>,
    buffers: Vec<Mutex<Locked>>,
    piece: usize,
    queue: Receiver<Piece>,
    /// The number of the next piece taken.
    next: Mutex<u64>,
    /// The number of the next piece enqueued.
    turn: Mutex<u64>,
    turned: Condvar,
}

impl Ring {
    #[allow(clippy::too_many_arguments)]
    /// `count` buffers of `piece` bytes, page-locked unless they are to be `ordinary`. On an error none is left.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        account: &Arc<Account>,
        ordinary: bool,
        times: Arc<Times>,
        timeline: Arc<Timeline>,
        count: usize,
        piece: usize,
        queue: Receiver<Piece>,
    ) -> Result<Self> {
        let buffer = |_| if ordinary { account.ordinary(piece as u64) } else { account.lock(piece as u64) };
        let buffers = (0..count).map(buffer).map(|buffer| buffer.map(Mutex::new)).collect::<Result<_>>()?;
        Ok(Self {
            gpu: gpu.clone(),
            times,
            timeline,
            buffers,
            piece,
            queue,
            next: Mutex::new(0),
            turn: Mutex::new(0),
            turned: Condvar::new(),
        })
    }

    /// A slab that goes through the ring is cut to its buffers; one that is page-locked goes as it is.
    pub(super) fn pieces(job: Job, piece: usize) -> impl Iterator<Item = Piece> {
        let (source, label) = (job.source.clone(), job.label.clone());
        let bytes = source.slab().bytes();
        let piece = if source.part().is_some() { bytes.max(1) } else { piece as u64 };
        let count = bytes.div_ceil(piece).max(1);
        let job: Shared = Arc::new(Mutex::new((Some(job), None)));
        (0..count).map(move |index| {
            let start = index * piece;
            // At most a buffer, or a slab that lies in memory: either was a `usize`.
            let length = (bytes - start).min(piece) as usize;
            let (job, source, label) = (job.clone(), source.clone(), label.clone());
            Piece { job, source, label, start, length, is_last: index + 1 == count }
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
            let through_ring = piece.source.part().is_none();
            let at = (number % self.buffers.len() as u64) as usize;
            let mut buffer = through_ring.then(|| self.buffers[at].lock());
            drop(next);
            let start = self.timeline.now();
            let staged = buffer.as_ref().and_then(|_| nvtx::Range::begin(Kind::Stage, &piece.label));
            let filled = buffer.as_deref_mut().map_or(Ok(()), |buffer| self.fill(buffer, &piece, lane));
            drop(staged);
            let mut turn = self.turn.lock();
            while *turn != number {
                self.turned.wait(&mut turn);
            }
            let copied = nvtx::Range::begin(Kind::Copy, &piece.label);
            let ended = self.enqueue(buffer.as_deref_mut(), &piece, filled);
            drop(copied);
            *turn += 1;
            drop(turn);
            self.turned.notify_all();
            self.timeline.span(Kind::Copy, lane, &piece.label, start, piece.length as u64);
            // Whoever waits for a copy finds its source given up.
            drop(piece);
            if let Some((done, outcome)) = ended {
                // Nobody waits any more: then the buffer is dropped, which waits and frees.
                let _ = done.send(outcome);
            }
        }
    }

    fn fill(&self, buffer: &mut Locked, piece: &Piece, lane: usize) -> Result<()> {
        let into = buffer.reclaim()?.get_mut(..piece.length).ok_or_else(|| {
            EngineError::Internal(format!("a piece of {} bytes, buffers of {}", piece.length, self.piece))
        })?;
        let start = self.timeline.now();
        let filled = catch_unwind(AssertUnwindSafe(|| piece.source.fill_piece(piece.start, into)))
            .unwrap_or_else(|_| Err(EngineError::Internal("reading weights panicked".to_owned())));
        if filled.is_ok() {
            self.timeline.span(Kind::Stage, lane, &piece.label, start, piece.length as u64);
        }
        filled
    }

    /// Hands the piece to the driver; the last one of a copy ends it, with what is to be told to whoever waits.
    fn enqueue(
        &self,
        buffer: Option<&mut Locked>,
        piece: &Piece,
        filled: Result<()>,
    ) -> Option<(Sender<Outcome>, Outcome)> {
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
            return None;
        }
        let (Some(Job { into, done, .. }), error) = (job.take(), error.take()) else { return None };
        let outcome = match (recorded, error) {
            (Some(event), None) => Ok((into, event)),
            (_, error) => {
                let error = error.unwrap_or_else(|| EngineError::Internal("a copy without an end".to_owned()));
                // Earlier pieces may still be on their way into it: on the lane, as all that is written later.
                Err(CopyFailed { buffer: Some(into), error })
            }
        };
        Some((done, outcome))
    }

    fn hand_over(&self, buffer: Option<&mut Locked>, piece: &Piece, job: &Job) -> Result<Event> {
        if let Some(after) = job.after.as_ref().filter(|_| piece.start == 0) {
            self.gpu.wait_on(Lane::Copies, after)?;
        }
        let into = job.into.part(piece.start, piece.length as u64);
        let into = into.ok_or_else(|| EngineError::Internal("a slab is larger than its buffer".to_owned()))?;
        let mut part = piece.source.part().map(|part| (part.memory.lock(), part.range.clone()));
        let (memory, range) = match (&mut part, buffer) {
            (Some((memory, range)), _) => (&mut **memory, range.clone()),
            (None, Some(buffer)) => (buffer, 0..piece.length),
            (None, None) => return Err(EngineError::Internal("a piece without a buffer".to_owned())),
        };
        let timed = self.times.begin_copy(&piece.label, piece.length as u64);
        // SAFETY: `into` lies in memory of this context, checked by `part`, which lives in `job` and after it in the outcome;
        // freeing it settles the lane first.
        let copied = unsafe { memory.copy(range, into) };
        if let Some(timed) = timed {
            self.times.end_copy(timed, copied.is_ok());
        }
        copied
    }
}
