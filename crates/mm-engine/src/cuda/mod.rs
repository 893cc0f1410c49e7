//! A CUDA device: a compute stream, a lane of copies beside it, and events that order the two.

mod driver;
mod locked;
mod nvtx;
mod probe;
mod ring;
mod source;
mod times;

pub use source::CudaSource;

use crate::{
    EngineError, HostSource, Result, Slab,
    device::{CopyFailed, Device, DeviceMemory, DriverMemory, Stopwatch},
    slab::ALIGN,
    timeline::{Kind, Label, Timeline},
};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use cudarc::driver::CudaStream;
use driver::{Event, Gpu, Lane};
use locked::{Account, locked_bytes};
use mm_plan::{DType, HostTier, Machine};
use parking_lot::Mutex;
use ring::{Job, Outcome, Piece, Ring};
use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};
use times::Times;

/// The staging ring, how many page-locked buffers of how many bytes; and the most that may be page-locked, copies of slabs
/// included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Buffers, each with a reader thread; at least one, at most 64.
    pub buffers: usize,
    /// Bytes of each, rounded up to a multiple of [`ALIGN`]. A slab that fits is one copy; a larger one is several.
    pub bytes: usize,
    /// Page-locked bytes allowed in all, the ring and page-locked copies: no more than RAM, control group and the system's limit
    /// of locked memory leave.
    pub limit: u64,
}

/// Each has a thread of its own.
const MOST_BUFFERS: usize = 64;

const fn over(need: u64, limit: Option<u64>) -> EngineError {
    EngineError::PageLock { need, limit }
}

impl Default for Staging {
    /// What plans count for it: three buffers of 64 MiB.
    fn default() -> Self {
        Self { buffers: 3, bytes: 64 << 20, limit: u64::MAX }
    }
}

impl Staging {
    /// As plans count it, where this host may page-lock as much as it has available and its limit allows; what is unknown
    /// limits nothing.
    pub fn within(host: &Machine) -> Self {
        let available = (host.ram_available > 0).then_some(host.ram_available);
        let limit = available.into_iter().chain(host.page_lock_limit).min();
        Self { limit: limit.unwrap_or(u64::MAX), ..Self::default() }
    }
}

/// One CUDA device under a byte budget.
///
/// Reader threads read weights into page-locked buffers, casting where the stored dtype differs; from there the driver
/// copies on a stream of its own. Copies wait for the compute that used their slot, and compute for the copies, by events
/// only. The host waits for files to be read, and for memory to be free before it gives it back.
///
/// It has run on a fake driver that checks these rules, not yet on a card.
pub struct CudaDevice {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    jobs: Option<Sender<Piece>>,
    readers: Vec<JoinHandle<()>>,
    piece: usize,
    notes: Vec<String>,
}

struct Shared {
    gpu: Arc<Gpu>,
    locked: Arc<Account>,
    timeline: Arc<Timeline>,
    times: Arc<Times>,
    memory: Mutex<DeviceMemory>,
    /// The first error of a call that could not return it; the next call that can reports it.
    deferred: Mutex<Option<EngineError>>,
    /// Address and bytes of what could not be freed yet, because nobody knows whether the driver still uses it.
    kept: Mutex<Vec<(u64, u64)>>,
}

/// Device memory: an allocation of its own. Dropping it waits for both streams and gives it back.
pub struct CudaBuffer {
    /// 0: of no bytes.
    address: u64,
    bytes: u64,
    dtype: DType,
    shared: Arc<Shared>,
}

/// A point in the compute stream.
#[derive(Clone)]
pub struct CudaMark(Event);

/// A copy under way. Dropping it unfinished waits until it has been handed to the driver, and gives its memory back.
pub struct CudaCopy {
    outcome: Receiver<Outcome>,
}

impl Drop for CudaCopy {
    fn drop(&mut self) {
        // Empty where `finish` took the outcome. Dropping the buffer in it waits for the copy.
        drop(self.outcome.recv());
    }
}

impl CudaDevice {
    /// Device `ordinal` (the driver's number) with `budget` bytes of it, and a staging ring as plans count it.
    /// `compute` is the stream that the tensor library computes on; without one the device makes its own.
    ///
    /// # Errors
    /// `NoDriver`: there is none, or it is too old. `DeviceLost` with the driver's words: there is no such device, or it does not
    /// answer. `HostMemory`: there is none for the ring. `Misuse`: `compute` is a stream of another device.
    pub fn new(ordinal: usize, compute: Option<Arc<CudaStream>>, budget: u64, timeline: Arc<Timeline>) -> Result<Self> {
        Self::with_staging(ordinal, compute, budget, Staging::default(), timeline)
    }

