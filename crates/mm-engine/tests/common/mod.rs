//! Components of stamped bytes, homes that check what they are given, and plans made by hand.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod calibrated;
#[cfg(feature = "cuda")]
pub mod fake_cuda;
pub mod host;
pub mod timed_device;
pub mod virtual_device;

use mm_cache::TensorSlice;
use mm_engine::{Device, EngineError, Homes, ModelManager, Module, ModuleSpec, Place, Registration, Slab, StackSpec};
use mm_engine::{Run, timeline::Timeline};
use mm_plan::{Component, ComponentPlan, DType, HostTier, Machine, Peak, PhasePlan, Plan, Policy};
use mm_plan::{DeviceKind, Rule, StackPlan, Strategy};
use parking_lot::Mutex;
use safetensors::Dtype;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// What the tests ask of a device beside what the engine does.
pub trait TestDevice: Device + Clone {
    fn make(budget: u64, seed: u64) -> Self;

    /// Whether compute sees these bytes at `offset`. A device with a stream of its own looks when its compute runs, and ends the
    /// program there where it does not.
    fn sees(&self, buffer: &Self::Buffer, offset: usize, expected: &[u8]) -> bool;

    /// Compute that uses the buffer has been enqueued and may still be running.
    fn mark_used(&self, buffer: &mut Self::Buffer);

    /// Inside a pass: nothing may be allocated or freed.
    fn set_frozen(&self, frozen: bool);

    fn violation(&self, text: String);

    /// The most copies that were under way together.
    fn most_in_flight(&self) -> usize;

    /// The copies enqueued since the last call, in order.
    fn take_started(&self) -> Vec<String>;

    /// The test forgets something: what is left at the end is no leak of the engine's.
    fn leaks_on_purpose(&self) {}

    /// No rule was broken so far.
    fn check(&self);

    /// No rule was broken, and everything came back.
    fn check_empty(&self);
}

pub type Key = (Option<usize>, usize);

/// The tensors of a slab: where each starts, and its bytes.
type Parts = Vec<(usize, Vec<u8>)>;

/// Checks each buffer put into a home against the bytes that belong there.
pub struct Rack<D: TestDevice> {
    device: D,
    expected: HashMap<Key, Parts>,
    held: Mutex<HashMap<Key, D::Buffer>>,
    refuses: AtomicBool,
}

struct RackHomes<D: TestDevice>(Arc<Rack<D>>);

fn key(place: Place, slab: usize) -> Key {
    match place {
        Place::Rest => (None, slab),
        Place::Group(group) => (Some(group), slab),
    }
}

impl<D: TestDevice> Rack<D> {
    fn is_right(&self, key: &Key, buffer: &D::Buffer) -> bool {
        self.expected[key].iter().all(|(offset, part)| self.device.sees(buffer, *offset, part))
    }

    /// Every slab of the place is home and holds exactly its bytes.
    pub fn holds(&self, group: Option<usize>) -> bool {
        let held = self.held.lock();
        let mut keys = self.expected.keys().filter(|key| key.0 == group);
        keys.all(|key| held.get(key).is_some_and(|buffer| self.is_right(key, buffer)))
    }

    /// The next slab that is to be taken away stays, with an error.
    pub fn refuse_next(&self) {
        self.refuses.store(true, SeqCst);
    }

    /// How many slabs are home.
    pub fn count(&self) -> usize {
        self.held.lock().len()
    }
}

