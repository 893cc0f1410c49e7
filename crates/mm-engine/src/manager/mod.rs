//! The life cycle of components: register, plan, apply, run, release. Thread-safe.

mod registry;
mod run;
mod share;

pub use registry::Registration;
pub use run::Run;
pub use share::Share;

use crate::{
    Device, DeviceMemory, EngineError, Module, ModuleStats, Result,
    timeline::{Form, Timeline},
};
use mm_cache::{Index, LoadCache, LoadError, Weight, WeightStore};
use mm_plan::{Machine, Plan, Policy, Strategy};
use parking_lot::{Condvar, Mutex, MutexGuard};
use registry::{Entry, Registry};
use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::Arc,
    thread::{self, ThreadId},
};

/// An override that is in force while its guard lives.
struct Override {
    id: u64,
    names: Vec<String>,
    strategy: Strategy,
}

pub(crate) struct State<D: Device> {
    registry: Registry<D>,
    machine: Machine,
    policy: Policy,
    overrides: Vec<Override>,
    /// A plan that was given, not made.
    given: Option<Arc<Plan>>,
    /// The plan in force; `None`: something changed, the next run makes one.
    plan: Option<Arc<Plan>>,
    /// The largest peak of the plans that were in force; what the timeline is held against.
    planned: u64,
    next_id: u64,
    /// Counts runs; tells which component was used last.
    clock: u64,
    /// Which thread waits for which.
    waiting: HashMap<ThreadId, ThreadId>,
}

impl<D: Device> State<D> {
    fn put_in_force(&mut self, plan: Arc<Plan>) {
        self.planned = self.planned.max(plan.peak.device);
        self.plan = Some(plan);
    }
}

