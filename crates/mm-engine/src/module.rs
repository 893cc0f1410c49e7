//! What an adapter registers: a component's slabs, and the homes they are put into.

use crate::{
    Device, EngineError, Result, Slab,
    device::{CopyFailed, Stopwatch, Ticket},
    placement::Placement,
    sync::{AcqRel, Acquire, AtomicU64, Mutex, Relaxed, Release},
    timeline::{Kind, Label, Timeline},
};
use mm_plan::{Component, ComponentPlan, Granularity, Group, Slab as SlabSize, Stack};
use parking_lot::RwLock;
use std::sync::Arc;

/// Which part of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// What lies outside its groups.
    Rest,
    /// The group at this index, counted through all stacks in order.
    Group(usize),
}

/// Where a tensor library keeps a component's weights. A home without memory must refuse to be
/// computed with. Called on the pass's own thread only.
pub trait Homes<B>: Send + Sync {
    /// Gives the slab at this index its memory.
    ///
    /// # Errors
    /// The memory back, with the reason.
    fn put(&self, place: Place, slab: usize, buffer: B) -> Result<(), (B, String)>;

    /// Takes the slab's memory away again.
    ///
    /// # Errors
    /// The reason; the home keeps what it had.
    fn take(&self, place: Place, slab: usize) -> Result<B, String>;

    /// All slabs of this place are in, and hold what was copied: nothing was computed with them since. What a library adds to weights, a
    /// LoRA say, it adds here, on the device, in the order of its own stream; nobody waits for it. What this computes is a part of the
    /// pass, but for a place that stays on the device, where it is a part of loading.
    ///
    /// # Errors
    /// Why it failed: the place is then copied anew before it is used.
    fn arrived(&self, _place: Place) -> Result<()> {
        Ok(())
    }

    /// Memory as long as the slab, into which it was read while the model was built; it is given away. `None`: it is to be read.
    fn built(&self, _place: Place, _slab: usize) -> Option<B> {
        None
    }

    /// Frees what was built and nobody asked for.
    fn forget_built(&self) {}
}

/// A stack's groups as an adapter found them.
pub struct StackSpec {
    /// Its path inside the component: `layers`.
    pub name: String,
    /// Per group, its slabs: one per dtype.
    pub groups: Vec<Vec<Slab>>,
}

/// A component as an adapter found it.
pub struct ModuleSpec<B> {
    /// `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// Components of one phase are active together; `None`: active alone.
    pub phase: Option<u32>,
    /// Forwards per request.
    pub passes: u32,
    /// What lies outside the groups: one slab per dtype.
    pub rest: Vec<Slab>,
    /// Its stacks.
    pub stacks: Vec<StackSpec>,
    /// Where the memory goes.
    pub homes: Box<dyn Homes<B>>,
}

impl<B> ModuleSpec<B> {
    /// What the planner is told about it.
    pub fn description(&self) -> Component {
        let sizes = |slabs: &[Slab]| Group {
            slabs: slabs.iter().map(|s| SlabSize { dtype: s.dtype(), bytes: s.bytes() }).collect(),
            host_bytes: slabs.iter().map(Slab::host_bytes).fold(0, u64::saturating_add),
            compute_ns: None,
        };
        let stacks: Vec<Stack> = (self.stacks.iter())
            .map(|s| Stack { name: s.name.clone(), groups: s.groups.iter().map(|g| sizes(g)).collect() })
            .collect();
        Component {
            granularity: if stacks.is_empty() { Granularity::Whole } else { Granularity::Blocks },
            phase: self.phase,
            passes: self.passes,
            ..Component::blocks(self.name.as_str(), sizes(&self.rest).bytes(), stacks)
        }
    }
}

pub(crate) struct GroupEntry {
    pub(crate) name: Arc<str>,
    pub(crate) slabs: Vec<Arc<Slab>>,
}

/// What a component did so far.
#[derive(Clone, Debug, Default)]
pub struct ModuleStats {
    /// Nanoseconds of each pass, the first 10,000.
    pub pass_ns: Vec<u64>,
    /// Passes in all.
    pub passes: u64,
    /// Bytes copied to the device.
    pub copied_bytes: u64,
    /// Nanoseconds that compute stood still waiting for copies.
    pub stall_ns: u64,
    /// What its adapter says of it; where it was put on the device last, what is not as the plan says, and why.
    pub notes: Vec<String>,
}

