//! `CudaDevice` on the fake driver: cudarc's real calls, and what the tests ask beside them.
#![allow(unsafe_code)]

use super::TestDevice;
use libloading::Library;
use mm_engine::{CopyFailed, CudaBuffer, CudaCopy, CudaDevice, CudaMark, CudaSource, Staging, Stopwatch};
use mm_engine::{
    Device, DeviceMemory, DriverMemory, EngineError, Result, Slab, timeline::Kind, timeline::Label, timeline::Timeline,
};
use mm_plan::{DType, HostTier};
use parking_lot::Mutex;
use std::{
    ffi::c_void,
    sync::{Arc, OnceLock},
};

/// The fake driver's own entry points.
pub struct Driver {
    loaded: Library,
}

/// Loads the fake driver, once, before cudarc looks for one: it then finds no other.
pub fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let mut path = std::env::current_exe().expect("this test has a path");
        path.set_file_name("libmm_fake_cuda.so");
        // SAFETY: the library is this workspace's own; its initializers do nothing.
        let library = unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // SAFETY: as above; whatever is loaded by that name next is only asked for a symbol.
        let named = unsafe { Library::new("libcuda.so") }.expect("its name inside is libcuda.so");
        // SAFETY: the symbol is not used.
        let is_fake = unsafe { named.get::<*const c_void>("mm_fake_cuda_calls") }.is_ok();
        assert!(is_fake, "the loader finds another driver than the fake one");
        Driver { loaded: library }
    })
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {
        $(#[$doc])*
        pub fn $name(&self, $($arg: $type),*) $(-> $out)? {
            type Entry = unsafe extern "C" fn($($type),*) $(-> $out)?;
            // SAFETY: the fake driver has this entry point with this signature (its `control.rs`).
            let entry = unsafe { self.loaded.get::<Entry>(concat!("mm_fake_cuda_", stringify!($name))) };
            let entry = entry.expect("an entry point of the fake driver");
            // SAFETY: it takes numbers and locks what it touches.
            unsafe { entry($($arg),*) }
        }
    };
}

impl Driver {
    entry!(seed(seed: u64));
    entry!(capacity(bytes: u64));
    entry!(page_lock_limit(bytes: u64));
    entry!(
        /// Whether (1) copies from memory that is not page-locked are meant.
        pageable(meant: u32)
    );
    entry!(
        /// Of the allocations from now on, `count` after the first `after` find so many bytes taken by others.
        others(after: u64, count: u64, bytes: u64)
    );
    entry!(asked() -> u64);
    entry!(
        /// What the pool holds, of it what somebody uses, and what it does not give up though nobody does.
        pool(held: u64, used: u64, stuck: u64)
    );
    entry!(
        /// The call that fails, from now on, with which code, and (1) whether all after it do.
        fail(at: u64, code: i32, forever: u32)
    );
    entry!(calls() -> u64);
    entry!(
        /// The call that fails, from now on, of those that only those who time make, and with which code.
        fail_timing(at: u64, code: i32)
    );
    entry!(timing_calls() -> u64);
    entry!(
        /// Enqueues compute of so many nanoseconds.
        spend(stream: u64, ns: u64)
    );
    entry!(allocations() -> u64);
    entry!(page_locked() -> u64);
    entry!(device_bytes() -> u64);
    entry!(live() -> u64);
    entry!(copies() -> u64);
    entry!(forget());
    entry!(forgive());
    entry!(overlapped() -> u64);
    entry!(host_waits() -> u64);
    entry!(
        /// Ranges begun whose text starts with this byte.
        ranges(first: u8) -> u64
    );
    entry!(
        /// Ranges begun that have not ended.
        open_ranges() -> u64
    );

    /// Enqueues compute that reads device memory and ends the program where it holds other bytes when it runs.
    pub fn kernel(&self, stream: u64, from: u64, expected: &[u8]) {
        type Entry = unsafe extern "C" fn(u64, u64, *const u8, usize);
        // SAFETY: the fake driver has this entry point with this signature (its `entry.rs`).
        let entry = unsafe { self.loaded.get::<Entry>("mm_fake_cuda_kernel") }.expect("an entry point");
        // SAFETY: it copies `expected` before it returns.
        unsafe { entry(stream, from, expected.as_ptr(), expected.len()) };
    }
}

/// No call fails.
pub const NEVER: u64 = u64::MAX;
pub const ILLEGAL_ADDRESS: i32 = 700;
pub const OUT_OF_MEMORY: i32 = 2;

#[derive(Default)]
struct Notes {
    started: Vec<Label>,
    in_flight: usize,
    most_in_flight: usize,
    frozen: bool,
    violations: Vec<String>,
}

#[derive(Clone)]
pub struct FakeCuda {
    pub cuda: Arc<CudaDevice>,
    notes: Arc<Mutex<Notes>>,
}

impl FakeCuda {
    pub fn open(ordinal: usize, budget: u64, staging: Staging) -> Result<Self> {
        driver();
        let timeline = Arc::new(Timeline::default());
        Ok(Self::of(CudaDevice::with_staging(ordinal, None, budget, staging, timeline)?))
    }

