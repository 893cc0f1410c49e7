//! What the laws demand of a plan, computed from the component list and the plan's flags alone: no figure of the plan
//! is believed, and nothing is shared with the planner.

use crate::generate::Case;
use mm_plan::{Basis, Component, ComponentPlan, DType, DeviceKind, Granularity, Group, HostTier, Note, Plan, Strategy};
use std::collections::{BTreeMap, BTreeSet};

/// Who holds a component's weights. Generated aliases are one step long.
fn holder<'a>(case: &'a Case, component: &'a Component) -> &'a Component {
    let Some(name) = &component.same_as else { return component };
    case.components.iter().find(|c| c.name == *name).unwrap()
}

fn size(group: &Group) -> u64 {
    group.slabs.iter().map(|s| s.bytes).sum()
}

/// A component's groups with whether they are resident.
fn placed<'a>(component: &'a Component, plan: &'a ComponentPlan) -> Vec<(&'a Group, bool)> {
    let flags = plan.stacks.iter().flat_map(|s| s.resident.iter().copied());
    component.stacks.iter().flat_map(|s| &s.groups).zip(flags).collect()
}

/// One slot: the largest streamed slab of each dtype.
fn slot(component: &Component, plan: &ComponentPlan) -> BTreeMap<DType, u64> {
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
fn held(component: &Component, plan: &ComponentPlan) -> u64 {
    let residents: u64 = placed(component, plan).iter().filter(|(_, resident)| *resident).map(|(g, _)| size(g)).sum();
    component.rest + residents + u64::from(plan.slots) * slot(component, plan).values().sum::<u64>()
}

/// Law 1: runs the whole schedule and looks at the bytes at every point.
pub(crate) fn fits(case: &Case, plan: &Plan) {
    let mut order: Vec<(u64, String)> = Vec::new();
    for component in &case.components {
        let stretch = component.phase.map_or((u64::MAX, component.name.clone()), |p| (p.into(), String::new()));
        order.push(stretch);
    }
    order.sort();
    order.dedup();
    assert_eq!(order.len(), plan.phases.len());

    let planned = |name: &str| plan.component(name).unwrap();
    let kept =
        case.components.iter().filter(|c| c.same_as.is_none() && planned(&c.name).strategy == Strategy::NoOffload);
    let kept: BTreeSet<&str> = kept.map(|c| c.name.as_str()).collect();
    let mut peak = 0;
    for (stretch, phase) in order.iter().zip(&plan.phases) {
        let members = case.components.iter().filter(|c| match c.phase {
            Some(number) => u64::from(number) == stretch.0,
            None => *stretch == (u64::MAX, c.name.clone()),
        });
        let members: Vec<&Component> = members.collect();
        let mut active: BTreeSet<&str> = members.iter().map(|c| c.name.as_str()).collect();
        active.extend(members.iter().map(|c| holder(case, c).name.as_str()));
        assert_eq!(active.iter().collect::<Vec<_>>(), phase.components.iter().collect::<Vec<_>>());

        let on_device: BTreeSet<&str> = active.union(&kept).copied().collect();
        let on_device = case.components.iter().filter(|c| c.same_as.is_none() && on_device.contains(c.name.as_str()));
        let live: u64 = on_device.map(|c| held(c, planned(&c.name))).sum();
        assert_eq!(live, phase.engine_bytes);
        // Each component's activation at the point where it computes.
        for component in case.components.iter().filter(|c| active.contains(c.name.as_str())) {
            let known = component.activation.filter(|a| a.basis != Basis::Unknown);
            let computing = live + known.map_or(0, |a| a.bytes) + case.policy.reserve;
            assert!(case.machine.vram_free.is_none_or(|free| computing <= free), "{computing} in {stretch:?}");
        }
        let left = case.machine.vram_free.map(|free| free - live - case.policy.reserve);
        assert_eq!(left, phase.headroom);
        peak = live.max(peak);
    }
    assert_eq!(peak, plan.peak.device);
    host_fits(case, plan);
}

fn host_fits(case: &Case, plan: &Plan) {
    let mut locked = 0;
    for component in case.components.iter().filter(|c| c.same_as.is_none()) {
        let planned = plan.component(&component.name).unwrap();
        let tiers = planned.stacks.iter().flat_map(|s| &s.host);
        for ((group, resident), tier) in placed(component, planned).into_iter().zip(tiers) {
            match tier {
                HostTier::Mapped => {}
                HostTier::PageLocked => {
                    assert!(!resident && !plan.low_cpu_mem && case.machine.device == DeviceKind::Discrete);
                    locked += size(group);
                }
                other => panic!("{other:?} is not for this version"),
            }
        }
    }
    assert_eq!(locked, plan.peak.host);
    let available = Some(case.machine.ram_available).filter(|ram| *ram > 0);
    assert!(case.policy.ram_limit.or(available).is_none_or(|limit| locked <= limit));
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
        assert!(planned.slots <= if case.policy.use_stream { 2 } else { 1 });
        for group in streamed {
            assert!(planned.slots > 0);
            assert!(group.slabs.iter().all(|slab| slab.bytes <= slot[&slab.dtype]));
        }
        for stack in &planned.stacks {
            let streamed: Vec<usize> = (0..stack.resident.len()).filter(|i| !stack.resident[*i]).collect();
            let even: Vec<usize> = (0..streamed.len()).map(|k| k * stack.resident.len() / streamed.len()).collect();
            assert_eq!(streamed, even, "evenly spaced");
        }
    }
}

