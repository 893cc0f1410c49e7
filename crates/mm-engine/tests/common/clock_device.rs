//! A device on which time is counted, not spent: one copy lane, one compute stream and one staging lane, each in order, and a
//! host that is never held up by them during a pass; or a device that is host memory, where the host computes itself. Memory is sizes only, so that it may be larger than any machine's.
//!
//! What each lane takes is computed here from the machine's links, as the planner documents them, and shares no code with it.

use mm_engine::{CopyFailed, Device, DeviceMemory, EngineError, Result, Slab, timeline::Label};
use mm_plan::{DType, DeviceKind, HostTier, Lane, Links, Machine};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Nanoseconds; wide enough for any number of copies that never end.
pub(crate) type Time = u128;

/// Something that occupied a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) lane: Lane,
    /// `None`: a component's load.
    pub(crate) group: Option<usize>,
    pub(crate) start: Time,
    pub(crate) end: Time,
}

/// A group as the device copies it: all of its slabs in one go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parcel {
    pub(crate) group: usize,
    /// Where it streams from; `None`: it is loaded once and stays.
    pub(crate) tier: Option<HostTier>,
    pub(crate) bytes: u64,
    pub(crate) stored: u64,
    pub(crate) slabs: u64,
}

/// The links of a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    links: Links,
    on_host: bool,
    /// The weights do not all stay in RAM, so that files are read anew.
    from_disk: bool,
}

fn nanoseconds(bytes: u128, rate: u64) -> u64 {
    let time =
        if rate == 0 { u128::MAX * u128::from(bytes > 0) } else { (bytes * 1_000_000_000).div_ceil(rate.into()) };
    u64::try_from(time).unwrap_or(u64::MAX)
}

impl Rates {
    /// `stored`: bytes of all components as their files hold them.
    pub(crate) fn new(machine: &Machine, links: Links, stored: u128) -> Self {
        let from_disk = machine.ram_available > 0 && stored > machine.ram_available.into();
        Self { links, on_host: machine.device == DeviceKind::Host, from_disk }
    }

    fn fill(&self, bytes: u128) -> u64 {
        nanoseconds(bytes, self.links.staging.unwrap_or(self.links.h2d.div_ceil(2)))
    }

    fn read(&self, stored: u128) -> u64 {
        self.links.disk.filter(|_| self.from_disk).map_or(0, |disk| nanoseconds(stored, disk))
    }

    /// Nanoseconds on the staging and on the copy lane.
    pub(crate) fn stream(&self, parcel: &Parcel, tier: HostTier) -> (u64, u64) {
        let (bytes, read) = (parcel.bytes.into(), self.read(parcel.stored.into()));
        let fixed = self.links.copy_fixed_ns.saturating_mul(parcel.slabs);
        let link = nanoseconds(bytes, self.links.h2d).saturating_add(fixed);
        match tier {
            _ if self.on_host => (0, link.max(read)),
            HostTier::PageLocked => (0, link),
            HostTier::Staged => (self.fill(bytes).max(read), link),
            HostTier::Mapped => (0, self.fill(bytes).max(read).saturating_add(link)),
            HostTier::Pageable => (0, self.fill(bytes).saturating_add(link)),
        }
    }

    /// Nanoseconds on the copy lane; staging runs beside it.
    fn load(&self, load: &Load) -> u64 {
        let fill = if self.on_host { 0 } else { self.fill(load.bytes) };
        let moved = nanoseconds(load.bytes, self.links.h2d).max(fill).max(self.read(load.stored));
        moved.saturating_add(self.links.copy_fixed_ns.saturating_mul(load.copies))
    }
}

/// What a component's load has moved so far.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    start: Time,
    bytes: u128,
    stored: u128,
    copies: u64,
}

/// The group whose slabs are being enqueued.
struct Open {
    label: Label,
    slabs: u64,
    end: Time,
}

#[derive(Default)]
struct Inner {
    /// What the host has waited for; nothing starts earlier.
    host: Time,
    compute: Time,
    copy: Time,
    stage: Time,
    /// Ends of the last two copies of staged groups, the older first.
    staged: [Time; 2],
    load: Option<Load>,
    open: Option<Open>,
    parcels: HashMap<(Arc<str>, Arc<str>), Parcel>,
    events: Vec<Event>,
    memory: DeviceMemory,
    /// Inside a pass: nothing may be allocated, freed or waited for.
    frozen: bool,
    in_flight: usize,
    violations: Vec<String>,
}