    pub fn of(cuda: CudaDevice) -> Self {
        Self { cuda: Arc::new(cuda), notes: Arc::default() }
    }
}

impl TestDevice for FakeCuda {
    /// Devices, sizes of the ring and seeds of the driver vary with `seed`.
    fn make(budget: u64, seed: u64) -> Self {
        driver().seed(seed);
        let staging = Staging { buffers: 1 + seed as usize % 4, bytes: 256 << (seed % 5), limit: 1 << 20 };
        Self::open(seed as usize % 2, budget, staging).expect("the fake driver has two devices")
    }

    fn sees(&self, buffer: &CudaBuffer, offset: usize, expected: &[u8]) -> bool {
        if offset as u64 + expected.len() as u64 > buffer.len() {
            return false;
        }
        let stream = self.cuda.compute_stream();
        driver().kernel(stream.cu_stream() as u64, buffer.address() + offset as u64, expected);
        true
    }

    fn mark_used(&self, _buffer: &mut CudaBuffer) {}

    fn set_frozen(&self, frozen: bool) {
        self.notes.lock().frozen = frozen;
    }

    fn violation(&self, text: String) {
        self.notes.lock().violations.push(text);
    }

    fn most_in_flight(&self) -> usize {
        self.notes.lock().most_in_flight
    }

    fn take_started(&self) -> Vec<String> {
        let started = std::mem::take(&mut self.notes.lock().started);
        started.iter().map(|label| format!("{}.{}", label.component, label.group)).collect()
    }

    fn leaks_on_purpose(&self) {
        driver().forgive();
    }

    fn check(&self) {
        let violations = std::mem::take(&mut self.notes.lock().violations);
        assert!(violations.is_empty(), "rules broken: {violations:#?}");
    }

    fn check_empty(&self) {
        self.check();
        assert_eq!(self.cuda.memory().in_use, 0, "bytes still held");
        assert_eq!(self.notes.lock().in_flight, 0, "copies never finished");
        if let Some(error) = self.cuda.take_error() {
            panic!("nobody was told: {error}");
        }
    }
}

impl Device for FakeCuda {
    type Buffer = CudaBuffer;
    type Event = CudaMark;
    type Source = CudaSource;
    type Copy = CudaCopy;

    fn allocate(&self, dtype: DType, bytes: u64) -> Result<CudaBuffer> {
        if self.notes.lock().frozen {
            self.violation(format!("{bytes} bytes allocated during a pass"));
        }
        self.cuda.allocate(dtype, bytes)
    }

    fn free(&self, buffer: CudaBuffer) {
        if self.notes.lock().frozen {
            self.violation(format!("{} bytes freed during a pass", buffer.len()));
        }
        self.cuda.free(buffer);
    }

    fn record(&self) -> Result<CudaMark> {
        self.cuda.record()
    }

    fn in_files(&self, slab: Arc<Slab>) -> CudaSource {
        self.cuda.in_files(slab)
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], tier: HostTier) -> Result<Vec<CudaSource>> {
        if self.notes.lock().frozen {
            self.violation("host memory taken during a pass".to_owned());
        }
        self.cuda.in_memory(slabs, tier)
    }

    fn copy(&self, label: Label, source: CudaSource, into: CudaBuffer, after: Option<CudaMark>) -> CudaCopy {
        if source.slab().dtype() != into.dtype() {
            self.violation(format!("a slab of {} goes into a buffer of {}", source.slab().dtype(), into.dtype()));
        }
        let mut notes = self.notes.lock();
        notes.started.push(label.clone());
        notes.in_flight += 1;
        notes.most_in_flight = notes.most_in_flight.max(notes.in_flight);
        drop(notes);
        self.cuda.copy(label, source, into, after)
    }

    fn finish(&self, copy: CudaCopy) -> Result<CudaBuffer, CopyFailed<CudaBuffer>> {
        self.notes.lock().in_flight -= 1;
        self.cuda.finish(copy)
    }

    fn is_done(&self, copy: &CudaCopy) -> bool {
        self.cuda.is_done(copy)
    }

    fn profile(&self, kind: Kind, label: &Label) -> Option<Box<dyn Send>> {
        self.cuda.profile(kind, label)
    }

    fn host_tiers(&self) -> &'static [HostTier] {
        self.cuda.host_tiers()
    }

    fn stopwatch(&self) -> Option<Arc<dyn Stopwatch>> {
        self.cuda.stopwatch()
    }

    fn memory(&self) -> DeviceMemory {
        self.cuda.memory()
    }

    fn driver_memory(&self) -> Option<DriverMemory> {
        self.cuda.driver_memory()
    }

    fn unfreed(&self) -> u64 {
        self.cuda.unfreed()
    }

    fn trim(&self) -> Option<u64> {
        self.cuda.trim()
    }
}

/// What an error of the driver's becomes.
pub fn is_told(error: &EngineError) -> bool {
    match error {
        EngineError::DeviceLost { reason } => reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
        EngineError::NotNow { .. } | EngineError::PageLock { .. } => true,
        _ => false,
    }
}