    /// As [`CudaDevice::new`], with a staging ring of another size.
    ///
    /// # Errors
    /// As [`CudaDevice::new`].
    pub fn with_staging(
        ordinal: usize,
        compute: Option<Arc<CudaStream>>,
        budget: u64,
        staging: Staging,
        timeline: Arc<Timeline>,
    ) -> Result<Self> {
        let elapsed = probe::driver()?;
        let count = staging.buffers.max(1);
        let too_large = || EngineError::Misuse(format!("{count} staging buffers of {} bytes", staging.bytes));
        let piece = staging.bytes.max(1).checked_next_multiple_of(ALIGN as usize).ok_or_else(too_large)?;
        if count > MOST_BUFFERS {
            return Err(too_large());
        }
        let need =
            locked_bytes(piece as u64).and_then(|bytes| bytes.checked_mul(count as u64)).ok_or_else(too_large)?;
        let gpu = Gpu::open(ordinal, compute, elapsed)?;
        let times = Times::new(&gpu, &timeline);
        let (jobs, queue) = unbounded();
        let locked = Account::new(&gpu, staging.limit);
        let ring =
            |ordinary| Ring::new(&gpu, &locked, ordinary, times.clone(), timeline.clone(), count, piece, queue.clone());
        let (ring, refused) =
            match if need > staging.limit { Err(over(need, Some(staging.limit))) } else { ring(false) } {
                Err(EngineError::PageLock { limit, .. }) => (ring(true)?, Some(over(need, limit))),
                ring => (ring?, None),
            };
        let ring = Arc::new(ring);
        let notes = refused.map(|error| {
            format!(
                "CUDA device {ordinal}: the staging ring is ordinary memory, from which the driver copies more slowly: {error}"
            )
        });
        let memory = Mutex::new(DeviceMemory { budget, ..DeviceMemory::default() });
        let shared = Arc::new(Shared {
            gpu,
            locked,
            timeline,
            times,
            memory,
            deferred: Mutex::default(),
            kept: Mutex::default(),
        });
        let notes = notes.into_iter().collect();
        let mut device = Self { shared, jobs: Some(jobs), readers: Vec::new(), piece, notes };
        for lane in 0..count {
            let ring = ring.clone();
            let reader = thread::Builder::new().name(format!("mm-cuda-{ordinal}-{lane}"));
            let reader = reader.spawn(move || ring.read(lane)).map_err(|error| EngineError::DeviceLost {
                reason: format!("a thread that reads weights can't be started: {error}"),
            })?;
            device.readers.push(reader);
        }
        Ok(device)
    }

    /// The stream that computes with what this device holds.
    pub fn compute_stream(&self) -> &Arc<CudaStream> {
        self.shared.gpu.compute()
    }

    /// Bytes that are page-locked for this device, exactly.
    pub fn page_locked(&self) -> u64 {
        self.shared.locked.booked()
    }

    /// What is not as it was asked for, and why: a ring that may not be page-locked is ordinary memory.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Free and total bytes of the card, whoever uses them.
    ///
    /// # Errors
    /// `DeviceLost`.
    pub fn free_and_total(&self) -> Result<(u64, u64)> {
        self.shared.gpu.free_and_total()
    }

    /// The first error that could not be told where it happened (memory that could not be given back). The next
    /// allocation reports it otherwise.
    pub fn take_error(&self) -> Option<EngineError> {
        self.shared.deferred.lock().take()
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Readers end when nobody can send any more and what was sent is done.
        self.jobs = None;
        for reader in self.readers.drain(..) {
            // A panic of a reader has been told to whoever waited for its copy.
            let _ = reader.join();
        }
    }
}

impl CudaBuffer {
    /// Its address on the device; 0 where it has no bytes.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Element type.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// The address of `length` bytes from `start` on; `None` where they don't lie in it.
    fn part(&self, start: u64, length: u64) -> Option<u64> {
        start.checked_add(length).filter(|end| *end <= self.bytes)?;
        self.address.checked_add(start)
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.shared.release(self.address, self.bytes);
    }
}

impl Shared {
    fn defer(&self, error: EngineError) {
        self.deferred.lock().get_or_insert(error);
    }

    /// Gives back what this buffer, and earlier ones that had to be kept, held.
    fn release(&self, address: u64, bytes: u64) {
        let mut kept = self.kept.lock();
        kept.push((address, bytes));
        if let Err(error) = self.gpu.settle() {
            // Whether a copy or a kernel still uses them is not known: they are kept, and stay in the account.
            return self.defer(error);
        }
        for (address, bytes) in kept.drain(..) {
            if let Err(error) = self.free(address) {
                self.defer(error);
            }
            let in_use = {
                let mut memory = self.memory.lock();
                memory.in_use = memory.in_use.saturating_sub(bytes);
                memory.in_use
            };
            self.timeline.freed(bytes, in_use);
        }
    }

    /// Both streams must have settled since its last use.
    #[allow(unsafe_code)]
    fn free(&self, address: u64) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        // SAFETY: the address came from `Gpu::allocate` (buffers hold no other), it is freed once (it comes from `kept`, into
        // which its buffer's drop moved it), and the caller settled both streams after that; no buffer exists that could
        // enqueue more.
        unsafe { self.gpu.free(address) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let kept = std::mem::take(self.kept.get_mut());
        // One last time; otherwise it is better leaked than freed.
        if !kept.is_empty() && self.gpu.settle().is_ok() {
            for (address, _) in kept {
                // Nobody is left to hear of an error.
                let _ = self.free(address);
            }
        }
    }
}

