//! What laws 1 and 2 demand of a plan, computed from the component list and the plan's flags alone: no figure of the plan
//! is believed, and nothing is shared with the planner.

use crate::{
    generate::{Case, RING},
    schedule::host_bytes,
};
use mm_plan::{Basis, Component, ComponentPlan, DType, DeviceKind, Granularity, Group, HostTier, Plan, Rule, Strategy};
use std::collections::{BTreeMap, BTreeSet};

/// Who holds a component's weights. Generated aliases are one step long.
pub(crate) fn holder<'a>(case: &'a Case, component: &'a Component) -> &'a Component {
    let Some(name) = &component.same_as else { return component };
    case.components.iter().find(|c| c.name == *name).unwrap()
}

/// The components of each phase, phases in order: by number, then those without one, each alone, by name.
pub(crate) fn phases(case: &Case) -> Vec<Vec<&Component>> {
    let mut phases: BTreeMap<(u64, &str), Vec<&Component>> = BTreeMap::new();
    for component in &case.components {
        let stretch = component.phase.map_or((u64::MAX, component.name.as_str()), |p| (p.into(), ""));
        phases.entry(stretch).or_default().push(component);
    }
    phases.into_values().collect()
}

/// Names of what is active in a phase: its members and those whose weights they use.
pub(crate) fn active<'a>(case: &'a Case, members: &[&'a Component]) -> BTreeSet<&'a str> {
    members.iter().flat_map(|c| [c.name.as_str(), holder(case, c).name.as_str()]).collect()
}

/// Passes through a component's weights in a phase, by whatever name.
pub(crate) fn passes_in(case: &Case, members: &[&Component], holds: &Component) -> u64 {
    members.iter().filter(|c| holder(case, c).name == holds.name).map(|c| u64::from(c.passes)).sum()
}

pub(crate) fn size(group: &Group) -> u64 {
    group.slabs.iter().map(|s| s.bytes).sum()
}

/// A component's groups with whether they are resident.
pub(crate) fn placed<'a>(component: &'a Component, plan: &'a ComponentPlan) -> Vec<(&'a Group, bool)> {
    let flags = plan.stacks.iter().flat_map(|s| s.resident.iter().copied());
    component.stacks.iter().flat_map(|s| &s.groups).zip(flags).collect()
}

/// Where the host keeps each group.
pub(crate) fn tiers(plan: &ComponentPlan) -> Vec<HostTier> {
    plan.stacks.iter().flat_map(|s| s.host.iter().copied()).collect()
}

/// One slot: the largest streamed slab of each dtype.
pub(crate) fn slot(component: &Component, plan: &ComponentPlan) -> BTreeMap<DType, u64> {
    let mut slot = BTreeMap::new();
    for (group, _) in placed(component, plan).into_iter().filter(|(_, resident)| !resident) {
        for slab in &group.slabs {
            let largest: &mut u64 = slot.entry(slab.dtype).or_default();
            *largest = slab.bytes.max(*largest);
        }
    }
    slot
}

/// Device bytes of a component while it is on the device.
pub(crate) fn held(component: &Component, plan: &ComponentPlan) -> u64 {
    let residents: u64 = placed(component, plan).iter().filter(|(_, resident)| *resident).map(|(g, _)| size(g)).sum();
    component.rest + residents + u64::from(plan.slots) * slot(component, plan).values().sum::<u64>()
}

/// Law 1: runs the whole schedule and looks at the bytes at every point.
pub(crate) fn fits(case: &Case, plan: &Plan) {
    let planned = |name: &str| plan.component(name).unwrap();
    for component in plan.components.iter().filter(|_| plan.rule == Rule::Threshold) {
        let kept = component.strategy == Strategy::NoOffload && component.same_as.is_none();
        assert_eq!(component.keep, kept);
    }
    let phases = phases(case);
    assert_eq!(phases.len(), plan.phases.len());
    let mut peak = 0;
    for (members, phase) in phases.iter().zip(&plan.phases) {
        let active = active(case, members);
        assert_eq!(active.iter().collect::<Vec<_>>(), phase.components.iter().collect::<Vec<_>>());

        let holders = case.components.iter().filter(|c| c.same_as.is_none());
        let on_device = holders.filter(|c| planned(&c.name).keep || active.contains(c.name.as_str()));
        let live: u64 = on_device.map(|c| held(c, planned(&c.name))).sum();
        assert_eq!(live, phase.engine_bytes);
        // Each component's activation at the point where it computes.
        for component in case.components.iter().filter(|c| active.contains(c.name.as_str())) {
            let known = component.activation.filter(|a| a.basis != Basis::Unknown);
            let computing = live + known.map_or(0, |a| a.bytes) + case.policy.reserve;
            assert!(case.machine.vram_free.is_none_or(|free| computing <= free), "{computing} for {active:?}");
        }
        let left = case.machine.vram_free.map(|free| free - live - case.policy.reserve);
        assert_eq!(left, phase.headroom);
        // What is reserved is free, where it is not known as well.
        assert!(phase.activation.is_none_or(|a| left.is_none_or(|left| a.bytes <= left)));
        peak = live.max(peak);
    }
    assert_eq!(peak, plan.peak.device);
    host_fits(case, plan);
}