/// What a component is made of, as it was built or changed last. What is on the device holds the one that it was loaded by.
pub(crate) struct Layout<B> {
    /// Counts the changes.
    number: u64,
    pub(crate) description: Component,
    pub(crate) rest: GroupEntry,
    pub(crate) groups: Vec<GroupEntry>,
    pub(crate) homes: Box<dyn Homes<B>>,
}

impl<B> Layout<B> {
    fn new(number: u64, spec: ModuleSpec<B>) -> Self {
        let description = spec.description();
        let entry = |group: String, slabs: Vec<Slab>| GroupEntry {
            name: group.into(),
            slabs: slabs.into_iter().map(Arc::new).collect(),
        };
        let groups = spec.stacks.into_iter().flat_map(|stack| {
            let name = stack.name;
            stack.groups.into_iter().enumerate().map(move |(i, slabs)| (format!("{name}.{i}"), slabs))
        });
        Self {
            number,
            groups: groups.map(|(name, slabs)| entry(name, slabs)).collect(),
            rest: entry("rest".to_owned(), spec.rest),
            description,
            homes: spec.homes,
        }
    }

    pub(crate) fn entry(&self, place: Place) -> &GroupEntry {
        match place {
            Place::Rest => &self.rest,
            Place::Group(group) => &self.groups[group],
        }
    }

    /// Whether both are of the same groups, however large.
    fn is_like(&self, other: &Self) -> bool {
        let shape = |c: &Component| c.stacks.iter().map(|s| (s.name.clone(), s.groups.len())).collect::<Vec<_>>();
        shape(&self.description) == shape(&other.description)
    }
}

/// A component that can be put on a device, streamed through it, and taken off.
pub struct Module<D: Device> {
    built: Arc<Layout<D::Buffer>>,
    /// As it is from its next load on.
    now: RwLock<Arc<Layout<D::Buffer>>>,
    /// The number of the layout that is on the device, and one more; zero: nothing is there.
    loaded: AtomicU64,
    pub(crate) device: Arc<D>,
    pub(crate) timeline: Arc<Timeline>,
    stopwatch: Option<Arc<dyn Stopwatch>>,
    pub(crate) copied: AtomicU64,
    pub(crate) stalled: AtomicU64,
    /// With the number of the load that made it, so that a lease knows whether it is of this one.
    placement: Mutex<Option<(u64, Placement<D>)>>,
    passes: Mutex<(u64, Vec<u64>)>,
    pub(crate) notes: Mutex<Vec<String>>,
    /// What its adapter says of it.
    note: Mutex<Option<String>>,
    loads: AtomicU64,
    /// The name that it is planned under.
    title: RwLock<Arc<str>>,
    /// The number of the manager that has it; zero: none.
    owner: AtomicU64,
    host_memory: AtomicU64,
}

const PASSES_KEPT: usize = 10_000;

impl<D: Device> Module<D> {
    /// A module that is nowhere yet.
    pub fn new(spec: ModuleSpec<D::Buffer>, device: Arc<D>, timeline: Arc<Timeline>) -> Arc<Self> {
        let built = Arc::new(Layout::new(0, spec));
        let title: Arc<str> = built.description.name.as_str().into();
        Arc::new(Self {
            now: RwLock::new(built.clone()),
            built,
            loaded: AtomicU64::new(0),
            stopwatch: device.stopwatch(),
            device,
            timeline,
            copied: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            placement: Mutex::new(None),
            passes: Mutex::default(),
            notes: Mutex::default(),
            note: Mutex::default(),
            loads: AtomicU64::new(0),
            title: RwLock::new(title),
            owner: AtomicU64::new(0),
            host_memory: AtomicU64::new(0),
        })
    }

    /// The name that it was built with. What it is registered as may be another.
    pub fn name(&self) -> &str {
        &self.built.description.name
    }

    /// What plans, errors and the timeline call it: one of the names that it is registered as, else its own.
    pub fn title(&self) -> Arc<str> {
        self.title.read().clone()
    }

    pub(crate) fn set_title(&self, title: &str) {
        let mut current = self.title.write();
        if **current != *title {
            *current = title.into();
        }
    }

