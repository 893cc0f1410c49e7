//! What the driver holds, and the rules of using it.

use crate::{
    order::{Clock, Handle, Uses},
    stream::{Ran, Record, Stream, Work},
};
use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

pub(crate) type Code = i32;
pub(crate) const SUCCESS: Code = 0;
pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const NOT_INITIALIZED: Code = 3;
pub(crate) const INVALID_DEVICE: Code = 101;
pub(crate) const INVALID_HANDLE: Code = 400;
pub(crate) const NOT_READY: Code = 600;

pub(crate) const DEVICES: i32 = 2;
/// Device addresses are no host addresses, and are never used again.
const FIRST_ADDRESS: u64 = 0x7d00_0000_0000_0000;
pub(crate) const PAGE: u64 = 4096;

thread_local! {
    pub(crate) static CURRENT: Cell<Handle> = const { Cell::new(0) };
    pub(crate) static HOST_WAITS: Cell<u64> = const { Cell::new(0) };
}

pub(crate) struct Allocation {
    pub(crate) context: Handle,
    pub(crate) bytes: Vec<u8>,
    pub(crate) uses: Uses,
}

pub(crate) struct Locked {
    pub(crate) context: Handle,
    pub(crate) memory: Box<[u8]>,
    pub(crate) uses: Uses,
}

pub(crate) struct Event {
    pub(crate) context: Handle,
    /// It keeps when it was reached.
    pub(crate) is_timed: bool,
    pub(crate) last: Option<u64>,
}

/// What is allocated in the order of streams, bytes: only its size is here.
#[derive(Clone, Copy)]
pub(crate) struct Pool {
    pub(crate) held: u64,
    pub(crate) used: u64,
    pub(crate) stuck: u64,
}

pub(crate) struct Driver {
    pub(crate) initialized: bool,
    pub(crate) seed: u64,
    pub(crate) capacity: u64,
    pub(crate) pool: Pool,
    /// Of the allocations asked for, which ones find how many bytes taken by others: after how many, how many of them.
    pub(crate) others: (u64, u64, u64),
    pub(crate) asked: u64,
    /// By others, now.
    pub(crate) taken: u64,
    pub(crate) page_lock_limit: u64,
    /// Copies from memory that is not page-locked are meant.
    pub(crate) pageable: bool,
    /// Which call fails, with which code, and whether all after it do.
    pub(crate) fault: Option<(u64, Code, bool)>,
    pub(crate) faulted: bool,
    pub(crate) forgiven: bool,
    pub(crate) calls: u64,
    /// Calls that only those who time make, and which of them fails.
    pub(crate) timing: u64,
    pub(crate) timing_fault: Option<(u64, Code)>,
    pub(crate) allocations: u64,
    pub(crate) copies: u64,
    /// Per device, how often its primary context is retained.
    pub(crate) retained: [u32; DEVICES as usize],
    next: u64,
    address: u64,
    pub(crate) host: Clock,
    pub(crate) streams: BTreeMap<Handle, Stream>,
    pub(crate) events: BTreeMap<Handle, Event>,
    pub(crate) records: BTreeMap<u64, Record>,
    pub(crate) memory: BTreeMap<u64, Allocation>,
    pub(crate) locked: BTreeMap<usize, Locked>,
    pub(crate) ran: Vec<Ran>,
}

static DRIVER: Mutex<Driver> = Mutex::new(Driver {
    initialized: false,
    seed: 1,
    capacity: 1 << 30,
    pool: Pool { held: 0, used: 0, stuck: 0 },
    others: (0, 0, 0),
    asked: 0,
    taken: 0,
    page_lock_limit: 1 << 30,
    pageable: false,
    fault: None,
    faulted: false,
    forgiven: false,
    calls: 0,
    timing: 0,
    timing_fault: None,
    allocations: 0,
    copies: 0,
    retained: [0; DEVICES as usize],
    next: 1,
    address: FIRST_ADDRESS,
    host: Clock::new(),
    streams: BTreeMap::new(),
    events: BTreeMap::new(),
    records: BTreeMap::new(),
    memory: BTreeMap::new(),
    locked: BTreeMap::new(),
    ran: Vec::new(),
});

/// Ends the program: it did what no CUDA program may do.
pub(crate) fn misuse(what: &str) -> ! {
    eprintln!("fake CUDA driver: misuse: {what}");
    std::process::abort()
}