/// What the host's memory allows; `headroom` is left free. `None`: nothing is known that bounds it.
fn host_limit(case: &Case, headroom: u64) -> Option<u64> {
    let available = Some(case.machine.ram_available).filter(|ram| *ram > 0);
    case.policy.ram_limit.or(available.map(|ram| ram.saturating_sub(headroom)))
}

fn host_fits(case: &Case, plan: &Plan) {
    let mut locked = 0;
    for component in case.components.iter().filter(|c| c.same_as.is_none()) {
        let planned = plan.component(&component.name).unwrap();
        for ((group, resident), tier) in placed(component, planned).into_iter().zip(tiers(planned)) {
            match tier {
                HostTier::Mapped => {}
                HostTier::PageLocked => {
                    assert!(!resident && case.machine.device == DeviceKind::Discrete);
                    assert!(plan.rule == Rule::Cost || !plan.low_cpu_mem);
                    locked += size(group);
                }
                HostTier::Staged => {
                    assert!(!resident && case.machine.device == DeviceKind::Discrete && plan.rule == Rule::Cost);
                }
                HostTier::Pageable => panic!("{tier:?} is not for this version"),
            }
        }
    }
    let host = host_bytes(case, plan);
    assert_eq!(host, plan.peak.host);
    assert!(host == locked || host == locked + RING);
    assert!(host_limit(case, 0).is_none_or(|limit| host <= limit), "{host} of {:?}", host_limit(case, 0));
    // Copies of weights leave the headroom free as well.
    if plan.rule == Rule::Cost && case.policy.low_cpu_mem && locked > 0 {
        let limit = host_limit(case, case.policy.page_lock_headroom);
        assert!(limit.is_none_or(|limit| host <= limit), "{host} of {limit:?}");
    }
    if plan.rule == Rule::Cost {
        assert!(case.machine.page_lock_limit.is_none_or(|limit| host <= limit), "{host} page-locked");
    }
}

/// Law 2: walks each component's groups in order through its slots.
pub(crate) fn complete(case: &Case, plan: &Plan) {
    let mut names: Vec<&str> = plan.components.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), case.components.len());
    names.dedup();
    for component in &case.components {
        let planned = plan.component(&component.name).unwrap();
        assert_ne!(planned.strategy, Strategy::Auto);
        if component.same_as.is_some() {
            assert_eq!(planned.same_as, component.same_as);
            assert_eq!((planned.engine_bytes, planned.stacks.len(), planned.slots), (0, 0, 0));
            assert!(!planned.keep);
            continue;
        }
        let shape: Vec<(&str, usize)> = component.stacks.iter().map(|s| (s.name.as_str(), s.groups.len())).collect();
        let flags: Vec<(&str, usize)> = planned.stacks.iter().map(|s| (s.name.as_str(), s.resident.len())).collect();
        assert_eq!(shape, flags);
        assert!(planned.stacks.iter().all(|s| s.host.len() == s.resident.len()));
        let slot = slot(component, planned);
        assert_eq!(slot.values().sum::<u64>(), planned.slot_bytes);
        assert_eq!(held(component, planned), planned.engine_bytes);
        let streamed: Vec<&Group> =
            placed(component, planned).into_iter().filter(|(_, resident)| !resident).map(|(g, _)| g).collect();
        assert!(component.granularity != Granularity::Whole || streamed.is_empty());
        assert!(planned.slots as usize <= streamed.len());
        let most = if plan.rule == Rule::Cost { 4 } else { 2 };
        assert!(planned.slots <= if case.policy.use_stream { most } else { 1 });
        for group in streamed {
            assert!(planned.slots > 0);
            assert!(group.slabs.iter().all(|slab| slab.bytes <= slot[&slab.dtype]));
        }
        for stack in planned.stacks.iter().filter(|_| plan.rule == Rule::Threshold) {
            let streamed: Vec<usize> = (0..stack.resident.len()).filter(|i| !stack.resident[*i]).collect();
            let even: Vec<usize> = (0..streamed.len()).map(|k| k * stack.resident.len() / streamed.len()).collect();
            assert_eq!(streamed, even, "evenly spaced");
        }
    }
}