impl<D: TestDevice> Homes<D::Buffer> for RackHomes<D> {
    fn put(&self, place: Place, slab: usize, buffer: D::Buffer) -> Result<(), (D::Buffer, String)> {
        let key = key(place, slab);
        if !self.0.is_right(&key, &buffer) {
            self.0.device.violation(format!("wrong bytes put into {key:?}"));
        }
        let mut held = self.0.held.lock();
        if held.contains_key(&key) {
            self.0.device.violation(format!("{key:?} put twice"));
            return Err((buffer, "put twice".to_owned()));
        }
        held.insert(key, buffer);
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<D::Buffer, String> {
        let key = key(place, slab);
        if self.0.refuses.swap(false, SeqCst) {
            return Err("refused as told".to_owned());
        }
        let Some(mut buffer) = self.0.held.lock().remove(&key) else {
            self.0.device.violation(format!("{key:?} taken while empty"));
            return Err("empty".to_owned());
        };
        if !self.0.is_right(&key, &buffer) {
            self.0.device.violation(format!("{key:?} was overwritten while it was home"));
        }
        self.0.device.mark_used(&mut buffer);
        Ok(buffer)
    }
}

/// Bytes that tell where they belong.
pub fn stamp(name: &str, place: usize, slab: usize, length: usize) -> Vec<u8> {
    let seed = name.bytes().fold(place * 31 + slab * 7, |sum, b| sum.wrapping_mul(131) + usize::from(b));
    (0..length).map(|i| (seed.wrapping_mul(2_654_435_761) >> (i % 13)).wrapping_add(i * 97) as u8).collect()
}

/// `groups`: per stack, per group, the elements of its F32 and of its BF16 slab (zero: none).
pub struct Shape {
    pub name: &'static str,
    pub phase: Option<u32>,
    pub rest: usize,
    pub stacks: Vec<Vec<(usize, usize)>>,
}

/// `blocks` equal blocks of an F32 and a BF16 slab.
pub fn even(name: &'static str, blocks: usize) -> Shape {
    Shape { name, phase: None, rest: 50, stacks: vec![vec![(100, 70); blocks]] }
}

fn slabs(shape: &Shape, place: usize, elements: (usize, usize)) -> (Vec<Slab>, Vec<Parts>) {
    let mut made = (Vec::new(), Vec::new());
    let kinds = [(DType::F32, Dtype::F32, 4, elements.0), (DType::Bf16, Dtype::BF16, 2, elements.1)];
    for (slab, (dtype, stored, size, count)) in kinds.into_iter().filter(|kind| kind.3 > 0).enumerate() {
        let mut packed = Slab::new(dtype);
        let mut parts = Vec::new();
        for (part, count) in [count.div_ceil(3), count - count.div_ceil(3)].into_iter().enumerate() {
            let bytes = stamp(shape.name, place, slab * 2 + part, count * size);
            let tensor = TensorSlice::from_bytes(format!("t{part}"), stored, [count], bytes.clone()).unwrap();
            parts.push((packed.push(tensor) as usize, bytes));
        }
        made.0.push(packed);
        made.1.push(parts);
    }
    made
}

pub fn build<D: TestDevice>(
    device: &Arc<D>,
    timeline: &Arc<Timeline>,
    shape: &Shape,
) -> (Arc<Module<D>>, Arc<Rack<D>>) {
    build_for(device, timeline, shape, 1)
}

/// With so many passes per request.
pub fn build_for<D: TestDevice>(
    device: &Arc<D>,
    timeline: &Arc<Timeline>,
    shape: &Shape,
    passes: u32,
) -> (Arc<Module<D>>, Arc<Rack<D>>) {
    let mut expected = HashMap::new();
    let mut note = |group: Option<usize>, parts: Vec<Parts>| {
        expected.extend(parts.into_iter().enumerate().map(|(slab, parts)| ((group, slab), parts)));
    };
    let (rest, parts) = slabs(shape, 1_000_000, (shape.rest, 0));
    note(None, parts);
    let (mut stacks, mut group) = (Vec::new(), 0);
    for (index, sizes) in shape.stacks.iter().enumerate() {
        let mut groups = Vec::new();
        for elements in sizes {
            let (slabs, parts) = slabs(shape, group, *elements);
            note(Some(group), parts);
            groups.push(slabs);
            group += 1;
        }
        stacks.push(StackSpec { name: format!("stack{index}"), groups });
    }
    let refuses = AtomicBool::new(false);
    let rack = Arc::new(Rack { device: D::clone(device), expected, held: Mutex::default(), refuses });
    let homes = Box::new(RackHomes(rack.clone()));
    let spec = ModuleSpec { name: shape.name.to_owned(), phase: shape.phase, passes, rest, stacks, homes };
    (Module::new(spec, device.clone(), timeline.clone()), rack)
}

/// A manager with registered components on a device of the tests.
pub struct Rig<D: TestDevice> {
    pub device: D,
    pub manager: Arc<ModelManager<D>>,
    pub modules: Vec<Arc<Module<D>>>,
    pub racks: Vec<Arc<Rack<D>>>,
    pub registrations: Vec<Registration<D>>,
}

pub fn machine(budget: u64) -> Machine {
    let ram = 1 << 40;
    let machine = Machine { device: DeviceKind::Host, vram_free: Some(budget), ..Machine::default() };
    Machine { vram_total: Some(budget), ram_available: ram, ram_total: ram, ..machine }
}

/// Reserves nothing, so that budgets of a few kilobytes work.
pub fn policy(strategy: Strategy) -> Policy {
    Policy { strategy, working_set: Some(0), ..Policy::default() }
}

impl<D: TestDevice> Rig<D> {
    pub fn new(budget: u64, seed: u64, strategy: Strategy, shapes: &[Shape]) -> Self {
        Self::on(D::make(budget, seed), budget, strategy, shapes)
    }

    /// On a device that was made already.
    pub fn on(device: D, budget: u64, strategy: Strategy, shapes: &[Shape]) -> Self {
        let timeline = Arc::new(Timeline::default());
        let shared = Arc::new(device.clone());
        let manager = ModelManager::new(shared, timeline, machine(budget), policy(strategy)).unwrap();
        let mut rig = Self { device, manager, modules: Vec::new(), racks: Vec::new(), registrations: Vec::new() };
        for shape in shapes {
            let (module, rack) = rig.build(shape);
            rig.registrations.push(rig.manager.register(shape.name, &module).unwrap());
            rig.modules.push(module);
            rig.racks.push(rack);
        }
        rig
    }