impl Device for CudaDevice {
    type Buffer = CudaBuffer;
    type Event = CudaMark;
    type Source = CudaSource;
    type Copy = CudaCopy;

    fn allocate(&self, dtype: DType, bytes: u64) -> Result<CudaBuffer> {
        if !bytes.is_multiple_of(dtype.size()) {
            return Err(EngineError::Misuse(format!("{bytes} bytes are no whole number of {dtype} elements")));
        }
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        let shared = &self.shared;
        {
            let mut memory = shared.memory.lock();
            let in_use = memory.in_use.checked_add(bytes).filter(|sum| *sum <= memory.budget);
            let over = EngineError::OverBudget { need: bytes, in_use: memory.in_use, budget: memory.budget };
            memory.in_use = in_use.ok_or(over)?;
        }
        let allocated = if bytes == 0 { Ok(Some(0)) } else { shared.gpu.allocate(bytes) };
        let mut memory = shared.memory.lock();
        let Ok(Some(address)) = allocated else {
            memory.in_use = memory.in_use.saturating_sub(bytes);
            drop(memory);
            allocated?;
            let (free, _) = self.free_and_total()?;
            return Err(EngineError::NotNow { need: bytes, free });
        };
        memory.peak = memory.peak.max(memory.in_use);
        memory.allocations += 1;
        let in_use = memory.in_use;
        drop(memory);
        shared.timeline.allocated(bytes, in_use);
        Ok(CudaBuffer { address, bytes, dtype, shared: shared.clone() })
    }

    fn free(&self, buffer: CudaBuffer) {
        drop(buffer);
    }

    fn record(&self) -> Result<CudaMark> {
        self.shared.gpu.record(Lane::Compute).map(CudaMark)
    }

    fn in_files(&self, slab: Arc<Slab>) -> CudaSource {
        CudaSource::ring(HostSource::in_files(slab))
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], tier: HostTier) -> Result<Vec<CudaSource>> {
        match tier {
            HostTier::PageLocked => CudaSource::locked(&self.shared.locked, slabs),
            _ => Ok(HostSource::in_memory(slabs)?.into_iter().map(CudaSource::ring).collect()),
        }
    }

    fn copy(&self, label: Label, source: CudaSource, into: CudaBuffer, after: Option<CudaMark>) -> CudaCopy {
        let (done, outcome) = bounded(1);
        if !Arc::ptr_eq(&into.shared, &self.shared) || !source.is_of(&self.shared.locked) {
            let error = EngineError::Misuse("a copy on one CUDA device, from or into memory of another".to_owned());
            // There is room for one.
            let _ = done.send(Err(CopyFailed { buffer: Some(into), error }));
            return CudaCopy { outcome };
        }
        let job = Job { label, source, into, after: after.map(|mark| mark.0), done };
        for piece in Ring::pieces(job, self.piece) {
            // The readers, which hold the other end, live as long as `self`.
            let _ = self.jobs.as_ref().map(|jobs| jobs.send(piece));
        }
        CudaCopy { outcome }
    }

    fn finish(&self, copy: CudaCopy) -> Result<CudaBuffer, CopyFailed<CudaBuffer>> {
        let outcome = copy.outcome.recv().unwrap_or_else(|_| {
            let reason = "no thread that reads weights is left".to_owned();
            Err(CopyFailed { buffer: None, error: EngineError::DeviceLost { reason } })
        });
        let (buffer, event) = outcome?;
        match self.shared.gpu.wait_on(Lane::Compute, &event) {
            Ok(()) => Ok(buffer),
            Err(error) => Err(CopyFailed { buffer: Some(buffer), error }),
        }
    }

    fn is_done(&self, copy: &CudaCopy) -> bool {
        !copy.outcome.is_empty()
    }

    /// To `libnvToolsExt`, where it is: passes here, reading into the ring and handing over to the driver from the reader threads.
    fn profile(&self, kind: Kind, label: &Label) -> Option<Box<dyn Send>> {
        nvtx::Range::begin(kind, label).map(|range| Box::new(range) as Box<dyn Send>)
    }

    /// A group that a plan leaves in its file goes through the same ring, whose bytes are this device's own: they are in
    /// [`CudaDevice::page_locked`] whatever the plan counts.
    fn host_tiers(&self) -> &'static [HostTier] {
        &[HostTier::Staged, HostTier::Mapped, HostTier::PageLocked, HostTier::Pageable]
    }

    /// Timed events of the driver's, on the lane and on the compute stream.
    fn stopwatch(&self) -> Option<Arc<dyn Stopwatch>> {
        Some(self.shared.times.clone())
    }

    fn memory(&self) -> DeviceMemory {
        *self.shared.memory.lock()
    }

    fn driver_memory(&self) -> Option<DriverMemory> {
        self.free_and_total().ok().map(|(free, total)| DriverMemory { free, total })
    }

    fn unfreed(&self) -> u64 {
        self.shared.kept.lock().iter().map(|(_, bytes)| bytes).sum()
    }

    fn trim(&self) -> Option<u64> {
        self.shared.gpu.trim().ok().flatten()
    }
}
