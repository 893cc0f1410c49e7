//! Host memory as the device, under a hard byte budget; copies and casts on worker threads.

use super::{CopyFailed, Device, DeviceMemory, HostBuffer, HostMemory};
use crate::{
    EngineError, HostSource, Result, Slab,
    sync::{Mutex, Receiver, Sender, bounded, thread, unbounded},
    timeline::{Kind, Label, Timeline},
};
use mm_plan::{DType, HostTier};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Weights touch memory page by page; a page that was never written is not there yet.
const PAGE: usize = 4096;

type Outcome<M> = Result<M, CopyFailed<M>>;

struct Job<M> {
    label: Label,
    source: HostSource,
    into: M,
    done: Sender<Outcome<M>>,
}

struct Shared {
    memory: Mutex<DeviceMemory>,
    timeline: Arc<Timeline>,
}

/// Host memory as the device: this is what runs a model larger than its budget on a machine without a
/// GPU. Compute happens on the calling thread, so an event is over as soon as it is recorded. `M` is memory as the tensor
/// library owns it.
pub struct HostDevice<M: HostMemory = HostBuffer> {
    shared: Arc<Shared>,
    jobs: Sender<Job<M>>,
}

/// A copy under way on a worker thread. Dropping it unfinished waits for it and gives its memory back.
pub struct HostCopy<M: HostMemory = HostBuffer> {
    outcome: Receiver<Outcome<M>>,
    shared: Arc<Shared>,
}

impl<M: HostMemory> Drop for HostCopy<M> {
    fn drop(&mut self) {
        let left = match self.outcome.recv() {
            Ok(Ok(buffer)) => Some(buffer),
            Ok(Err(failed)) => failed.buffer,
            // The usual case: `finish` took the outcome.
            Err(_) => None,
        };
        if let Some(buffer) = left {
            self.shared.subtract(buffer.len());
        }
    }
}

impl HostDevice {
    /// A device of `budget` bytes, with a worker thread per core but at most four.
    pub fn new(budget: u64, timeline: Arc<Timeline>) -> Self {
        Self::of_memory(budget, timeline)
    }

    /// A device of `budget` bytes and `workers` copying threads (at least one). The threads end when
    /// the device is dropped and its copies are done.
    pub fn with_workers(budget: u64, workers: usize, timeline: Arc<Timeline>) -> Self {
        Self::start(budget, workers, timeline)
    }
}

impl<M: HostMemory> HostDevice<M> {
    /// [`HostDevice::new`] for any memory.
    pub fn of_memory(budget: u64, timeline: Arc<Timeline>) -> Self {
        Self::start(budget, thread::available_parallelism().map_or(1, |n| n.get().min(4)), timeline)
    }

    fn start(budget: u64, workers: usize, timeline: Arc<Timeline>) -> Self {
        let memory = Mutex::new(DeviceMemory { budget, ..DeviceMemory::default() });
        let shared = Arc::new(Shared { memory, timeline });
        let (jobs, queue) = unbounded::<Job<M>>();
        for lane in 0..workers.max(1) {
            let (shared, queue) = (shared.clone(), queue.clone());
            // A worker that can't be started leaves its work to the others; with none left, `finish`
            // sees its channel closed and says that the device is lost.
            let _ = thread::Builder::new().name(format!("mm-copy-{lane}")).spawn(move || {
                for job in queue {
                    shared.run(job, lane);
                }
            });
        }
        Self { shared, jobs }
    }

    /// Counts memory that an adapter holds while it builds a model, before there is a plan. It is never
    /// refused (the plan for the model decides that), but it shows in the peak, and what is allocated
    /// meanwhile must fit beside it.
    pub fn reserve(&self, bytes: u64) -> Reservation {
        self.shared.add(bytes);
        Reservation { shared: self.shared.clone(), bytes }
    }
}