    /// A component on this rig's device, not registered.
    pub fn build(&self, shape: &Shape) -> (Arc<Module<D>>, Arc<Rack<D>>) {
        build(self.manager.device(), self.manager.timeline(), shape)
    }

    pub fn begin(&self, module: usize) -> Result<Run<D>, EngineError> {
        self.manager.begin(&self.modules[module])
    }

    /// One pass that leases the groups one by one and looks at each group's bytes.
    pub fn pass(&self, module: usize, groups: impl IntoIterator<Item = usize>) -> Result<(), EngineError> {
        let run = self.begin(module)?;
        self.device.set_frozen(true);
        let outcome = self.lease_each(module, groups);
        let outcome = outcome.and_then(|()| run.complete());
        self.device.set_frozen(false);
        outcome
    }

    /// As [`Rig::pass`]; where memory runs out it is tried again.
    pub fn steady_pass(&self, module: usize, groups: Range<usize>) -> Result<(), EngineError> {
        let pass = || {
            self.device.set_frozen(true);
            let outcome = self.lease_each(module, groups.clone());
            self.device.set_frozen(false);
            outcome
        };
        self.manager.run(&self.modules[module], pass, EngineError::shortage)
    }

    pub fn lease_each(&self, module: usize, groups: impl IntoIterator<Item = usize>) -> Result<(), EngineError> {
        assert!(self.racks[module].holds(None), "the rest is not right");
        for group in groups {
            let lease = self.modules[module].lease(group)?;
            assert!(self.racks[module].holds(Some(group)), "group {group} is leased, its bytes are not right");
            drop(lease);
        }
        Ok(())
    }

    /// A rig with nothing registered.
    pub fn empty(budget: u64, strategy: Strategy) -> Self {
        Self::new(budget, 1, strategy, &[])
    }

    /// A component of two blocks, not registered.
    pub fn small(&self, name: &'static str) -> Arc<Module<D>> {
        self.build(&even(name, 2)).0
    }

    /// One pass of a component of [`Rig::small`], or any other that has two blocks.
    pub fn run(&self, module: &Arc<Module<D>>) -> Result<(), EngineError> {
        let run = self.manager.begin(module)?;
        for group in 0..2 {
            drop(module.lease(group)?);
        }
        run.complete()
    }

    /// Everything is taken down; nothing may be left, no rule broken.
    pub fn finish(self) {
        let Self { device, manager, modules, racks, registrations } = self;
        drop(registrations);
        drop((manager, modules));
        assert!(racks.iter().all(|rack| rack.count() == 0), "weights left in homes");
        device.check_empty();
    }
}

/// What it says is wrong.
pub fn misuse<T>(result: Result<T, EngineError>) -> String {
    match result {
        Err(EngineError::Misuse(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("allowed"),
    }
}

/// A placement with the given residents and slots, its figures computed here.
pub fn placement(component: &Component, resident: &[bool], slots: u32) -> ComponentPlan {
    let (mut held, mut largest, mut flags) = (0, BTreeMap::new(), resident.iter());
    for (group, flag) in component.groups().zip(resident) {
        for slab in &group.slabs {
            if *flag {
                held += slab.bytes;
            } else {
                let most = largest.entry(slab.dtype).or_insert(0);
                *most = slab.bytes.max(*most);
            }
        }
    }
    let slot_bytes: u64 = largest.values().sum();
    let slots = if largest.is_empty() { 0 } else { slots };
    let stacks = component.stacks.iter().map(|stack| StackPlan {
        name: stack.name.clone(),
        resident: flags.by_ref().take(stack.groups.len()).copied().collect(),
        host: vec![HostTier::Mapped; stack.groups.len()],
    });
    ComponentPlan {
        name: component.name.clone(),
        strategy: Strategy::BlockPin,
        rest: component.rest,
        stacks: stacks.collect(),
        slots,
        slot_bytes,
        engine_bytes: component.rest + held + slot_bytes * u64::from(slots),
        keep: false,
        same_as: None,
    }
}

/// The same, its groups kept on the host by these tiers in turn.
pub fn on_tiers(mut plan: ComponentPlan, tiers: &[HostTier]) -> ComponentPlan {
    let hosts = plan.stacks.iter_mut().flat_map(|stack| &mut stack.host);
    hosts.zip(tiers.iter().cycle()).for_each(|(host, tier)| *host = *tier);
    plan
}

/// A plan of these placements, each active alone.
pub fn plan_of(components: Vec<ComponentPlan>) -> Plan {
    let peak = components.iter().map(|c| c.engine_bytes).max().unwrap_or(0);
    let phase = |c: &ComponentPlan| PhasePlan {
        components: vec![c.name.clone()],
        engine_bytes: c.engine_bytes,
        headroom: None,
        activation: None,
    };
    Plan {
        schema: 1,
        strategy: Strategy::BlockPin,
        rule: Rule::Threshold,
        low_cpu_mem: true,
        budget: None,
        phases: components.iter().map(phase).collect(),
        components,
        peak: Peak { device: peak, host: 0 },
        predicted: None,
        proof: None,
        notes: Vec::new(),
    }
}