/// Holds components, decides by a plan what is on the device, and runs exactly that plan.
///
/// A component leaves the device only when another needs the room: the engine keeps what it has as
/// long as all of it stays within the plan's peak.
pub struct ModelManager<D: Device> {
    device: Arc<D>,
    timeline: Arc<Timeline>,
    cache: LoadCache,
    weights: Arc<WeightStore>,
    state: Mutex<State<D>>,
    idle: Condvar,
}

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
        let state = State {
            registry: Registry::default(),
            machine,
            policy,
            overrides: Vec::new(),
            given: None,
            plan: None,
            planned: 0,
            next_id: 0,
            clock: 0,
            waiting: HashMap::new(),
        };
        let cache = LoadCache::new();
        Ok(Arc::new(Self { device, timeline, cache, weights, state: Mutex::new(state), idle: Condvar::new() }))
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
        let planned = self.lock().planned;
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
        self.lock().registry.names()
    }

    /// A registered component.
    pub fn get_component(&self, name: &str) -> Option<Arc<Module<D>>> {
        self.lock().registry.module(name)
    }

    /// What each component did so far, by name; aliases are left out.
    pub fn stats(&self) -> Vec<(String, ModuleStats)> {
        self.lock().registry.modules().map(|module| (module.name().to_owned(), module.stats())).collect()
    }

    /// The plan in force, if one was applied since the last change.
    pub fn plan(&self) -> Option<Arc<Plan>> {
        self.lock().plan.clone()
    }

    /// The strategy of the largest component under the plan in force.
    pub fn applied_strategy(&self) -> Option<Strategy> {
        self.plan().map(|plan| plan.strategy)
    }

    /// Registers a component under its name, or, where this very module is registered already, under
    /// one name more. It is planned with the others at the next run.
    ///
    /// # Errors
    /// `Misuse`: the name belongs to another module, or the module is on another device.
    pub fn register(self: &Arc<Self>, name: &str, module: &Arc<Module<D>>) -> Result<Registration<D>> {
        if !Arc::ptr_eq(&module.device, &self.device) {
            return Err(EngineError::Misuse(format!("{name} was built for another device than its manager's")));
        }
        let mut state = self.lock();
        let entry = state.registry.add(name, module)?;
        state.plan = None;
        Ok(Registration::new(self, name, entry))
    }

    /// Takes a registration back. The component leaves the device when nobody holds it any more and
    /// its run, if one is under way, has ended.
    pub(crate) fn unregister(&self, name: &str, entry: u64) {
        let mut state = self.lock();
        let module = state.registry.remove(name, entry);
        state.plan = None;
        if let Some(module) = &module {
            // An error has nobody to hear it here; the device's account shows what stayed.
            let _ = module.unload();
        }
        self.wake(&mut state);
        // What the module holds may take this lock when it is dropped.
        drop(state);
    }

    /// Replaces the policy; the next run plans anew.
    pub fn set_policy(&self, policy: Policy) {
        let mut state = self.lock();
        (state.policy, state.given, state.plan) = (policy, None, None);
    }

    /// Plans for what is registered and puts the plan in force. Components whose placement changed
    /// leave the device and return with their next run; the others stay. On an error nothing changed.
    ///
    /// # Errors
    /// `Infeasible`: no plan fits.
    pub fn apply(&self) -> Result<Arc<Plan>> {
        self.planned(&mut self.lock())
    }

    /// Puts a given plan in force, exactly.
    ///
    /// # Errors
    /// `PlanMismatch` says where it doesn't fit what is registered, or the device.
    pub fn apply_plan(&self, plan: Plan) -> Result<Arc<Plan>> {
        let mut state = self.lock();
        let plan = Arc::new(plan);
        loop {
            state.registry.check(&plan, &*self.device)?;
            match self.enforce(&state, &plan)? {
                None => break,
                Some(owner) => self.wait(&mut state, owner)?,
            }
        }
        state.given = Some(plan.clone());
        state.put_in_force(plan.clone());
        Ok(plan)
    }

    /// While the guard lives, the components named (all of them, if none is) use `strategy`; it is
    /// applied at the first run. Dropping the guard, also by error or panic, brings back what was.
    ///
    /// # Errors
    /// `Misuse`: a name is not registered.
    pub fn use_components(self: &Arc<Self>, names: &[&str], strategy: Strategy) -> Result<StrategyOverride<D>> {
        let mut state = self.lock();
        if let Some(unknown) = names.iter().find(|name| state.registry.module(name).is_none()) {
            let known = state.registry.names().join(", ");
            return Err(EngineError::Misuse(format!("no component {unknown:?} is registered; there are: {known}")));
        }
        let id = state.next_id;
        state.next_id += 1;
        state.overrides.push(Override { id, names: names.iter().map(|n| (*n).to_owned()).collect(), strategy });
        state.plan = None;
        Ok(StrategyOverride { manager: self.clone(), id })
    }

    /// Loads a thing once for everyone who asks for `identifier`, however many threads ask at once; see
    /// [`LoadCache::load_component`].
    ///
    /// # Errors
    /// The factory's error, or a broken rule of the cache.
    pub fn load_component<T: Send + Sync + 'static, E, W: Into<Weight>>(
        &self,
        name: &str,
        identifier: &str,
        weigh: impl FnOnce(&T) -> W,
        factory: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, LoadError<E>> {
        self.cache.load_component(name, identifier, weigh, factory)
    }

    /// Takes a component off the device; it returns with its next run.
    ///
    /// # Errors
    /// `Misuse`: it is running, or not registered.
    pub fn unload(&self, name: &str) -> Result<()> {
        self.lock().registry.idle_module(name)?.unload()
    }

    /// Takes everything off the device, forgets all registrations, overrides, given plans and cached
    /// components, and resets the policy.
    ///
    /// # Errors
    /// `Misuse` while a component runs: then nothing changed.
    pub fn clear(&self) -> Result<()> {
        let mut state = self.lock();
        // Dropped after the lock is released: what a module holds may take it.
        let modules = state.registry.clear()?;
        (state.policy, state.given, state.plan) = (Policy::default(), None, None);
        state.overrides.clear();
        let outcome = modules.iter().map(|module| module.unload()).fold(Ok(()), Result::and);
        drop(state);
        // What is cached may hold registrations, which take the lock too.
        self.cache.clear();
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock()
    }

    /// Waits until a run or a registration of another thread ends. `owner` runs what is in the way.
    fn wait(&self, state: &mut MutexGuard<'_, State<D>>, owner: ThreadId) -> Result<()> {
        let here = thread::current().id();
        let mut next = Some(owner);
        for _ in 0..=state.waiting.len() {
            let Some(thread) = next else { break };
            if thread == here {
                let text = "two threads each run a component and wait for the other's; run them one after the other";
                return Err(EngineError::Misuse(text.to_owned()));
            }
            next = state.waiting.get(&thread).copied();
        }
        state.waiting.insert(here, owner);
        self.idle.wait(state);
        state.waiting.remove(&here);
        Ok(())
    }

    /// Whoever waits looks again.
    fn wake(&self, state: &mut State<D>) {
        state.waiting.clear();
        self.idle.notify_all();
    }

    /// The plan in force; makes one where something changed, waiting for runs of other threads that it
    /// would change.
    fn planned(&self, state: &mut MutexGuard<'_, State<D>>) -> Result<Arc<Plan>> {
        loop {
            if let Some(plan) = &state.plan {
                return Ok(plan.clone());
            }
            let plan = self.make_plan(state)?;
            match self.enforce(state, &plan)? {
                None => state.put_in_force(plan),
                Some(owner) => self.wait(state, owner)?,
            }
        }
    }

    /// The plan that was given, which must still fit what is registered; else one by the policy. Overrides
    /// set a given plan aside while they last.
    fn make_plan(&self, state: &State<D>) -> Result<Arc<Plan>> {
        if let Some(plan) = state.given.as_ref().filter(|_| state.overrides.is_empty()) {
            state.registry.check(plan, &*self.device)?;
            return Ok(plan.clone());
        }
        let mut policy = state.policy.clone();
        for change in &state.overrides {
            if change.names.is_empty() {
                policy.strategies.clear();
                policy.strategy = change.strategy;
            }
            policy.strategies.extend(change.names.iter().map(|n| (n.clone(), change.strategy)));
        }
        Ok(Arc::new(mm_plan::plan(&state.machine, &state.registry.descriptions(), &policy)?))
    }

    /// Takes off the device what the new plan places differently. Where another thread runs such a
    /// component nothing is touched, and that thread is returned.
    fn enforce(&self, state: &State<D>, plan: &Plan) -> Result<Option<ThreadId>> {
        let here = thread::current().id();
        let same = |entry: &Entry<D>| entry.applied.as_ref() == plan.component(entry.module.name());
        let changed = || state.registry.entries().filter(|e| !e.leaving && e.module.is_loaded() && !same(e));
        let running = || changed().filter(|e| e.runs > 0);
        if let Some(mine) = running().find(|e| e.thread == Some(here)) {
            let name = mine.module.name();
            return Err(EngineError::Misuse(format!("{name} is running; its strategy can't change now")));
        }
        if let Some(owner) = running().find_map(|e| e.thread) {
            return Ok(Some(owner));
        }
        changed().map(|entry| entry.module.unload()).fold(Ok(()), Result::and).map(|()| None)
    }
}

/// A strategy in force while this lives; see [`ModelManager::use_components`].
pub struct StrategyOverride<D: Device> {
    manager: Arc<ModelManager<D>>,
    id: u64,
}

impl<D: Device> Drop for StrategyOverride<D> {
    fn drop(&mut self) {
        let mut state = self.manager.lock();
        state.overrides.retain(|change| change.id != self.id);
        state.plan = None;
    }
}