/// Bytes counted by [`HostDevice::reserve`], until dropped.
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Reservation {
    /// Counts `bytes` more.
    pub fn grow(&mut self, bytes: u64) {
        self.shared.add(bytes);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Parts with `bytes` of these, at the most all.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { shared: self.shared.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.subtract(self.bytes);
    }
}

impl Shared {
    fn add(&self, bytes: u64) {
        let mut memory = self.memory.lock();
        memory.in_use = memory.in_use.saturating_add(bytes);
        memory.peak = memory.peak.max(memory.in_use);
        // Under the lock, so that levels are logged in the order in which they were reached.
        if bytes > 0 {
            self.timeline.allocated(bytes, memory.in_use);
        }
    }

    fn subtract(&self, bytes: u64) {
        let mut memory = self.memory.lock();
        memory.in_use = memory.in_use.saturating_sub(bytes);
        if bytes > 0 {
            self.timeline.freed(bytes, memory.in_use);
        }
    }

    fn run<M: HostMemory>(&self, Job { label, source, mut into, done }: Job<M>, lane: usize) {
        let start = self.timeline.now();
        let filled = catch_unwind(AssertUnwindSafe(|| source.fill(into.bytes_mut())))
            .unwrap_or_else(|_| Err(EngineError::Internal("a copy panicked".to_owned())));
        self.timeline.span(Kind::Copy, lane, &label, start, source.slab().bytes());
        let outcome = match filled {
            Ok(()) => Ok(into),
            Err(error) => Err(CopyFailed { buffer: Some(into), error }),
        };
        // Nobody waits any more: the memory goes back.
        if let Err(unsent) = done.send(outcome) {
            let buffer = match unsent.into_inner() {
                Ok(buffer) => Some(buffer),
                Err(failed) => failed.buffer,
            };
            if let Some(buffer) = buffer {
                self.subtract(buffer.len());
            }
        }
    }
}

impl<M: HostMemory> Device for HostDevice<M> {
    type Buffer = M;
    type Event = ();
    type Source = HostSource;
    type Copy = HostCopy<M>;

    fn allocate(&self, dtype: DType, bytes: u64) -> Result<M> {
        if !M::holds(dtype) {
            return Err(EngineError::Misuse(format!("weights of dtype {dtype} can't be computed with")));
        }
        // Those of quantized weights lie in words of four.
        let element = if dtype == DType::Bytes { size_of::<u32>() as u64 } else { dtype.size() };
        if !bytes.is_multiple_of(element) {
            return Err(EngineError::Misuse(format!("{bytes} bytes are no whole number of {dtype} elements")));
        }
        {
            let mut memory = self.shared.memory.lock();
            let in_use = memory.in_use.checked_add(bytes).filter(|sum| *sum <= memory.budget);
            let over = EngineError::OverBudget { need: bytes, in_use: memory.in_use, budget: memory.budget };
            memory.in_use = in_use.ok_or(over)?;
            memory.peak = memory.peak.max(memory.in_use);
            memory.allocations += 1;
            self.shared.timeline.allocated(bytes, memory.in_use);
        }
        let Some(mut buffer) = M::allocate(dtype, bytes) else {
            self.shared.subtract(bytes);
            let DeviceMemory { in_use, budget, .. } = self.memory();
            return Err(EngineError::OverBudget { need: bytes, in_use, budget });
        };
        for byte in buffer.bytes_mut().iter_mut().step_by(PAGE) {
            *byte = std::hint::black_box(1);
        }
        Ok(buffer)
    }

    fn adopt(&self, buffer: M) -> Result<M, M> {
        let mut memory = self.shared.memory.lock();
        let Some(in_use) = memory.in_use.checked_add(buffer.len()).filter(|sum| *sum <= memory.budget) else {
            return Err(buffer);
        };
        memory.in_use = in_use;
        memory.peak = memory.peak.max(in_use);
        memory.allocations += 1;
        self.shared.timeline.allocated(buffer.len(), in_use);
        Ok(buffer)
    }

    fn free(&self, buffer: M) {
        let bytes = buffer.len();
        drop(buffer);
        self.shared.subtract(bytes);
    }

    fn record(&self) -> Result<()> {
        Ok(())
    }

    fn in_files(&self, slab: Arc<Slab>) -> HostSource {
        HostSource::in_files(slab)
    }

    /// No link asks for page-locked memory here: either tier is a copy in ordinary memory.
    fn in_memory(&self, slabs: &[Arc<Slab>], _tier: HostTier) -> Result<Vec<HostSource>> {
        HostSource::in_memory(slabs)
    }

    fn copy(&self, label: Label, source: HostSource, into: M, _after: Option<()>) -> HostCopy<M> {
        let (done, outcome) = bounded(1);
        if let Err(unsent) = self.jobs.send(Job { label, source, into, done }) {
            // No worker is left; the closed channel says so to `finish`.
            self.shared.subtract(unsent.into_inner().into.len());
        }
        HostCopy { outcome, shared: self.shared.clone() }
    }

    fn finish(&self, copy: HostCopy<M>) -> Result<M, CopyFailed<M>> {
        copy.outcome.recv().unwrap_or_else(|_| {
            let reason = "no copy thread is left".to_owned();
            Err(CopyFailed { buffer: None, error: EngineError::DeviceLost { reason } })
        })
    }

    fn is_done(&self, copy: &HostCopy<M>) -> bool {
        !copy.outcome.is_empty()
    }

    fn host_tiers(&self) -> &'static [HostTier] {
        &[HostTier::Mapped, HostTier::PageLocked, HostTier::Pageable]
    }

    fn tells_times(&self) -> bool {
        true
    }

    fn memory(&self) -> DeviceMemory {
        *self.shared.memory.lock()
    }
}