/// Law 8: every note's numbers lead to its decision, and every decision has its note.
pub(crate) fn explained(case: &Case, plan: &Plan) {
    for note in &plan.notes {
        assert!(!note.text.is_empty());
        rederive(case, plan, note);
    }
    let has =
        |code: &str, name: Option<&str>| plan.notes.iter().any(|n| n.code == code && n.component.as_deref() == name);
    let asked = |name: &str| *case.policy.strategies.get(name).unwrap_or(&case.policy.strategy);
    let auto = plan.notes.iter().any(|n| n.code.starts_with("auto_"));
    for planned in &plan.components {
        let name = Some(planned.name.as_str());
        if planned.same_as.is_some() {
            assert!(has("alias", name));
            continue;
        }
        assert!(if asked(&planned.name) == Strategy::Auto { auto } else { has("strategy_given", name) });
        let component = case.components.iter().find(|c| c.name == planned.name).unwrap();
        let all: usize = component.stacks.iter().map(|s| s.groups.len()).sum();
        let streams = component.granularity != Granularity::Whole && all > 0;
        let counted = has("resident_count", name) || has("resident_override", name);
        assert_eq!(counted, planned.strategy == Strategy::BlockPin && streams);
        let meant_to_stream = matches!(planned.strategy, Strategy::BlockPin | Strategy::GroupOffload);
        assert_eq!(has("indivisible", name), meant_to_stream && !streams);
        if !meant_to_stream && planned.streamed_count() > 0 {
            assert!(has("demoted", name));
        }
        if planned.strategy == Strategy::GroupOffload && planned.resident_count() > 0 {
            assert!(!streams);
        }
    }
    let cost = case.policy.rule.map_or(case.machine.links.is_some(), |rule| rule == mm_plan::Rule::Cost);
    assert_eq!(has("cost_rule_not_available", None), cost);
    let streams = plan.components.iter().any(|c| c.streamed_count() > 0);
    assert_eq!(plan.notes.iter().any(|n| n.code.starts_with("host_")), streams);
    assert_eq!(has("tightest_phase", None), !plan.phases.is_empty() && plan.budget.is_some());
}

fn rederive(case: &Case, plan: &Plan, note: &Note) {
    let n = |name: &str| *note.numbers.get(name).unwrap_or_else(|| panic!("{} has no `{name}`", note.code));
    let about = || plan.component(note.component.as_deref().unwrap()).unwrap();
    match note.code.as_str() {
        "auto_no_offload" | "auto_model_offload" => {
            assert!(n("bytes") * n("factor_permille") <= n("free") * 1000 && n("need") <= n("free"));
        }
        "auto_no_offload_rejected" | "auto_model_offload_rejected" => {
            assert!(n("bytes") * n("factor_permille") > n("free") * 1000 && n("need") > n("free"));
        }
        "auto_block_pin" => assert!(n("blocks") >= n("min_blocks")),
        "auto_block_pin_rejected" => assert!(n("blocks") < n("min_blocks")),
        "auto_tier" => assert!(case.components.is_empty() && n("free") == case.machine.vram_free.unwrap()),
        "auto_no_device" => assert_eq!(case.machine.vram_free, None),
        "auto_no_free_vram" => assert_eq!(case.machine.vram_free, Some(n("free"))),
        "low_cpu_mem_on" => assert!(plan.low_cpu_mem && n("weights") + n("headroom") > n("ram_available")),
        "low_cpu_mem_off" => assert!(!plan.low_cpu_mem && n("weights") + n("headroom") <= n("ram_available")),
        "ram_warning" => assert!(n("weights") * 1000 > n("ram_available") * n("factor_permille")),
        "strategy_given" => {
            assert_eq!(case.policy.strategies.get(&about().name).unwrap_or(&case.policy.strategy), &about().strategy)
        }
        "resident_count" => {
            let left = n("free").saturating_sub(n("rest") + n("working_set") + n("block"));
            let count = left.checked_div(n("block")).unwrap_or(u64::MAX).min(n("blocks"));
            assert_eq!(n("count"), count);
        }
        "resident_override" => assert_eq!(n("count"), n("asked").min(n("blocks"))),
        "resident_override_ignored" => assert_eq!(n("asked"), u64::from(case.policy.resident[&about().name])),
        "override_ignored" => {
            let alias = plan.component(note.component.as_deref().unwrap()).map(|c| c.same_as.is_some());
            assert_ne!(alias, Some(false));
        }
        "indivisible" => assert_eq!(n("bytes"), about().engine_bytes),
        "alias" => assert!(about().same_as.is_some()),
        "no_offload_released" => assert!(n("need") > n("free")),
        "phase_over_budget" => {
            assert_eq!(n("need"), n("engine_bytes") + n("reserve") + n("activation"));
            assert!(n("need") > n("free"));
        }
        "demoted" => {
            assert!(n("residents_after") < n("residents_before") || n("slots_after") < n("slots_before"));
            assert!(n("engine_bytes_after") < n("engine_bytes_before"));
            // Where several phases demote it, the last note is the final word.
            assert!(about().engine_bytes <= n("engine_bytes_after"));
        }
        "host_page_locked" => assert_eq!((n("wanted"), n("page_locked")), (plan.peak.host, plan.peak.host)),
        "host_limit" => {
            assert!(n("page_locked") == plan.peak.host && n("page_locked") <= n("limit") && n("limit") < n("wanted"))
        }
        "host_low_cpu_mem" => assert!(plan.low_cpu_mem && plan.peak.host == 0),
        "host_mapped" => assert_eq!(plan.peak.host, 0),
        "tightest_phase" => {
            assert!(n("engine_bytes") + n("reserve") + n("activation") <= n("free"));
            assert!(plan.phases.iter().any(|p| p.engine_bytes == n("engine_bytes")));
        }
        "cost_rule_not_available" => {}
        other => panic!("a note of unknown code {other}"),
    }
}
