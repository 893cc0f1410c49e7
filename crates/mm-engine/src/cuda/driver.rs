//! Calls of the driver, each with the context bound and its error told in the driver's words.
//!
//! What is asynchronous here is `unsafe`: the caller keeps source and destination until an event says that they are free.
#![allow(unsafe_code)]

use super::probe::ElapsedTime;
use crate::{EngineError, Result};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use parking_lot::Mutex;
use std::sync::Arc;

/// Waiting for an event gives the core away, and nobody measures with these.
const EVENT_FLAGS: u32 =
    sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;

/// A context with its two streams: the tensor library's, and the lane of copies.
pub(super) struct Gpu {
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    lane: Arc<CudaStream>,
    /// Events that nobody holds any more, to be recorded again.
    spare: Mutex<Vec<RawEvent>>,
    /// Those that are timed.
    stamps: Mutex<Vec<RawEvent>>,
    elapsed: ElapsedTime,
}

#[derive(Clone, Copy)]
pub(super) enum Lane {
    Compute,
    Copies,
}

struct RawEvent(sys::CUevent);

// SAFETY: an event is a handle of the driver's, which may be used from any thread whose context is bound.
unsafe impl Send for RawEvent {}
// SAFETY: as above; every call on it goes through the driver, which locks.
unsafe impl Sync for RawEvent {}

/// A point in one of the streams.
#[derive(Clone)]
pub(super) struct Event(Arc<Recorded>);

struct Recorded {
    /// `None` only while it is dropped.
    raw: Option<RawEvent>,
    gpu: Arc<Gpu>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // Whoever waits for it in a stream waits for the point as it was, also after it is recorded again.
        self.gpu.spare.lock().extend(self.raw.take());
    }
}

/// An event that keeps when its stream came to it. Nobody waits for it.
pub(super) struct Stamp {
    /// `None` only while it is dropped.
    raw: Option<RawEvent>,
    gpu: Arc<Gpu>,
}

impl Drop for Stamp {
    fn drop(&mut self) {
        self.gpu.stamps.lock().extend(self.raw.take());
    }
}

/// What the driver says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    NotYet,
}

/// The driver's error in its own words; that memory ran out is no lost device.
pub(super) fn lost(call: &str, error: DriverError) -> EngineError {
    let name = error.error_name().map_or("unknown".into(), std::ffi::CStr::to_string_lossy);
    let text = error.error_string().map_or("no text".into(), std::ffi::CStr::to_string_lossy);
    let reason = format!("{call}: {name} ({}): {text}", error.0 as u32);
    if is_out_of_memory(&error) { EngineError::OutOfMemory { reason } } else { EngineError::DeviceLost { reason } }
}

