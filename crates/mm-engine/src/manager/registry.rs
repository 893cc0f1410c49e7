//! Who is registered, under which names, how often.

use super::ModelManager;
use crate::{Device, EngineError, Module, Result};
use mm_plan::{Component, ComponentPlan, Plan};
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    thread::ThreadId,
};

/// A module, however many names it has.
pub(super) struct Entry<D: Device> {
    pub(super) module: Arc<Module<D>>,
    /// The placement it was last loaded with.
    pub(super) applied: Option<ComponentPlan>,
    /// Runs under way.
    pub(super) runs: usize,
    /// The thread of the run that began last.
    pub(super) thread: Option<ThreadId>,
    /// When it was used last.
    pub(super) used: u64,
    /// Nobody holds it any more; it goes when its run ends.
    pub(super) leaving: bool,
}

struct Name {
    /// Index of the module's entry.
    entry: u64,
    registrations: usize,
}

pub(super) struct Registry<D: Device> {
    names: BTreeMap<String, Name>,
    entries: BTreeMap<u64, Entry<D>>,
    next: u64,
}

impl<D: Device> Default for Registry<D> {
    fn default() -> Self {
        Self { names: BTreeMap::new(), entries: BTreeMap::new(), next: 0 }
    }
}

impl<D: Device> Registry<D> {
    /// Returns the number of the module's entry.
    pub(super) fn add(&mut self, name: &str, module: &Arc<Module<D>>) -> Result<u64> {
        let known = self.entries.iter().find(|(_, e)| Arc::ptr_eq(&e.module, module)).map(|(id, _)| *id);
        if let Some(named) = self.names.get_mut(name) {
            if Some(named.entry) != known {
                return Err(taken(name));
            }
            named.registrations += 1;
            return Ok(named.entry);
        }
        // A plan knows a module by its own name, so that must be nobody else's either.
        let own = module.name();
        let others = || self.entries.iter().filter(|(id, e)| Some(**id) != known && !e.leaving);
        if let Some(clash) = [own, name].into_iter().find(|n| others().any(|(_, e)| e.module.name() == *n)) {
            return Err(taken(clash));
        }
        if self.names.get(own).is_some_and(|named| Some(named.entry) != known) {
            return Err(taken(own));
        }
        let entry = known.unwrap_or_else(|| {
            self.next += 1;
            let entry = Entry { module: module.clone(), applied: None, runs: 0, thread: None, used: 0, leaving: false };
            self.entries.insert(self.next, entry);
            self.next
        });
        if let Some(known) = self.entries.get_mut(&entry) {
            known.leaving = false;
        }
        self.names.insert(name.to_owned(), Name { entry, registrations: 1 });
        Ok(entry)
    }

    /// One registration less; the module, if that was its last and it isn't running. Registrations
    /// from before a `clear` count for nothing.
    pub(super) fn remove(&mut self, name: &str, entry: u64) -> Option<Arc<Module<D>>> {
        let named = self.names.get_mut(name).filter(|named| named.entry == entry)?;
        named.registrations -= 1;
        if named.registrations > 0 {
            return None;
        }
        let entry = self.names.remove(name)?.entry;
        if self.names.values().any(|other| other.entry == entry) {
            return None;
        }
        let last = self.entries.get_mut(&entry)?;
        last.leaving = true;
        if last.runs > 0 {
            return None;
        }
        self.entries.remove(&entry).map(|e| e.module)
    }

