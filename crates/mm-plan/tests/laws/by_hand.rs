//! Plans made by hand: any placement, not only those the planner would choose.

use crate::{
    generate::Case,
    replay::{active, held, phases, slot},
    schedule::host_bytes,
};
use mm_plan::{Component, HostTier, Machine, Plan, Policy, Rule, plan};

/// A component's placement.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// Per group, all stacks.
    pub(crate) resident: Vec<bool>,
    /// Per group, all stacks.
    pub(crate) tiers: Vec<HostTier>,
    pub(crate) slots: u32,
    pub(crate) keep: bool,
}

/// A plan with these placements, its bytes counted anew. Components without a choice are resident while active.
pub(crate) fn placed_by_hand(case: &Case, choices: &[(&str, Choice)]) -> Plan {
    let machine = Machine { vram_free: Some(u64::MAX), ..case.machine.clone() };
    let policy = Policy { rule: Some(Rule::Threshold), ..Policy::default() };
    let mut plan = plan(&machine, &case.components, &policy).unwrap();
    plan.components.iter_mut().for_each(|planned| planned.keep = false);
    for (name, choice) in choices {
        put(&mut plan, name, choice);
    }
    recount(case, &mut plan);
    plan
}

/// Sets a component's flags; the plan's bytes stay what they were.
pub(crate) fn put(plan: &mut Plan, name: &str, choice: &Choice) {
    let planned = plan.components.iter_mut().find(|c| c.name == name).unwrap();
    let (mut resident, mut tiers) = (choice.resident.iter().copied(), choice.tiers.iter().copied());
    for stack in &mut planned.stacks {
        stack.resident.iter_mut().for_each(|flag| *flag = resident.next().unwrap());
        stack.host.iter_mut().for_each(|tier| *tier = tiers.next().unwrap());
    }
    planned.slots = if choice.resident.contains(&false) { choice.slots } else { 0 };
    planned.keep = choice.keep;
}

/// Writes the bytes of its flags into a plan.
pub(crate) fn recount(case: &Case, plan: &mut Plan) {
    let holders = || case.components.iter().filter(|c| c.same_as.is_none());
    for component in holders() {
        let planned = plan.components.iter_mut().find(|c| c.name == component.name).unwrap();
        planned.slot_bytes = slot(component, planned).values().sum();
        planned.engine_bytes = held(component, planned);
    }
    for (index, members) in phases(case).iter().enumerate() {
        let active = active(case, members);
        let here = |c: &&Component| active.contains(c.name.as_str()) || plan.component(&c.name).unwrap().keep;
        let bytes = holders().filter(here).map(|c| plan.component(&c.name).unwrap().engine_bytes).sum();
        plan.phases[index].engine_bytes = bytes;
    }
    plan.peak.device = plan.phases.iter().map(|p| p.engine_bytes).max().unwrap_or(0);
    plan.peak.host = host_bytes(case, plan);
}