fn is_out_of_memory(error: &DriverError) -> bool {
    error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

impl Gpu {
    /// The device's primary context; `compute`, or a stream of its own; and a lane for copies.
    pub(super) fn open(ordinal: usize, compute: Option<Arc<CudaStream>>, elapsed: ElapsedTime) -> Result<Arc<Self>> {
        let context = match &compute {
            Some(stream) if stream.context().ordinal() != ordinal => {
                let told = stream.context().ordinal();
                return Err(EngineError::Misuse(format!("the compute stream is on device {told}, not on {ordinal}")));
            }
            Some(stream) => stream.context().clone(),
            None => CudaContext::new(ordinal).map_err(|e| lost(&format!("opening CUDA device {ordinal}"), e))?,
        };
        let stream = || context.new_stream().map_err(|e| lost("cuStreamCreate", e));
        let compute = compute.map_or_else(stream, Ok)?;
        // A stream that does not wait for the default stream, as all that cudarc makes.
        let lane = stream()?;
        let (spare, stamps) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { context, compute, lane, spare, stamps, elapsed }))
    }

    pub(super) const fn compute(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    pub(super) fn bind(&self) -> Result<()> {
        // Not `bind_to_thread`: that also reports errors of what others dropped.
        // SAFETY: the context is alive, because `self.context` retains it.
        unsafe { result::ctx::set_current(self.context.cu_ctx()) }.map_err(|e| lost("cuCtxSetCurrent", e))
    }

    fn stream(&self, lane: Lane) -> sys::CUstream {
        match lane {
            Lane::Compute => self.compute.cu_stream(),
            Lane::Copies => self.lane.cu_stream(),
        }
    }

    /// Free and total bytes of the device.
    pub(super) fn free_and_total(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|e| lost("cuMemGetInfo", e))?;
        Ok((free as u64, total as u64))
    }

    /// Makes the device's pool, out of which tensor libraries allocate, give up what nobody uses; what it holds of that all the
    /// same, bytes. `None`: this device has no pool.
    pub(super) fn trim(&self) -> Result<Option<u64>> {
        if !self.context.has_async_alloc() {
            return Ok(None);
        }
        // What was freed in the order of a stream is the pool's when the stream has come there.
        self.settle()?;
        // SAFETY: the device exists, because its context is alive.
        let pool = unsafe { result::device::get_mem_pool(self.context.cu_device()) };
        let pool = pool.map_err(|e| lost("cuDeviceGetMemPool", e))?;
        // SAFETY: the pool is the one that the device uses.
        unsafe { result::mem_pool::trim_to(pool, 0) }.map_err(|e| lost("cuMemPoolTrimTo", e))?;
        let bytes = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: as above; both attributes asked for are 64-bit numbers, for which there is a place.
            unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }
                .map_err(|e| lost("cuMemPoolGetAttribute", e))?;
            Ok::<_, EngineError>(bytes)
        };
        let reserved = bytes(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = bytes(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(Some(reserved.saturating_sub(used)))
    }

    /// An allocation of its own; `None` where the device has no room.
    pub(super) fn allocate(&self, bytes: u64) -> Result<Option<u64>> {
        let Ok(bytes) = usize::try_from(bytes) else { return Ok(None) };
        self.bind()?;
        // SAFETY: what is returned is only an address; nothing reads what it holds before a copy wrote it.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(error) if is_out_of_memory(&error) => Ok(None),
            Err(error) => Err(lost("cuMemAlloc", error)),
        }
    }

    /// # Safety
    /// `address` comes from [`Gpu::allocate`], is freed once, and nothing enqueued uses it: this thread called [`Gpu::settle`]
    /// just before, which bound the context.
    pub(super) unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's promise is this call's. Where it fails the memory is not freed again: the driver may have.
        unsafe { result::free_sync(address) }.map_err(|e| lost("cuMemFree", e))
    }

    /// Waits until both streams have done all they were given.
    pub(super) fn settle(&self) -> Result<()> {
        self.settle_lane(Lane::Copies)?;
        self.settle_lane(Lane::Compute)
    }

    pub(super) fn settle_lane(&self, lane: Lane) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is alive, because `self` holds it.
        unsafe { result::stream::synchronize(self.stream(lane)) }.map_err(|e| lost("cuStreamSynchronize", e))
    }

    /// Marks the point that a stream has reached.
    pub(super) fn record(self: &Arc<Self>, lane: Lane) -> Result<Event> {
        self.bind()?;
        let spare = self.spare.lock().pop();
        let raw = spare.map_or_else(|| Self::create_event(EVENT_FLAGS), Ok)?;
        let event = Event(Arc::new(Recorded { raw: Some(raw), gpu: self.clone() }));
        // SAFETY: event and stream are alive, because `event` and `self` hold them, and of one context: the event was created
        // with the stream's context bound.
        unsafe { result::event::record(event.raw()?, self.stream(lane)) }.map_err(|e| lost("cuEventRecord", e))?;
        Ok(event)
    }

    /// A timed event, or one that nobody holds any more.
    pub(super) fn stamp(self: &Arc<Self>) -> Result<Stamp> {
        self.bind()?;
        let spare = self.stamps.lock().pop();
        let raw = spare.map_or_else(|| Self::create_event(sys::CUevent_flags::CU_EVENT_DEFAULT as u32), Ok)?;
        Ok(Stamp { raw: Some(raw), gpu: self.clone() })
    }

    /// The stamp keeps when the stream comes to what is enqueued next.
    pub(super) fn reach(&self, lane: Lane, stamp: &Stamp) -> Result<()> {
        self.bind()?;
        // SAFETY: event and stream are alive, because `stamp` and `self` hold them, and of one context: the event was created
        // with the stream's context bound.
        unsafe { result::event::record(raw(stamp.raw.as_ref())?, self.stream(lane)) }
            .map_err(|e| lost("cuEventRecord", e))
    }

    /// Whether the stream has come there. The context is bound: see [`Gpu::bind`].
    pub(super) fn is_reached(&self, stamp: &Stamp) -> Result<bool> {
        Ok(Self::progress(raw(stamp.raw.as_ref())?, stamp)? == Progress::Done)
    }

    /// Nanoseconds from one point to a later one, both reached. The context is bound.
    pub(super) fn between(&self, start: &Stamp, end: &Stamp) -> Result<u64> {
        let mut milliseconds = 0f32;
        let (first, second) = (raw(start.raw.as_ref())?, raw(end.raw.as_ref())?);
        // SAFETY: the function has this signature since CUDA's first version; both events are alive, because `start` and `end` hold
        // them, and there is a place for the answer.
        unsafe { (self.elapsed)(&raw mut milliseconds, first, second) }
            .result()
            .map_err(|e| lost("cuEventElapsedTime", e))?;
        // What is no number, or below zero, becomes zero.
        Ok((f64::from(milliseconds) * 1e6).round() as u64)
    }

    fn create_event(flags: u32) -> Result<RawEvent> {
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` is a place for one handle; the flags are the driver's own.
        unsafe { sys::cuEventCreate(&raw mut event, flags) }.result().map_err(|e| lost("cuEventCreate", e))?;
        Ok(RawEvent(event))
    }

    /// What is enqueued on `lane` from now on waits for `event`; the host does not.
    pub(super) fn wait_on(&self, lane: Lane, event: &Event) -> Result<()> {
        self.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are alive, because `self` and `event` hold them; the driver notes the point recorded now,
        // so that the event may be recorded again afterwards.
        unsafe { result::stream::wait_event(self.stream(lane), event.raw()?, flags) }
            .map_err(|e| lost("cuStreamWaitEvent", e))
    }

    /// The host waits for `event`. A failure is neither done nor not yet: nobody knows.
    pub(super) fn wait(&self, event: &Event) -> Result<()> {
        self.bind()?;
        if self.query(event)? == Progress::Done {
            return Ok(());
        }
        // SAFETY: the event is alive, because `event` holds it.
        unsafe { result::event::synchronize(event.raw()?) }.map_err(|e| lost("cuEventSynchronize", e))
    }

    fn query(&self, event: &Event) -> Result<Progress> {
        Self::progress(event.raw()?, event)
    }

    /// Of an event that lives as long as its holder.
    fn progress<T>(event: sys::CUevent, _holder: &T) -> Result<Progress> {
        // SAFETY: the event is alive, because its holder is.
        match unsafe { result::event::query(event) } {
            Ok(()) => Ok(Progress::Done),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(Progress::NotYet),
            Err(error) => Err(lost("cuEventQuery", error)),
        }
    }

    /// Enqueues a copy on the lane of copies.
    ///
    /// # Safety
    /// `into` is device memory of this context with room for `from`. Neither it nor `from` is freed, and `from` is not written,
    /// until an event recorded on the lane after this call has been waited for, or the lane has settled.
    pub(super) unsafe fn copy(&self, into: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise is this call's; the stream is alive, because `self` holds it.
        unsafe { result::memcpy_htod_async(into, from, self.lane.cu_stream()) }
            .map_err(|e| lost("cuMemcpyHtoDAsync", e))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.settle().is_err() {
            // A driver that does not answer destroys events with their context, or never.
            return;
        }
        for RawEvent(event) in self.spare.get_mut().drain(..).chain(self.stamps.get_mut().drain(..)) {
            // SAFETY: nobody holds the event any more (it is spare), and it is destroyed once. Work that waits for it is not
            // disturbed by that. An error has nobody to hear it.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

impl Event {
    fn raw(&self) -> Result<sys::CUevent> {
        raw(self.0.raw.as_ref())
    }
}

fn raw(event: Option<&RawEvent>) -> Result<sys::CUevent> {
    event.map(|raw| raw.0).ok_or_else(|| EngineError::Internal("an event was used after its end".to_owned()))
}

/// Page-locked host memory, ordinary to the CPU (not write-combined). Dropping it frees it: what the driver may still read must
/// be kept, or forgotten, instead.
pub(super) struct PageLocked {
    start: *mut u8,
    length: usize,
    gpu: Arc<Gpu>,
}

// SAFETY: it is memory of its own, like a `Vec<u8>`; the driver frees it from any thread with the context bound.
unsafe impl Send for PageLocked {}
// SAFETY: shared references only read it.
unsafe impl Sync for PageLocked {}

impl PageLocked {
    /// `length` bytes, at least one, zeroed; `None` where no more may be page-locked.
    pub(super) fn new(gpu: &Arc<Gpu>, length: usize) -> Result<Option<Self>> {
        let length = length.max(1);
        gpu.bind()?;
        // SAFETY: what is returned is only a pointer; it is written before anything reads what it points to.
        let start = match unsafe { result::malloc_host(length, 0) } {
            Ok(start) => start.cast::<u8>(),
            Err(error) if is_out_of_memory(&error) => return Ok(None),
            Err(error) => return Err(lost("cuMemHostAlloc", error)),
        };
        // SAFETY: the driver gave `length` bytes at `start`, which are ours alone.
        unsafe { start.write_bytes(0, length) };
        Ok(Some(Self { start, length, gpu: gpu.clone() }))
    }

    pub(super) const fn bytes(&self) -> &[u8] {
        // SAFETY: (1) `start` points to `length` bytes that live as long as `self`, as only its last two calls free them; (2) `new` initialized them; (3) writing needs
        // `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    /// The driver must not be reading them: see [`Gpu::copy`].
    pub(super) const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes every other reference. The driver reads them only between a
        // `Gpu::copy` and the event after it, in which its caller promised not to write.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl PageLocked {
    /// Frees it, unless the driver can't be asked to: then it is given back.
    pub(super) fn free(mut self) -> Result<(), Self> {
        if self.try_free() { Ok(()) } else { Err(self) }
    }

    /// Whether the driver was asked to free it, now or before.
    fn try_free(&mut self) -> bool {
        if self.start.is_null() {
            return true;
        }
        if self.gpu.bind().is_err() {
            return false;
        }
        let start = std::mem::replace(&mut self.start, std::ptr::null_mut());
        // SAFETY: `start` came from `malloc_host`, is not null, and is freed once. An error has nobody to hear it: the driver may have
        // freed it all the same.
        let _ = unsafe { result::free_host(start.cast()) };
        true
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        self.try_free();
    }
}