    /// A run ended; the module, if nobody holds it any more.
    pub(super) fn end_run(&mut self, module: &Arc<Module<D>>) -> Option<Arc<Module<D>>> {
        let (id, entry) = self.entries.iter_mut().find(|(_, e)| Arc::ptr_eq(&e.module, module))?;
        (entry.runs, entry.thread) = (0, None);
        let id = entry.leaving.then_some(*id)?;
        self.entries.remove(&id).map(|e| e.module)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    pub(super) fn module(&self, name: &str) -> Option<Arc<Module<D>>> {
        self.names.get(name).and_then(|n| self.entries.get(&n.entry)).map(|e| e.module.clone())
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = &Arc<Module<D>>> {
        self.entries.values().filter(|e| !e.leaving).map(|e| &e.module)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<D>> {
        self.entries.values()
    }

    pub(super) fn entry_of(&mut self, module: &Arc<Module<D>>) -> Option<&mut Entry<D>> {
        self.entries.values_mut().find(|e| Arc::ptr_eq(&e.module, module))
    }

    pub(super) fn idle_module(&self, name: &str) -> Result<Arc<Module<D>>> {
        let entry = self.names.get(name).and_then(|n| self.entries.get(&n.entry));
        let entry = entry.ok_or_else(|| EngineError::Misuse(format!("no component {name:?} is registered")))?;
        if entry.runs > 0 {
            return Err(EngineError::Misuse(format!("{name} is running")));
        }
        Ok(entry.module.clone())
    }

    pub(super) fn clear(&mut self) -> Result<Vec<Arc<Module<D>>>> {
        if let Some(running) = self.entries.values().find(|e| e.runs > 0) {
            return Err(EngineError::Misuse(format!("{} is running", running.module.name())));
        }
        self.names.clear();
        Ok(std::mem::take(&mut self.entries).into_values().map(|e| e.module).collect())
    }

    /// What the planner is told: each module under its own name, further names as aliases.
    pub(super) fn descriptions(&self) -> Vec<Component> {
        let mut components: Vec<Component> = self.modules().map(|m| m.description().clone()).collect();
        for (name, named) in &self.names {
            if let Some(entry) = self.entries.get(&named.entry)
                && entry.module.name() != name
            {
                components.push(Component {
                    phase: entry.module.description().phase,
                    same_as: Some(entry.module.name().to_owned()),
                    ..Component::whole(name.clone(), 0)
                });
            }
        }
        components
    }

    /// Whether `plan` is a plan for exactly these modules on this device.
    pub(super) fn check(&self, plan: &Plan, device: &D) -> Result<()> {
        let budget = device.memory().budget;
        let mismatch = |reason: String| Err(EngineError::PlanMismatch { reason });
        if plan.schema != 1 {
            return mismatch(format!("it has schema {}, this engine runs schema 1", plan.schema));
        }
        if plan.peak.device > budget {
            return mismatch(format!("it needs {} bytes, the device's budget is {budget}", plan.peak.device));
        }
        let mut tiers = plan.components.iter().flat_map(|c| &c.stacks).flat_map(|s| &s.host);
        if let Some(tier) = tiers.find(|tier| !device.host_tiers().contains(tier)) {
            return mismatch(format!(
                "it keeps groups {tier:?} on the host, which this device can't copy from; plan for this device"
            ));
        }
        let placed = plan.components.iter().filter(|c| c.same_as.is_none());
        if let Some(extra) = placed.clone().find(|c| !self.modules().any(|m| m.name() == c.name)) {
            return mismatch(format!("it has a component {:?} that is not registered", extra.name));
        }
        for module in self.modules() {
            let Some(component) = placed.clone().find(|c| c.name == module.name()) else {
                return mismatch(format!("it has no component {:?}", module.name()));
            };
            check_component(module.description(), component, plan.peak.device)
                .or_else(|reason| mismatch(format!("{}: {reason}", module.name())))?;
        }
        Ok(())
    }
}

/// Recomputes a placement's bytes; `Err` says where it differs.
fn check_component(component: &Component, plan: &ComponentPlan, peak: u64) -> Result<(), String> {
    if plan.rest != component.rest {
        return Err(format!("the rest is {} bytes, the plan has {}", component.rest, plan.rest));
    }
    let shapes = component.stacks.iter().map(|s| (&s.name, s.groups.len()));
    if !shapes.eq(plan.stacks.iter().map(|s| (&s.name, s.resident.len()))) {
        return Err("the stacks differ in name, number or length".to_owned());
    }
    let flags = plan.stacks.iter().flat_map(|s| &s.resident);
    let (mut resident, mut largest) = (0u64, BTreeMap::new());
    for (group, flag) in component.groups().zip(flags) {
        if *flag {
            resident += group.bytes();
        } else {
            for slab in &group.slabs {
                let slot = largest.entry(slab.dtype).or_insert(0);
                *slot = slab.bytes.max(*slot);
            }
        }
    }
    let slot: u64 = largest.values().sum();
    if !largest.is_empty() && (plan.slots == 0 || plan.slot_bytes != slot) {
        return Err(format!("a slot takes {slot} bytes, the plan has {} slots of {}", plan.slots, plan.slot_bytes));
    }
    let bytes = slot.checked_mul(u64::from(plan.slots)).and_then(|s| s.checked_add(component.rest + resident));
    match bytes {
        Some(bytes) if bytes == plan.engine_bytes && bytes <= peak => Ok(()),
        _ => Err(format!("it takes {bytes:?} bytes, the plan has {} of a peak of {peak}", plan.engine_bytes)),
    }
}

fn taken(name: &str) -> EngineError {
    EngineError::Misuse(format!(
        "another component is registered as {name:?}; drop its registration or choose another name"
    ))
}

/// A registration; dropping it unregisters.
pub struct Registration<D: Device> {
    manager: Weak<ModelManager<D>>,
    name: String,
    entry: u64,
}

impl<D: Device> Registration<D> {
    pub(super) fn new(manager: &Arc<ModelManager<D>>, name: &str, entry: u64) -> Self {
        Self { manager: Arc::downgrade(manager), name: name.to_owned(), entry }
    }

    /// The name registered.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<D: Device> Drop for Registration<D> {
    fn drop(&mut self) {
        if let Some(manager) = self.manager.upgrade() {
            manager.unregister(&self.name, self.entry);
        }
    }
}