impl Inner {
    fn stream(&mut self, rates: &Rates, parcel: &Parcel, tier: HostTier, after: Time) -> Time {
        let (stage, copy) = rates.stream(parcel, tier);
        let mut start = self.copy.max(after).max(self.host);
        if stage > 0 {
            let begin = self.stage.max(self.staged[0]).max(self.host);
            self.stage = begin + Time::from(stage);
            self.log(Lane::Staging, Some(parcel.group), begin, self.stage);
            start = start.max(self.stage);
        }
        self.copy = start + Time::from(copy);
        if stage > 0 {
            self.staged = [self.staged[1], self.copy];
        }
        self.log(Lane::Copy, Some(parcel.group), start, self.copy);
        self.copy
    }

    /// Nothing runs beside a load.
    fn load(&mut self, rates: &Rates, bytes: u64, stored: u64) -> Time {
        let start = self.host.max(self.copy).max(self.stage);
        let load = self.load.get_or_insert(Load { start, ..Load::default() });
        load.bytes += u128::from(bytes);
        load.stored += u128::from(stored);
        load.copies += 1;
        self.copy = load.start + Time::from(rates.load(load));
        self.stage = self.copy;
        self.copy
    }

    fn end_load(&mut self) {
        if let Some(load) = self.load.take()
            && self.copy > load.start
        {
            self.log(Lane::Copy, None, load.start, self.copy);
        }
    }

    fn log(&mut self, lane: Lane, group: Option<usize>, start: Time, end: Time) {
        self.events.push(Event { lane, group, start, end });
    }
}

#[derive(Clone)]
pub(crate) struct ClockDevice {
    rates: Rates,
    inner: Arc<Mutex<Inner>>,
}

pub(crate) struct ClockBuffer {
    dtype: DType,
    bytes: u64,
    /// When the last compute that used it ends.
    used: Time,
}

pub(crate) struct ClockCopy {
    into: ClockBuffer,
    end: Time,
}

impl ClockDevice {
    pub(crate) fn new(budget: u64, rates: Rates) -> Self {
        let memory = DeviceMemory { budget, ..DeviceMemory::default() };
        Self { rates, inner: Arc::new(Mutex::new(Inner { memory, ..Inner::default() })) }
    }

    /// How groups are copied of which the component and the name are these.
    pub(crate) fn expect(&self, component: &str, group: &str, parcel: Parcel) {
        self.inner.lock().parcels.insert((component.into(), group.into()), parcel);
    }

    /// Compute of a group that is leased.
    pub(crate) fn compute(&self, group: usize, takes: u64) {
        let mut inner = self.inner.lock();
        let start = inner.compute.max(inner.host);
        inner.compute = start + Time::from(takes);
        let end = inner.compute;
        inner.log(Lane::Compute, Some(group), start, end);
        if self.rates.on_host {
            inner.host = end;
        }
    }

    pub(crate) fn mark_used(&self, buffer: &mut ClockBuffer) {
        buffer.used = self.inner.lock().compute;
    }

    /// When the last compute that was enqueued ends.
    pub(crate) fn computed(&self) -> Time {
        self.inner.lock().compute
    }

    /// The host waits until all lanes have nothing left to do; the time it is then.
    pub(crate) fn synchronize(&self) -> Time {
        let mut inner = self.inner.lock();
        inner.end_load();
        inner.host = inner.host.max(inner.compute).max(inner.copy).max(inner.stage);
        let now = inner.host;
        (inner.compute, inner.copy, inner.stage, inner.staged) = (now, now, now, [now; 2]);
        now
    }

    pub(crate) fn take_events(&self) -> Vec<Event> {
        let mut inner = self.inner.lock();
        inner.end_load();
        std::mem::take(&mut inner.events)
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        self.inner.lock().frozen = frozen;
    }

    pub(crate) fn violation(&self, text: String) {
        self.inner.lock().violations.push(text);
    }

    pub(crate) fn check(&self) {
        let violations = std::mem::take(&mut self.inner.lock().violations);
        assert!(violations.is_empty(), "rules broken: {violations:#?}");
    }

    pub(crate) fn check_empty(&self) {
        self.check();
        let inner = self.inner.lock();
        assert_eq!((inner.memory.in_use, inner.in_flight), (0, 0), "bytes held, copies never finished");
    }
}

