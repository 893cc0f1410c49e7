//! The steps of a plan: check, resolve, place, fit, write down.

use crate::{
    Component, ComponentPlan, HostTier, Infeasible, Machine, Note, Peak, PhasePlan, Plan, Policy, Rule, StackPlan,
    Strategy, cost,
    fit::{self, Placements},
    host,
    input::{self, Input},
    notes::{capped, size},
    part::{self, Part},
    place::Placement,
    rates::Rates,
    simulate, threshold,
};
use alloc::{format, vec, vec::Vec};
use core::cmp::Reverse;

/// Decides what of `components` stays on the device of `machine`, what streams, and where the host keeps it.
///
/// A pure function: the same input gives the same plan, whatever the order of the components.
///
/// # Errors
///
/// [`Infeasible::BadInput`] where the components contradict themselves (duplicate names, an unknown or circular
/// `same_as`, more than [`MAX_GROUPS`](crate::MAX_GROUPS) groups), [`Infeasible::NotNow`] where the weights would fit
/// the device's total memory but not what is free, else [`Infeasible::NeverFits`].
pub fn plan(machine: &Machine, components: &[Component], policy: &Policy) -> Result<Plan, Infeasible> {
    let input = Input::new(components)?;
    let parts = Part::all(&input);
    let rates = Rates::of(machine, part::stored(&parts));
    let mut plan = by_threshold(machine, &input, policy)?;
    if let Some(rates) = &rates {
        plan.predicted = Some(simulate::predict(rates, &input, &parts, &plan).predicted());
    }
    let implied = if rates.is_some() { Rule::Cost } else { Rule::Threshold };
    match (policy.rule.unwrap_or(implied), rates) {
        (Rule::Threshold, _) => {}
        (Rule::Cost, Some(rates)) if !parts.is_empty() => {
            plan = cost::plan(machine, &input, policy, rates, &parts, plan);
        }
        (Rule::Cost, _) => {
            let text = "rule cost needs a device, components and measured links: the plan is made by rule threshold.";
            plan.notes.insert(0, Note::new("cost_rule_not_available", &[], text));
        }
    }
    Ok(plan)
}

/// The plan by rule `Threshold`.
pub(crate) fn by_threshold(machine: &Machine, input: &Input<'_>, policy: &Policy) -> Result<Plan, Infeasible> {
    let mut notes = Vec::new();
    note_overrides(input, policy, &mut notes);

    let asked = |name: &str| *policy.strategies.get(name).unwrap_or(&policy.strategy);
    let is_auto = |i: usize| asked(&input.entries[i].component.name) == Strategy::Auto;
    let wants_auto =
        if input.entries.is_empty() { policy.strategy == Strategy::Auto } else { input.holders().any(is_auto) };
    let auto = wants_auto.then(|| threshold::resolve(machine, input, policy, &mut notes));
    let weights = threshold::weights(input);
    let low_cpu_mem = threshold::low_cpu_mem(machine, policy, auto, weights, &mut notes);
    threshold::warn_ram(machine, policy, weights, &mut notes);

    let mut placements = Placements::new();
    for index in input.holders() {
        let component = input.entries[index].component;
        let strategy = asked(&component.name);
        let resolved = if strategy == Strategy::Auto { auto.unwrap_or_default() } else { strategy };
        let mut placement = place(machine, component, resolved, policy, &mut notes);
        placement.firm = matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload);
        if strategy != Strategy::Auto {
            let text = format!("{}: {strategy}, as asked for.", component.name);
            notes.push(Note::new("strategy_given", &[], text).about(&component.name));
        }
        placements.insert(index, placement);
    }
    fit::fit(machine, policy.reserve, input, &mut placements, &mut notes)?;

    let mut plans: Vec<ComponentPlan> =
        (0..input.entries.len()).map(|index| component_plan(index, input, &placements)).collect();
    let host = host::assign(machine, policy, low_cpu_mem, input, &mut plans, &mut notes);
    let phases = phase_plans(machine, policy, input, &placements, &mut notes);
    let largest = input.holders().max_by_key(|i| (input::bytes(input.entries[*i].component), Reverse(*i)));
    let strategy = match largest {
        Some(largest) => plans[largest].strategy,
        None => auto.unwrap_or(policy.strategy),
    };
    Ok(Plan {
        schema: 1,
        strategy,
        rule: Rule::Threshold,
        low_cpu_mem,
        budget: machine.vram_free,
        components: plans,
        peak: Peak { device: phases.iter().map(|p| p.engine_bytes).max().unwrap_or(0), host },
        phases,
        predicted: None,
        proof: None,
        notes,
    })
}

/// The placement that a strategy stands for, before law 1.
fn place<'a>(
    machine: &Machine,
    component: &'a Component,
    strategy: Strategy,
    policy: &Policy,
    notes: &mut Vec<Note>,
) -> Placement<'a> {
    let mut placement = Placement::whole(component, strategy, if policy.use_stream { 2 } else { 1 });
    let name = component.name.as_str();
    let asked = policy.resident.get(name).copied();
    let blocks = placement.main_len();
    let streams = matches!(strategy, Strategy::BlockPin | Strategy::GroupOffload);
    if strategy == Strategy::BlockPin && blocks > 0 {
        let count = match asked {
            Some(asked) => {
                let count = blocks.min(asked as usize);
                let numbers = [("asked", asked.into()), ("blocks", blocks as u64), ("count", count as u64)];
                let text = format!("{name}: {count} of {blocks} blocks resident, as asked for.");
                notes.push(Note::new("resident_override", &numbers, text).about(name));
                count
            }
            None => count_residents(machine, &placement, policy, notes),
        };
        placement.keep(count);
    } else if let Some(asked) = asked {
        let numbers = [("asked", asked.into())];
        let text = format!("{name}: its resident count is for block_pin on blocks and does not apply here.");
        notes.push(Note::new("resident_override_ignored", &numbers, text).about(name));
    }
    if strategy == Strategy::GroupOffload {
        placement.stream_all();
    }
    if streams && blocks == 0 {
        let bytes = placement.footprint().total;
        let text =
            format!("{name}: nothing of it can be streamed, its {} are resident while it is active.", size(bytes));
        notes.push(Note::new("indivisible", &[("bytes", capped(bytes))], text).about(name));
    }
    placement
}

