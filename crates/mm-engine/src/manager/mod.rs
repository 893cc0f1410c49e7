//! The life cycle of components: register, plan, apply, run, release. Thread-safe.

mod admission;
mod calibrating;
mod check;
mod gate;
mod load;
mod managed;
mod overrides;
mod planning;
mod registration;
mod registry;
mod release;
mod replace;
mod retry;
mod run;
mod share;
mod sources;
mod survival;
mod sync;

pub use managed::{Managed, Managing, managed};
pub use overrides::StrategyOverride;
pub use registration::Registration;
pub use release::Released;
pub use run::Run;
pub use share::Share;
pub use sources::{Pipeline, SourceRegistration};

use crate::{
    Device, DeviceMemory, EngineError, Module, ModuleStats, Result,
    calibrate::Session,
    module::Layout,
    timeline::{Form, Timeline},
};
use admission::{Admission, Id, Ticket};
use gate::{Gate, Line};
use mm_cache::{Index, LoadCache, WeightStore};
use mm_plan::{ComponentPlan, Machine, Plan, Policy};
use overrides::Override;
use planning::InForce;
use registry::Registry;
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::ThreadId,
};
use survival::Survival;

/// What each component is made of.
type Layouts<D> = BTreeMap<Id, Arc<Layout<<D as Device>::Buffer>>>;

struct State<D: Device> {
    registry: Registry<D>,
    admission: Admission<ThreadId>,
    /// How what is on the device lies there.
    applied: BTreeMap<Id, ComponentPlan>,
    /// What the plan in force was made for.
    layouts: Layouts<D>,
    machine: Machine,
    policy: Policy,
    overrides: Vec<Override>,
    /// A plan that was given, not made.
    given: Option<Arc<Plan>>,
    in_force: Option<InForce>,
    /// Nothing changed since the plan in force was made.
    current: bool,
    /// Who changed something since then.
    changed_by: Vec<ThreadId>,
    /// The plan that is to be in force; `None`: it is yet to be made.
    next: Option<InForce>,
    /// Who ran out of memory.
    survival: Survival,
    /// The largest peak of the plans that were in force; what the timeline is held against.
    planned: u64,
    calibration: Option<Arc<Session>>,
    /// Free memory as somebody told since the last look.
    free: Option<u64>,
}

/// Holds components, decides by a plan what is on the device, and runs exactly that plan.
///
/// A component leaves the device only when another needs the room: the engine keeps what it has as
/// long as all of it stays within the plan's peak.
pub struct ModelManager<D: Device> {
    /// Tells it from other managers.
    id: u64,
    /// What of the host's memory is available, bytes; zero: nobody knows.
    host_memory: u64,
    device: Arc<D>,
    timeline: Arc<Timeline>,
    cache: LoadCache,
    weights: Arc<WeightStore>,
    gate: Gate<State<D>>,
}

static MANAGERS: AtomicU64 = AtomicU64::new(1);

impl<D: Device> ModelManager<D> {
    /// A manager of one device. `machine` is what plans are made for: its `vram_free` must not exceed
    /// the device's budget.
    ///
    /// # Errors
    /// `Misuse` where it does.
    pub fn new(device: Arc<D>, timeline: Arc<Timeline>, machine: Machine, policy: Policy) -> Result<Arc<Self>> {
        Self::with_weights(device, timeline, machine, policy, Arc::new(WeightStore::new(Index::user())))
    }

    /// A manager whose weights are opened in `weights`, which other managers may share.
    ///
    /// # Errors
    /// As [`ModelManager::new`].
    pub fn with_weights(
        device: Arc<D>,
        timeline: Arc<Timeline>,
        machine: Machine,
        policy: Policy,
        weights: Arc<WeightStore>,
    ) -> Result<Arc<Self>> {
        let budget = device.memory().budget;
        if machine.vram_free.is_none_or(|free| free > budget) {
            return Err(EngineError::Misuse(format!(
                "the machine presents {:?} free bytes, the device's budget is {budget}",
                machine.vram_free
            )));
        }
        let host_memory = machine.ram_available;
        let state = State {
            registry: Registry::default(),
            admission: Admission::default(),
            applied: BTreeMap::new(),
            layouts: BTreeMap::new(),
            machine,
            policy,
            overrides: Vec::new(),
            given: None,
            in_force: None,
            current: false,
            changed_by: Vec::new(),
            next: None,
            survival: Survival::default(),
            planned: 0,
            calibration: None,
            free: None,
        };
        let (id, cache) = (MANAGERS.fetch_add(1, Relaxed), LoadCache::new());
        Ok(Arc::new(Self { id, host_memory, device, timeline, cache, weights, gate: Gate::new(state) }))
    }

    /// The device.
    pub const fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// What happened when.
    pub const fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Writes what happened so far to a file, as its name says: `.html` for a page, `.json` for a Chrome trace. Memory is
    /// shown against the device's budget and the largest plan that was in force.
    ///
    /// # Errors
    /// `InvalidInput` for another name; the file can't be written.
    pub fn record_timeline(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        if Form::of(path).is_none() {
            let text = format!("timelines are written as .json or .html, not as {}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let planned = self.gate.read(|state| state.planned);
        self.timeline.write(path, self.memory().budget, planned)
    }

    /// The load-once cache behind [`ModelManager::load_component`].
    pub const fn cache(&self) -> &LoadCache {
        &self.cache
    }

    /// Where weights are opened, so that each content is held once.
    pub const fn weights(&self) -> &Arc<WeightStore> {
        &self.weights
    }

    /// Device memory as counted at each allocation.
    pub fn memory(&self) -> DeviceMemory {
        self.device.memory()
    }

    /// Registered names, sorted.
    pub fn component_names(&self) -> Vec<String> {
        self.gate.read(|state| state.registry.names())
    }

    /// A registered component.
    pub fn get_component(&self, name: &str) -> Option<Arc<Module<D>>> {
        self.gate.read(|state| state.registry.module(name).cloned())
    }

    /// What each component did so far, by the name that it is planned under; aliases are left out.
    pub fn stats(&self) -> Vec<(String, ModuleStats)> {
        let entry = |(_, entry): (Id, &registry::Entry<D>)| (entry.module.title().to_string(), entry.module.stats());
        self.gate.read(|state| state.registry.entries().map(entry).collect())
    }

    /// How many threads wait for a run, or for a plan to be put in force.
    pub fn waiting(&self) -> usize {
        self.gate.read(|state| state.admission.waiting())
    }
}

impl<D: Device> Drop for ModelManager<D> {
    fn drop(&mut self) {
        // Nothing runs: a run holds its manager. An error has nobody to hear it.
        let gone = self.gate.update(|state| {
            let _ = state.take_all_off(state.admission.held().collect());
            state.registry.clear()
        });
        gone.iter().for_each(|entry| entry.module.disown());
    }
}

impl<D: Device> Line for State<D> {
    type Who = ThreadId;

    fn join(&mut self, who: ThreadId) -> Ticket {
        self.admission.join(who)
    }

    fn leave(&mut self, ticket: Ticket) {
        self.admission.leave(ticket);
    }
}