    /// Bytes of memory that the host has for it; `None`: nobody knows.
    pub(crate) fn host_memory(&self) -> Option<u64> {
        Some(self.host_memory.load(Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// Zero: nobody knows.
    pub(crate) fn set_host_memory(&self, bytes: u64) {
        self.host_memory.store(bytes, Relaxed);
    }

    /// Whether that manager has it now. It is one manager's at a time: two would not know what the other holds.
    pub(crate) fn claim(&self, manager: u64) -> bool {
        let owner = self.owner.compare_exchange(0, manager, AcqRel, Acquire);
        owner.is_ok() || owner == Err(manager)
    }

    /// Nobody has it any more.
    pub(crate) fn disown(&self) {
        self.owner.store(0, Release);
    }

    /// What the planner was told about it when it was built.
    pub fn description(&self) -> &Component {
        &self.built.description
    }

    /// What the planner is told about it now; see [`ModelManager::replace`](crate::ModelManager::replace).
    pub fn described(&self) -> Component {
        self.now.read().description.clone()
    }

    /// What it is made of from its next load on.
    pub(crate) fn layout(&self) -> Arc<Layout<D::Buffer>> {
        self.now.read().clone()
    }

    /// Replaces what it is made of. What is on the device stays as it is.
    pub(crate) fn set_layout(&self, spec: ModuleSpec<D::Buffer>) -> Result<()> {
        let mut now = self.now.write();
        let next = Layout::new(now.number + 1, spec);
        if !next.is_like(&self.built) {
            let reason = "what replaces a component has other groups than it";
            return Err(EngineError::Misuse(format!("{}: {reason}", self.title())));
        }
        *now = Arc::new(next);
        Ok(())
    }

    /// Whether what is on the device is older than this.
    pub(crate) fn is_older_than(&self, layout: &Layout<D::Buffer>) -> bool {
        let loaded = self.loaded.load(Acquire);
        loaded != 0 && loaded != layout.number + 1
    }

    /// What it did so far.
    pub fn stats(&self) -> ModuleStats {
        let (passes, pass_ns) = self.passes.lock().clone();
        ModuleStats {
            pass_ns,
            passes,
            copied_bytes: self.copied.load(Relaxed),
            stall_ns: self.stalled.load(Relaxed),
            notes: self.note.lock().iter().chain(self.notes.lock().iter()).cloned().collect(),
        }
    }

    /// Whether it is on the device.
    pub fn is_loaded(&self) -> bool {
        self.placement.lock().is_some()
    }

    /// Whether it is on the device in such a way that groups of it stream.
    pub fn streams(&self) -> bool {
        self.placement.lock().as_ref().is_some_and(|(_, placement)| placement.streams())
    }

    /// Says what its adapter has to say of it, ahead of its notes, in place of what it said before.
    pub fn set_note(&self, note: String) {
        *self.note.lock() = Some(note);
    }

    /// `layout` is what the plan was made for.
    pub(crate) fn load(&self, plan: &ComponentPlan, layout: &Arc<Layout<D::Buffer>>) -> Result<()> {
        let mut placement = self.placement.lock();
        if placement.is_none() {
            let loaded = Placement::load(self, layout.clone(), plan)?;
            self.loaded.store(layout.number + 1, Release);
            *placement = Some((self.loads.fetch_add(1, Relaxed), loaded));
        }
        Ok(())
    }

    /// Takes everything off the device; the bytes, or the first thing that went wrong, after all was tried.
    pub(crate) fn unload(&self) -> Result<u64> {
        self.forget_built();
        let mut placement = self.placement.lock();
        self.loaded.store(0, Release);
        placement.take().map_or(Ok(0), |(_, placement)| placement.unload(self))
    }

    /// What was read while it was built is not kept for its first load any longer.
    pub(crate) fn forget_built(&self) {
        self.layout().homes.forget_built();
    }

    pub(crate) fn begin_pass(&self) {
        if let Some((_, placement)) = self.placement.lock().as_mut() {
            placement.begin_pass(self);
        }
    }

    /// `start_ns`: when the pass began; `complete`: it ran to its end, so its order can be learned.
    pub(crate) fn end_pass(&self, start_ns: u64, complete: bool) -> Result<()> {
        self.timeline.span(Kind::Pass, 0, &self.whole(), start_ns, 0);
        if self.built.groups.is_empty() {
            // Nobody leases a whole component: its pass is its compute.
            self.timeline.span(Kind::Compute, 0, &self.label(&self.built.rest), start_ns, 0);
        }
        let mut passes = self.passes.lock();
        passes.0 += 1;
        if passes.1.len() < PASSES_KEPT {
            let duration = self.timeline.now() - start_ns;
            passes.1.push(duration);
        }
        self.placement.lock().as_mut().map_or(Ok(()), |(_, placement)| placement.end_pass(self, complete))
    }

    /// Puts a group on the device, waiting for its copy where it streams, and starts the next ones.
    ///
    /// # Errors
    /// `Misuse` outside a run, where there is no such group, or where more leases are held than there are
    /// slots; `Source` where the weights can't be read.
    pub fn lease(self: &Arc<Self>, group: usize) -> Result<GroupLease<D>> {
        let mut placement = self.placement.lock();
        let (load, placement) = placement.as_mut().filter(|(_, p)| p.is_active()).ok_or_else(|| {
            EngineError::Misuse(format!("the blocks of {} are used outside its run(..)", self.title()))
        })?;
        if group >= self.built.groups.len() {
            let (name, count) = (self.title(), self.built.groups.len());
            return Err(EngineError::Misuse(format!("{name} has {count} groups, there is no group {group}")));
        }
        placement.acquire(self, group)?;
        // After the wait for its copy, which is nobody's compute.
        let timed = self.begin_timing(Kind::Compute, &self.built.groups[group]);
        let start_ns = self.timeline.now();
        if let Err(error) = placement.settle(self, group) {
            self.end_timing(timed, false);
            return Err(error);
        }
        Ok(GroupLease { module: self.clone(), load: *load, group, start_ns, timed })
    }

    fn begin_timing(&self, kind: Kind, entry: &GroupEntry) -> Option<Ticket> {
        self.time(kind, || self.label(entry))
    }

    /// Tells the device's clock, where somebody reads what happens on this timeline, that this begins on the compute stream.
    fn time(&self, kind: Kind, label: impl FnOnce() -> Label) -> Option<Ticket> {
        let stopwatch = self.stopwatch.as_ref().filter(|_| self.timeline.is_calibrated())?;
        stopwatch.begin(kind, label())
    }

    pub(crate) fn time_pass(&self) -> Option<Ticket> {
        self.time(Kind::Pass, || self.whole())
    }

    /// That it ends; where it does not count it is forgotten.
    pub(crate) fn end_timing(&self, timed: Option<Ticket>, counts: bool) {
        if let (Some(stopwatch), Some(timed)) = (&self.stopwatch, timed) {
            stopwatch.end(timed, counts);
        }
    }

    /// Names the component without a group.
    pub(crate) fn whole(&self) -> Label {
        Label { component: self.title(), group: "".into() }
    }

    pub(crate) fn label(&self, entry: &GroupEntry) -> Label {
        Label { component: self.title(), group: entry.name.clone() }
    }

    /// Starts copying `bytes` from `source`; counts them.
    pub(crate) fn copy(
        &self,
        entry: &GroupEntry,
        bytes: u64,
        source: D::Source,
        into: D::Buffer,
        after: Option<D::Event>,
    ) -> D::Copy {
        self.copied.fetch_add(bytes, Relaxed);
        self.device.copy(self.label(entry), source, into, after)
    }

    /// Orders compute after a copy; time spent waiting is a stall.
    pub(crate) fn finish(&self, entry: &GroupEntry, copy: D::Copy) -> Result<D::Buffer, CopyFailed<D::Buffer>> {
        let timed = self.begin_timing(Kind::Stall, entry);
        let is_done = self.device.is_done(&copy);
        let start = self.timeline.now();
        let outcome = self.device.finish(copy);
        self.end_timing(timed, true);
        if is_done {
            return outcome;
        }
        self.stalled.fetch_add(self.timeline.now() - start, Relaxed);
        self.timeline.span(Kind::Stall, 0, &self.label(entry), start, 0);
        outcome
    }
}

impl<D: Device> Drop for Module<D> {
    fn drop(&mut self) {
        // Memory goes back to the device's account even if nobody unregistered the module. An error
        // has nobody left to hear it; the account then shows the bytes as still held.
        let _ = self.unload();
    }
}

/// Proof that a group is on the device and its copy has been waited for; while it lives the memory is
/// not reused.
pub struct GroupLease<D: Device> {
    module: Arc<Module<D>>,
    load: u64,
    group: usize,
    start_ns: u64,
    /// On the device's own clock.
    timed: Option<Ticket>,
}

impl<D: Device> Drop for GroupLease<D> {
    fn drop(&mut self) {
        self.module.end_timing(self.timed.take(), true);
        let label = self.module.label(&self.module.built.groups[self.group]);
        self.module.timeline.span(Kind::Compute, 0, &label, self.start_ns, 0);
        // A lease that outlived its placement has nothing to give back: unloading took it all.
        if let Some((load, placement)) = self.module.placement.lock().as_mut()
            && *load == self.load
        {
            placement.release(&self.module, self.group);
        }
    }
}