/// diffusers-mm's resident count: (free − rest − working set − one block) / block.
fn count_residents(machine: &Machine, placement: &Placement<'_>, policy: &Policy, notes: &mut Vec<Note>) -> usize {
    let (main, block) = placement.main_bytes();
    let blocks = placement.main_len();
    let free = machine.vram_free.unwrap_or(0);
    // The other stacks count as rest.
    let rest = input::bytes(placement.component) - main;
    let working_set = policy.working_set_on(&machine.os);
    let left = u128::from(free).saturating_sub(rest + u128::from(working_set) + block);
    let count = match left.checked_div(block) {
        Some(count) => usize::try_from(count).unwrap_or(blocks).min(blocks),
        None => blocks,
    };
    let numbers = [
        ("free", free),
        ("rest", capped(rest)),
        ("working_set", working_set),
        ("block", capped(block)),
        ("blocks", blocks as u64),
        ("count", count as u64),
    ];
    let name = placement.component.name.as_str();
    let text = format!(
        "{name}: {count} of {blocks} blocks resident: {} free less {} rest, {} working set and one block of {}.",
        size(free),
        size(rest),
        size(working_set),
        size(block),
    );
    notes.push(Note::new("resident_count", &numbers, text).about(name));
    count
}

fn component_plan(index: usize, input: &Input<'_>, placements: &Placements<'_>) -> ComponentPlan {
    let entry = &input.entries[index];
    let placement = &placements[&entry.holder];
    let name = &entry.component.name;
    if input.is_alias(index) {
        return ComponentPlan::alias(name, placement.strategy, &input.entries[entry.holder].component.name);
    }
    let stacks = entry.component.stacks.iter().zip(placement.flags());
    let stacks = stacks.map(|(stack, resident)| StackPlan {
        name: stack.name.clone(),
        host: vec![HostTier::Mapped; resident.len()],
        resident,
    });
    let footprint = placement.footprint();
    ComponentPlan {
        name: name.clone(),
        strategy: placement.strategy,
        rest: entry.component.rest,
        stacks: stacks.collect(),
        slots: footprint.slots,
        slot_bytes: if footprint.slots == 0 { 0 } else { capped(footprint.slot_bytes) },
        engine_bytes: capped(footprint.total),
        keep: placement.strategy == Strategy::NoOffload,
        same_as: None,
    }
}

fn phase_plans(
    machine: &Machine,
    policy: &Policy,
    input: &Input<'_>,
    placements: &Placements<'_>,
    notes: &mut Vec<Note>,
) -> Vec<PhasePlan> {
    let total = |index: usize| placements[&index].footprint().total;
    let pool = fit::pool(placements, total);
    let mut tightest: Option<(u128, [(&str, u64); 4])> = None;
    let phases = input.phases.iter().map(|phase| {
        let engine_bytes = capped(fit::engine_bytes(phase, placements, pool, total));
        let components = phase.entries.iter().map(|i| input.entries[*i].component.name.clone()).collect();
        let need = u128::from(engine_bytes) + u128::from(policy.reserve) + u128::from(phase.activation);
        if let Some(free) = machine.vram_free
            && tightest.is_none_or(|(most, _)| need > most)
        {
            let numbers =
                [("engine_bytes", engine_bytes), ("reserve", policy.reserve), ("activation", phase.activation)];
            tightest = Some((need, [numbers[0], numbers[1], numbers[2], ("free", free)]));
        }
        let headroom = machine.vram_free.map(|free| free.saturating_sub(engine_bytes).saturating_sub(policy.reserve));
        PhasePlan { components, engine_bytes, headroom, activation: phase.known }
    });
    let phases = phases.collect();
    if let Some((_, numbers)) = tightest {
        let text = format!(
            "the tightest phase takes {} of weights and slots, {} reserve and {} activation of {} free.",
            size(numbers[0].1),
            size(numbers[1].1),
            size(numbers[2].1),
            size(numbers[3].1),
        );
        notes.push(Note::new("tightest_phase", &numbers, text));
    }
    phases
}

/// Overrides that reach nothing, and aliases.
fn note_overrides(input: &Input<'_>, policy: &Policy, notes: &mut Vec<Note>) {
    for entry in input.entries.iter().filter(|e| e.component.same_as.is_some()) {
        let name = entry.component.name.as_str();
        let holder = input.entries[entry.holder].component;
        let text = format!("{name} has the weights of {} and counts once.", holder.name);
        let numbers = [("bytes", capped(input::bytes(holder)))];
        notes.push(Note::new("alias", &numbers, text).about(name));
    }
    let mut names: Vec<&str> = policy.resident.keys().chain(policy.strategies.keys()).map(|n| n.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let reason = match input.entries.iter().position(|e| e.component.name == name) {
            None => "there is no such component",
            Some(index) if input.is_alias(index) => "it is an alias: set it for the component that holds the weights",
            Some(_) => continue,
        };
        notes.push(
            Note::new("override_ignored", &[], format!("{name}: its override is ignored, {reason}.")).about(name),
        );
    }
}