pub(crate) fn lock() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One call of the driver: counted, and failed where that was asked for.
pub(crate) fn call(body: impl FnOnce(&mut Driver) -> Result<(), Code>) -> Code {
    let mut driver = lock();
    if let Some(code) = driver.count() {
        return code;
    }
    driver.progress();
    body(&mut driver).err().unwrap_or(SUCCESS)
}

/// One call that releases something: it does so even where it is told to fail.
pub(crate) fn release(body: impl FnOnce(&mut Driver)) -> Code {
    let mut driver = lock();
    let told = driver.count();
    body(&mut driver);
    driver.forget();
    told.unwrap_or(SUCCESS)
}

/// What is left when the program ends.
pub(crate) extern "C" fn at_exit() {
    let driver = lock();
    if driver.forgiven {
        return;
    }
    let contexts: u32 = driver.retained.iter().sum();
    // cudarc forgets a context whose constructor failed half-way.
    let contexts = if driver.faulted { 0 } else { contexts };
    let left = [
        (driver.memory.len(), "device allocations"),
        (driver.locked.len(), "page-locked blocks"),
        (driver.streams.len(), "streams"),
        (driver.events.len(), "events"),
        (contexts as usize, "contexts"),
    ];
    for (count, what) in left {
        if count > 0 {
            misuse(&format!("{count} {what} left at exit"));
        }
    }
}

impl Driver {
    /// The code with which this call is to fail.
    fn count(&mut self) -> Option<Code> {
        let number = self.calls;
        self.calls += 1;
        let (at, code, forever) = self.fault?;
        let fails = number == at || (forever && number > at);
        self.faulted |= fails;
        fails.then_some(code)
    }

    /// A call that only those who time make: counted besides, and failed where that was asked for.
    pub(crate) fn times(&mut self) -> Result<(), Code> {
        let number = self.timing;
        self.timing += 1;
        self.timing_fault.filter(|(at, _)| *at == number).map_or(Ok(()), |(_, code)| Err(code))
    }

    /// As [`Driver::times`], where the event is timed.
    pub(crate) fn times_with(&mut self, event: Handle) -> Result<(), Code> {
        if self.event(event).is_timed { self.times() } else { Ok(()) }
    }

    /// When the event was reached.
    pub(crate) fn reached(&mut self, event: Handle) -> Result<u64, Code> {
        let event = self.event(event);
        let (context, last) = (event.context, event.last.filter(|_| event.is_timed).ok_or(INVALID_HANDLE)?);
        self.in_context(context);
        let record = &self.records[&last];
        if record.done { Ok(record.time) } else { Err(NOT_READY) }
    }

    /// Where nothing is left that anything could be ordered after, what was is forgotten.
    fn forget(&mut self) {
        if self.streams.is_empty() && self.events.is_empty() && self.memory.is_empty() && self.locked.is_empty() {
            self.host = Clock::new();
            self.records.clear();
            self.ran.clear();
        }
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below.max(1)
    }

    pub(crate) fn handle(&mut self) -> Handle {
        self.next += 1;
        // Even, unlike a context, and far from any special handle of CUDA's.
        0x5000_0000 + self.next * 16
    }

    pub(crate) fn current(&self) -> Handle {
        let context = CURRENT.get();
        if context == 0 {
            misuse("no context is bound to this thread");
        }
        if self.retained.get(context as usize - 1).is_none_or(|count| *count == 0) {
            misuse("the context bound to this thread has been released");
        }
        context
    }

    /// The thread's context must be the one that owns what is used.
    pub(crate) fn in_context(&self, owner: Handle) {
        if self.current() != owner {
            misuse("the context bound to this thread is not that of what it uses");
        }
    }

    pub(crate) fn stream(&mut self, handle: Handle) -> &mut Stream {
        let Some(context) = self.streams.get(&handle).map(|s| s.context) else {
            misuse("a stream that does not exist, or no longer");
        };
        self.in_context(context);
        self.streams.get_mut(&handle).unwrap_or_else(|| misuse("no stream"))
    }

    pub(crate) fn event(&mut self, handle: Handle) -> &mut Event {
        self.events.get_mut(&handle).unwrap_or_else(|| misuse("an event that does not exist, or no longer"))
    }

