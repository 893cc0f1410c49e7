//! A device that misbehaves within its contract, and writes down every broken rule.
//!
//! Copies end late and out of order on a virtual clock (seeded), memory has a capacity, and the Nth
//! call may fail. A buffer that is dropped instead of freed is a violation; freeing one twice, or one
//! that a copy owns, does not compile.

use super::TestDevice;
use mm_engine::{CopyFailed, Device, DeviceMemory, EngineError, Result, Slab, timeline::Label};
use mm_plan::{DType, HostTier};
use parking_lot::Mutex;
use std::sync::Arc;

/// Which calls fail; calls of allocate, copy, finish and record are counted together, from zero.
#[derive(Clone, Copy, Debug)]
pub enum Faults {
    None,
    Once(u64),
    Forever(u64),
}

/// What others take: of the allocations from now on, `count` after the first `after` find so many bytes taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Others {
    pub after: u64,
    pub count: u64,
    pub bytes: u64,
}

#[derive(Default)]
struct Inner {
    clock: u64,
    random: u64,
    calls: u64,
    faults: Option<(u64, bool)>,
    /// Allocations asked for since `others` was set.
    asked: u64,
    others: Others,
    memory: DeviceMemory,
    in_flight: usize,
    most_in_flight: usize,
    started: Vec<Label>,
    /// How much compute was enqueued: one step per buffer taken from its home.
    stream: u64,
    /// Inside a pass: nothing may be allocated or freed.
    frozen: bool,
    violations: Vec<String>,
}

impl Inner {
    fn next(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn call_fails(&mut self) -> bool {
        let call = self.calls;
        self.calls += 1;
        self.clock += 1;
        self.faults.is_some_and(|(at, forever)| call == at || (forever && call > at))
    }
}

#[derive(Clone)]
pub struct VirtualDevice(Arc<Mutex<Inner>>);

pub struct VirtualBuffer {
    device: VirtualDevice,
    dtype: DType,
    bytes: Vec<u8>,
    /// The stream's length when compute last used it.
    used: u64,
    freed: bool,
}

impl VirtualBuffer {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Drop for VirtualBuffer {
    fn drop(&mut self) {
        if !self.freed {
            self.device.violation(format!("a buffer of {} bytes was dropped, not freed", self.bytes.len()));
        }
    }
}

pub struct VirtualCopy {
    slab: Arc<Slab>,
    into: VirtualBuffer,
    done_at: u64,
    fails: bool,
}

impl VirtualDevice {
    /// Sets which calls fail, counted from this call on.
    pub fn set_faults(&self, faults: Faults) {
        let mut inner = self.0.lock();
        inner.calls = 0;
        inner.faults = match faults {
            Faults::None => None,
            Faults::Once(at) => Some((at, false)),
            Faults::Forever(at) => Some((at, true)),
        };
    }

    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Sets what others take, and counts allocations anew.
    pub fn set_others(&self, others: Others) {
        let mut inner = self.0.lock();
        (inner.asked, inner.others) = (0, others);
    }

    /// Allocations asked for since `set_others`.
    pub fn asked(&self) -> u64 {
        self.0.lock().asked
    }
}

impl TestDevice for VirtualDevice {
    fn make(budget: u64, seed: u64) -> Self {
        let memory = DeviceMemory { budget, ..DeviceMemory::default() };
        Self(Arc::new(Mutex::new(Inner { random: seed, memory, ..Inner::default() })))
    }

    fn sees(&self, buffer: &VirtualBuffer, offset: usize, expected: &[u8]) -> bool {
        buffer.bytes.get(offset..offset + expected.len()) == Some(expected)
    }

    fn mark_used(&self, buffer: &mut VirtualBuffer) {
        let mut inner = self.0.lock();
        inner.stream += 1;
        buffer.used = inner.stream;
    }

    fn set_frozen(&self, frozen: bool) {
        self.0.lock().frozen = frozen;
    }

    fn violation(&self, text: String) {
        self.0.lock().violations.push(text);
    }

    fn most_in_flight(&self) -> usize {
        self.0.lock().most_in_flight
    }

    fn take_started(&self) -> Vec<String> {
        let started = std::mem::take(&mut self.0.lock().started);
        started.iter().map(|label| format!("{}.{}", label.component, label.group)).collect()
    }

