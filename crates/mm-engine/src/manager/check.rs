//! Whether a plan is one for what is registered, on this device: it is run exactly or refused.

use super::{planning::InForce, registry::Registry};
use crate::{Device, EngineError, Result};
use mm_plan::{Component, ComponentPlan, Plan};
use std::{collections::BTreeMap, sync::Arc};

impl<D: Device> Registry<D> {
    /// The plan, if it is a plan for exactly these modules on this device.
    pub(super) fn check(&self, plan: &Arc<Plan>, device: &D) -> Result<InForce> {
        let budget = device.memory().budget;
        let mismatch = |reason: String| EngineError::PlanMismatch { reason };
        if plan.schema != 1 {
            return Err(mismatch(format!("it has schema {}, this engine runs schema 1", plan.schema)));
        }
        if plan.peak.device > budget {
            let need = plan.peak.device;
            return Err(mismatch(format!("it needs {need} bytes, the device's budget is {budget}")));
        }
        let mut tiers = plan.components.iter().flat_map(|c| &c.stacks).flat_map(|s| &s.host);
        if let Some(tier) = tiers.find(|tier| !device.host_tiers().contains(tier)) {
            return Err(mismatch(format!(
                "it keeps groups {tier:?} on the host, which this device can't copy from; plan for this device"
            )));
        }
        let placed = || plan.components.iter().filter(|c| c.same_as.is_none());
        let mut placements = BTreeMap::new();
        for component in placed() {
            let Some(id) = self.id(&component.name) else {
                let name = &component.name;
                return Err(mismatch(format!("it has a component {name:?} that is not registered")));
            };
            if let Some(other) = placements.insert(id, component.clone()) {
                let (one, two) = (&other.name, &component.name);
                return Err(mismatch(format!("it places {one:?} and {two:?}, which are one component here")));
            }
        }
        for (id, entry) in self.entries() {
            let name = entry.module.title();
            let placement = placements.get(&id).ok_or_else(|| mismatch(format!("it has no component {name:?}")))?;
            check_component(&entry.module.layout().description, placement, plan.peak.device)
                .map_err(|reason| mismatch(format!("{name}: {reason}")))?;
        }
        Ok(InForce { plan: plan.clone(), placements })
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
