//! A device whose times are known: one copy lane of a given rate on a clock that the test moves. Compute is the test's: it
//! moves the clock while it holds a lease.

use super::TestDevice;
use mm_engine::{
    CopyFailed, Device, DeviceMemory, EngineError, Result, Slab,
    timeline::{Event, Kind, Label, Timeline},
};
use mm_plan::{DType, HostTier, Links};
use parking_lot::Mutex;
use std::sync::Arc;

struct Inner {
    now: u64,
    /// When the lane is free.
    lane: u64,
    memory: DeviceMemory,
    started: Vec<String>,
    frozen: bool,
    violations: Vec<String>,
}

#[derive(Clone)]
pub struct TimedDevice {
    inner: Arc<Mutex<Inner>>,
    timeline: Arc<Timeline>,
    links: Links,
}

pub struct TimedCopy {
    slab: Arc<Slab>,
    into: Vec<u8>,
    end: u64,
}

impl TimedDevice {
    /// Copies take what `h2d` and `copy_fixed_ns` say.
    pub fn new(budget: u64, links: Links) -> Self {
        let memory = DeviceMemory { budget, ..DeviceMemory::default() };
        let (started, violations) = (Vec::new(), Vec::new());
        let inner = Arc::new(Mutex::new(Inner { now: 0, lane: 0, memory, started, frozen: false, violations }));
        let clock = inner.clone();
        let timeline = Arc::new(Timeline::with_clock(1000, move || clock.lock().now));
        Self { inner, timeline, links }
    }

    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Time passes.
    pub fn spend(&self, ns: u64) {
        self.inner.lock().now += ns;
    }

    pub fn now(&self) -> u64 {
        self.inner.lock().now
    }
}

impl TestDevice for TimedDevice {
    fn make(budget: u64, _seed: u64) -> Self {
        Self::new(budget, Links { h2d: 1_000_000_000, staging: None, disk: None, copy_fixed_ns: 0 })
    }

    fn sees(&self, buffer: &Vec<u8>, offset: usize, expected: &[u8]) -> bool {
        buffer.get(offset..offset + expected.len()) == Some(expected)
    }

    fn mark_used(&self, _buffer: &mut Vec<u8>) {}

    fn set_frozen(&self, frozen: bool) {
        self.inner.lock().frozen = frozen;
    }

    fn violation(&self, text: String) {
        self.inner.lock().violations.push(text);
    }

    fn most_in_flight(&self) -> usize {
        1
    }

    fn take_started(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().started)
    }

    fn check(&self) {
        let violations = std::mem::take(&mut self.inner.lock().violations);
        assert!(violations.is_empty(), "rules broken: {violations:#?}");
    }

    fn check_empty(&self) {
        self.check();
        assert_eq!(self.inner.lock().memory.in_use, 0, "bytes still held");
    }
}

impl Device for TimedDevice {
    type Buffer = Vec<u8>;
    type Event = ();
    type Source = Arc<Slab>;
    type Copy = TimedCopy;

    fn allocate(&self, _dtype: DType, bytes: u64) -> Result<Vec<u8>> {
        let mut inner = self.inner.lock();
        if inner.frozen {
            inner.violations.push(format!("{bytes} bytes allocated during a pass"));
        }
        let memory = &mut inner.memory;
        if memory.in_use + bytes > memory.budget {
            return Err(EngineError::OverBudget { need: bytes, in_use: memory.in_use, budget: memory.budget });
        }
        memory.in_use += bytes;
        memory.peak = memory.peak.max(memory.in_use);
        memory.allocations += 1;
        Ok(vec![0xEE; bytes as usize])
    }

    fn free(&self, buffer: Vec<u8>) {
        let mut inner = self.inner.lock();
        if inner.frozen {
            inner.violations.push(format!("{} bytes freed during a pass", buffer.len()));
        }
        inner.memory.in_use -= buffer.len() as u64;
    }

    fn record(&self) -> Result<()> {
        Ok(())
    }

    fn in_files(&self, slab: Arc<Slab>) -> Arc<Slab> {
        slab
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], _tier: HostTier) -> Result<Vec<Arc<Slab>>> {
        Ok(slabs.to_vec())
    }

    fn copy(&self, label: Label, slab: Arc<Slab>, into: Vec<u8>, _after: Option<()>) -> TimedCopy {
        let bytes = slab.bytes();
        let (start_ns, end_ns) = {
            let mut inner = self.inner.lock();
            // What used the slot was computed before this call.
            let start = inner.now.max(inner.lane);
            let moving = (u128::from(bytes) * 1_000_000_000).div_ceil(self.links.h2d.into());
            inner.lane = start + self.links.copy_fixed_ns + moving as u64;
            inner.started.push(format!("{}.{}", label.component, label.group));
            (start, inner.lane)
        };
        self.timeline.log(Event {
            kind: Kind::Copy,
            lane: 0,
            label: Some(label),
            start_ns,
            end_ns,
            bytes,
            in_use: None,
        });
        TimedCopy { slab, into, end: end_ns }
    }

    fn finish(&self, mut copy: TimedCopy) -> Result<Vec<u8>, CopyFailed<Vec<u8>>> {
        {
            let mut inner = self.inner.lock();
            inner.now = inner.now.max(copy.end);
        }
        match copy.slab.fill(&mut copy.into) {
            Ok(()) => Ok(copy.into),
            Err(error) => Err(CopyFailed { buffer: Some(copy.into), error }),
        }
    }

    fn is_done(&self, copy: &TimedCopy) -> bool {
        self.now() >= copy.end
    }

    fn host_tiers(&self) -> &'static [HostTier] {
        &[HostTier::Mapped, HostTier::Staged, HostTier::PageLocked, HostTier::Pageable]
    }

    fn tells_times(&self) -> bool {
        true
    }

    fn memory(&self) -> DeviceMemory {
        self.inner.lock().memory
    }
}