    fn check(&self) {
        let violations = std::mem::take(&mut self.0.lock().violations);
        assert!(violations.is_empty(), "rules broken: {violations:#?}");
    }

    fn check_empty(&self) {
        self.check();
        let inner = self.0.lock();
        assert_eq!(inner.memory.in_use, 0, "bytes still held");
        assert_eq!(inner.in_flight, 0, "copies never finished");
    }
}

impl Device for VirtualDevice {
    type Buffer = VirtualBuffer;
    type Event = u64;
    type Source = Arc<Slab>;
    type Copy = VirtualCopy;

    fn allocate(&self, dtype: DType, bytes: u64) -> Result<VirtualBuffer> {
        let mut inner = self.0.lock();
        let fails = inner.call_fails();
        if inner.frozen {
            inner.violations.push(format!("{bytes} bytes allocated during a pass"));
        }
        let (asked, others) = (inner.asked, inner.others);
        inner.asked += 1;
        let taken = if asked >= others.after && asked - others.after < others.count { others.bytes } else { 0 };
        let memory = &mut inner.memory;
        let free = (memory.budget - memory.in_use).saturating_sub(taken);
        if !fails && memory.in_use + bytes <= memory.budget && bytes > free {
            return Err(EngineError::NotNow { need: bytes, free });
        }
        if fails || memory.in_use + bytes > memory.budget {
            return Err(EngineError::OverBudget { need: bytes, in_use: memory.in_use, budget: memory.budget });
        }
        memory.in_use += bytes;
        memory.peak = memory.peak.max(memory.in_use);
        memory.allocations += 1;
        let bytes = vec![0xEE; bytes as usize];
        Ok(VirtualBuffer { device: self.clone(), dtype, bytes, used: 0, freed: false })
    }

    fn free(&self, mut buffer: VirtualBuffer) {
        buffer.freed = true;
        let mut inner = self.0.lock();
        if inner.frozen {
            inner.violations.push(format!("{} bytes freed during a pass", buffer.bytes.len()));
        }
        inner.memory.in_use -= buffer.bytes.len() as u64;
    }

    fn record(&self) -> Result<u64> {
        let mut inner = self.0.lock();
        if inner.call_fails() {
            return Err(EngineError::DeviceLost { reason: "record failed as told".to_owned() });
        }
        Ok(inner.stream)
    }

    fn in_files(&self, slab: Arc<Slab>) -> Arc<Slab> {
        slab
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], _tier: HostTier) -> Result<Vec<Arc<Slab>>> {
        Ok(slabs.to_vec())
    }

    fn copy(&self, label: Label, slab: Arc<Slab>, mut into: VirtualBuffer, after: Option<u64>) -> VirtualCopy {
        let mut inner = self.0.lock();
        let fails = inner.call_fails();
        if after.unwrap_or(0) < into.used {
            inner.violations.push(format!("the copy of {} doesn't wait for compute that uses its slot", label.group));
        }
        if slab.dtype() != into.dtype {
            inner.violations.push(format!("a slab of {} goes into a buffer of {}", slab.dtype(), into.dtype));
        }
        inner.started.push(label);
        inner.in_flight += 1;
        inner.most_in_flight = inner.most_in_flight.max(inner.in_flight);
        let done_at = inner.clock + 1 + inner.next(40);
        drop(inner);
        into.bytes.fill(0xEE);
        VirtualCopy { slab, into, done_at, fails }
    }

    fn finish(&self, mut copy: VirtualCopy) -> Result<VirtualBuffer, CopyFailed<VirtualBuffer>> {
        let fails = {
            let mut inner = self.0.lock();
            inner.in_flight -= 1;
            inner.clock = inner.clock.max(copy.done_at);
            inner.call_fails() || copy.fails
        };
        if fails {
            let error = EngineError::DeviceLost { reason: "copy failed as told".to_owned() };
            return Err(CopyFailed { buffer: Some(copy.into), error });
        }
        match copy.slab.fill(&mut copy.into.bytes) {
            Ok(()) => Ok(copy.into),
            Err(error) => Err(CopyFailed { buffer: Some(copy.into), error }),
        }
    }

    fn is_done(&self, copy: &VirtualCopy) -> bool {
        self.0.lock().clock >= copy.done_at
    }

    fn memory(&self) -> DeviceMemory {
        self.0.lock().memory
    }
}