    pub(crate) fn enqueue(&mut self, stream: Handle, work: Work) -> u64 {
        let host = self.host.clone();
        let entry = self.stream(stream);
        entry.clock.join(&host);
        let time = entry.clock.tick(stream);
        entry.queue.push_back(work);
        time
    }

    /// What others take when the next allocation is asked for.
    pub(crate) const fn taken_now(&self) -> u64 {
        let (after, count, bytes) = self.others;
        if self.asked >= after && self.asked - after < count { bytes } else { 0 }
    }

    /// Bytes of a device that nobody has.
    pub(crate) fn free(&self, context: Handle) -> u64 {
        let used: u64 = self.memory.values().filter(|m| m.context == context).map(|m| m.bytes.len() as u64).sum();
        self.capacity.saturating_sub(used).saturating_sub(self.taken).saturating_sub(self.pool.held)
    }

    pub(crate) fn allocate(&mut self, context: Handle, bytes: u64) -> Option<u64> {
        self.taken = self.taken_now();
        self.asked += 1;
        if bytes > self.free(context) {
            return None;
        }
        let address = self.address;
        self.address += bytes.next_multiple_of(PAGE) + PAGE;
        self.allocations += 1;
        self.memory.insert(address, Allocation { context, bytes: vec![0xEE; bytes as usize], uses: Uses::default() });
        Some(address)
    }

    fn allocation(&mut self, address: u64, length: usize) -> (&mut Allocation, usize) {
        let found = self.memory.range_mut(..=address).next_back();
        match found {
            Some((start, memory)) if address - start + length as u64 <= memory.bytes.len() as u64 => {
                (memory, (address - start) as usize)
            }
            _ => misuse("device memory that does not exist, or no longer, or not so much of it"),
        }
    }

    pub(crate) fn device_bytes(&mut self, address: u64, length: usize) -> &mut [u8] {
        let (memory, start) = self.allocation(address, length);
        &mut memory.bytes[start..start + length]
    }

    fn locked_at(&mut self, pointer: usize, length: usize) -> Option<&mut Locked> {
        let (start, block) = self.locked.range_mut(..=pointer).next_back()?;
        (pointer - start + length <= block.memory.len()).then_some(block)
    }

    /// Bytes page-locked, whole pages of each block: less can't be locked.
    pub(crate) fn page_locked(&self) -> u64 {
        self.locked.values().map(|block| (block.memory.len() as u64).next_multiple_of(PAGE)).sum()
    }

    pub(crate) fn is_page_locked(&mut self, pointer: usize, length: usize) -> bool {
        self.locked_at(pointer, length).is_some()
    }

    /// Enqueues work that uses device memory and, where `locked`, page-locked memory the other way.
    pub(crate) fn use_memory(
        &mut self,
        stream: Handle,
        device: (u64, usize),
        locked: Option<usize>,
        writes: bool,
        work: Work,
    ) {
        let context = self.stream(stream).context;
        if self.allocation(device.0, device.1).0.context != context {
            misuse("memory of one device used on a stream of another");
        }
        if locked.is_some_and(|pointer| !self.is_page_locked(pointer, device.1)) {
            misuse("an asynchronous copy from or into memory that is not page-locked");
        }
        let time = self.enqueue(stream, work);
        let clock = self.streams[&stream].clock.clone();
        let memory = self.allocation(device.0, device.1).0;
        if !memory.uses.lie_before(&clock, writes) {
            misuse(if writes {
                "device memory is written while earlier work on another stream may still use it: no event in between"
            } else {
                "device memory is read while its copy on another stream may still run: no event in between"
            });
        }
        memory.uses.note(stream, time, writes);
        if let Some(block) = locked.and_then(|pointer| self.locked_at(pointer, device.1)) {
            block.uses.note(stream, time, !writes);
        }
    }

    /// The host has seen that everything up to this record is done.
    pub(crate) fn seen(&mut self, record: u64) {
        let clock = self.records[&record].clock.clone();
        self.host.join(&clock);
    }

    pub(crate) fn synchronize(&mut self, stream: Handle) {
        self.run_until(|driver| driver.streams[&stream].queue.is_empty());
        let clock = self.streams[&stream].clock.clone();
        self.host.join(&clock);
    }
}