/// What a slab is copied from: its files, where it is in no tier of memory.
#[derive(Clone)]
pub(crate) struct ClockSource {
    slab: Arc<Slab>,
    tier: Option<HostTier>,
}

impl Device for ClockDevice {
    type Buffer = ClockBuffer;
    type Event = Time;
    type Source = ClockSource;
    type Copy = ClockCopy;

    fn allocate(&self, dtype: DType, bytes: u64) -> Result<ClockBuffer> {
        let mut inner = self.inner.lock();
        if inner.frozen {
            inner.violations.push(format!("{bytes} bytes allocated during a pass"));
        }
        let memory = &mut inner.memory;
        let in_use = memory.in_use.checked_add(bytes).filter(|sum| *sum <= memory.budget);
        let over = EngineError::OverBudget { need: bytes, in_use: memory.in_use, budget: memory.budget };
        memory.in_use = in_use.ok_or(over)?;
        memory.peak = memory.peak.max(memory.in_use);
        memory.allocations += 1;
        Ok(ClockBuffer { dtype, bytes, used: 0 })
    }

    fn free(&self, buffer: ClockBuffer) {
        let mut inner = self.inner.lock();
        if inner.frozen {
            inner.violations.push(format!("{} bytes freed during a pass", buffer.bytes));
        }
        inner.memory.in_use -= buffer.bytes;
    }

    fn record(&self) -> Result<Time> {
        Ok(self.inner.lock().compute)
    }

    fn in_files(&self, slab: Arc<Slab>) -> ClockSource {
        ClockSource { slab, tier: None }
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], tier: HostTier) -> Result<Vec<ClockSource>> {
        Ok(slabs.iter().map(|slab| ClockSource { slab: slab.clone(), tier: Some(tier) }).collect())
    }

    fn copy(&self, label: Label, source: ClockSource, into: ClockBuffer, after: Option<Time>) -> ClockCopy {
        let ClockSource { slab, tier: ready } = source;
        let mut inner = self.inner.lock();
        let after = after.unwrap_or(0);
        if after < into.used {
            inner.violations.push(format!("the copy of {} doesn't wait for compute that uses its slot", label.group));
        }
        if slab.dtype() != into.dtype || slab.bytes() > into.bytes {
            inner.violations.push(format!("a slab of {} does not fit the buffer it is copied into", label.group));
        }
        inner.in_flight += 1;
        let parcel = inner.parcels.get(&(label.component.clone(), label.group.clone())).copied();
        let end = match (parcel, inner.open.take()) {
            (_, Some(open)) if open.label == label => {
                inner.open = (open.slabs > 1).then(|| Open { slabs: open.slabs - 1, ..open });
                open.end
            }
            (_, Some(open)) => {
                inner.violations.push(format!("{} was copied in part, then {} began", open.label.group, label.group));
                open.end
            }
            (Some(parcel @ Parcel { tier: Some(tier), .. }), None) => {
                inner.end_load();
                let in_memory = matches!(tier, HostTier::PageLocked | HostTier::Pageable).then_some(tier);
                if in_memory != ready {
                    inner.violations.push(format!("{} is planned {tier:?} and copied from {ready:?}", label.group));
                }
                let end = inner.stream(&self.rates, &parcel, tier, after);
                inner.open = (parcel.slabs > 1).then(|| Open { label, slabs: parcel.slabs - 1, end });
                end
            }
            (_, None) => inner.load(&self.rates, slab.bytes(), slab.host_bytes()),
        };
        ClockCopy { into, end }
    }

    fn finish(&self, copy: ClockCopy) -> Result<ClockBuffer, CopyFailed<ClockBuffer>> {
        let mut inner = self.inner.lock();
        inner.in_flight -= 1;
        inner.compute = inner.compute.max(copy.end);
        if self.rates.on_host {
            inner.host = inner.host.max(inner.compute);
        }
        Ok(copy.into)
    }

    fn is_done(&self, copy: &ClockCopy) -> bool {
        // With a stream of its own compute waits, never the host.
        !self.rates.on_host || self.inner.lock().host >= copy.end
    }

    fn host_tiers(&self) -> &'static [HostTier] {
        &[HostTier::Mapped, HostTier::Staged, HostTier::PageLocked, HostTier::Pageable]
    }

    fn memory(&self) -> DeviceMemory {
        self.inner.lock().memory
    }
}
