//! Rule `Cost`: the placement of all components together that is predicted to take least.

use crate::{
    ComponentPlan, HostTier, Machine, Peak, PhasePlan, Plan, Policy, Proof, Rule, StackPlan, Strategy,
    budget::{self, Budget, Host},
    explain,
    frontier::{Choice, Frontier},
    input::Input,
    notes::capped,
    part::Part,
    planner,
    rates::{RING, Rates},
    search::{self, Menu, Solution},
    simulate,
};
use alloc::vec::Vec;
use core::cmp::Reverse;

/// About so many groups are walked through when counts of a stack are tried.
const COUNTS: usize = 1 << 20;
/// Sets that are tried in all, where every set of a component is.
const SETS: usize = 1 << 13;

/// Work of a search after which the best so far is taken: with few components, which it is meant to get to the end of, and
/// with more. What the notes ask about gets a thirty-second of it.
const STEPS: [usize; 2] = [1 << 23, 3 << 20];

/// One more GiB: what the notes ask about.
pub(crate) const MORE: u64 = 1 << 30;

/// The question, and everything it takes to answer it again with something changed.
pub(crate) struct Problem<'p, 'a> {
    pub(crate) machine: &'p Machine,
    pub(crate) policy: &'p Policy,
    pub(crate) input: &'p Input<'a>,
    pub(crate) rates: Rates,
    pub(crate) frontiers: Vec<Frontier<'p, 'a>>,
    pub(crate) budget: Budget,
    pub(crate) host: Host,
}

impl<'p, 'a> Problem<'p, 'a> {
    pub(crate) fn new(
        machine: &'p Machine,
        input: &'p Input<'a>,
        policy: &'p Policy,
        rates: Rates,
        host: Host,
        parts: &'p [Part<'a>],
        baseline: &Plan,
    ) -> Self {
        let groups: usize = parts.iter().map(|part| part.groups.len()).sum();
        let counts = (COUNTS / groups.max(1)).clamp(4, 1024);
        let sets = parts.iter().map(|part| 1usize << part.groups.len().min(16)).fold(0, usize::saturating_add);
        // One more GiB of RAM is asked about too: what it would allow must be among the placements.
        let generous = Host { locked: host.locked.saturating_add(MORE), ..host };
        let frontier = |part: &'p Part<'a>| {
            let terms = budget::terms(part, policy, generous);
            Frontier::new(part, rates, terms, counts, sets <= SETS)
        };
        let frontiers: Vec<_> = parts.iter().map(frontier).collect();
        let now = Budget::of(baseline, machine, policy, input, &frontiers);
        Self { machine, policy, input, rates, frontiers, budget: now, host }
    }

    /// The budget with so many bytes more.
    pub(crate) fn with_more(&self, bytes: u64) -> Option<Budget> {
        let free = self.machine.vram_free.map(|free| free.saturating_add(bytes));
        let machine = Machine { vram_free: free, ..self.machine.clone() };
        let baseline = planner::by_threshold(&machine, self.input, self.policy).ok()?;
        Some(Budget::of(&baseline, &machine, self.policy, self.input, &self.frontiers))
    }

    /// The best combination within these limits; component `only.0` may be nothing but `only.1`. `known` is a solution that
    /// is known to fit them.
    pub(crate) fn solve(
        &self,
        budget: &Budget,
        host: u64,
        only: Option<(usize, Choice)>,
        known: Option<&Solution>,
    ) -> Option<Solution> {
        let asked = only.is_some() || budget.rooms != self.budget.rooms || host != self.host.locked;
        let steps = STEPS[usize::from(self.frontiers.len() > budget::FEW)] / if asked { 32 } else { 1 };
        let solve = |hosts: Vec<u64>| {
            let menus = self.frontiers.iter().zip(hosts).enumerate().map(|(place, (frontier, host))| Menu {
                frontier,
                only: only.filter(|(only, _)| *only == place).map(|(_, choice)| choice),
                host,
            });
            let menus: Vec<Menu<'_>> = menus.collect();
            search::solve(&menus, &budget.rooms, steps, known)
        };
        let parts: Vec<&Part<'_>> = self.frontiers.iter().map(|frontier| frontier.part).collect();
        let solutions = budget::shares(&parts, host).into_iter().filter_map(solve);
        solutions.reduce(|best, next| {
            let complete = best.complete && next.complete;
            Solution { complete, ..if next.time < best.time { next } else { best } }
        })
    }

    /// No placement that fits `budget` is faster, nanoseconds.
    ///
    /// Each component for itself takes at least its compute, and at least the copies of what does not fit its phases. And
    /// what does not stay between phases crosses the link once a request: of all components together that is what exceeds
    /// the tightest phase, less what crosses it in the time counted already.
    pub(crate) fn floor(&self, budget: &Budget) -> u64 {
        let (mut alone, mut exceeding) = (0u64, 0u128);
        for frontier in self.frontiers.iter().filter(|f| f.part.passes() > 0) {
            let part = frontier.part;
            let room = part.visits.iter().map(|(phase, _)| budget.rooms[*phase]).min().unwrap_or(0);
            let room = u128::from(room).saturating_sub(part.component.rest.into());
            let groups = part.bytes() - u128::from(part.component.rest);
            let mut pass = part.compute();
            if groups > room {
                // What streams has a slot, which is as large as any of it.
                let slot = part.groups.iter().map(|(_, facts)| facts.bytes).filter(|b| *b > 0).min().unwrap_or(0);
                let streamed = groups - room.saturating_sub(slot);
                pass = pass.max(self.rates.least(streamed, streamed.saturating_sub(self.host.locked.into())));
            }
            let request = pass.saturating_mul(part.passes());
            exceeding += part.bytes().saturating_sub(self.rates.bytes_in(request));
            alone = alone.saturating_add(request);
        }
        let tightest = budget.rooms.iter().copied().min().unwrap_or(0);
        alone.saturating_add(self.rates.least(exceeding.saturating_sub(tightest.into()), 0))
    }

    /// Every placement of every component was tried.
    fn exhaustive(&self) -> bool {
        let tiers = self.rates.has_tiers() && self.host.locked > 0;
        self.frontiers.iter().all(|f| f.family.exhaustive && (!tiers || f.part.groups.is_empty()))
    }
}

/// A GiB more of what is known.
pub(crate) fn more(ram: u64) -> u64 {
    if ram == 0 { 0 } else { ram.saturating_add(MORE) }
}

/// The ways to use the host with the best placement of each, the best first.
pub(crate) fn ways<'p, 'a>(
    machine: &'p Machine,
    input: &'p Input<'a>,
    policy: &'p Policy,
    rates: Rates,
    parts: &'p [Part<'a>],
    baseline: &Plan,
) -> Vec<(Problem<'p, 'a>, Solution)> {
    let weights = parts.iter().map(Part::bytes).sum();
    let solve = |host| {
        let problem = Problem::new(machine, input, policy, rates, host, parts, baseline);
        let solution = problem.solve(&problem.budget, host.locked, None, None)?;
        Some((problem, solution))
    };
    let mut ways: Vec<_> = budget::hosts(machine, policy, weights).into_iter().filter_map(solve).collect();
    ways.sort_by_key(|(_, solution)| solution.time);
    ways
}

/// The plan by rule `Cost`; `baseline` is the one by `Threshold`.
pub(crate) fn plan(
    machine: &Machine,
    input: &Input<'_>,
    policy: &Policy,
    rates: Rates,
    parts: &[Part<'_>],
    baseline: Plan,
) -> Plan {
    let threshold = baseline.predicted.as_ref().map_or(u64::MAX, |p| p.request_ns);
    let ways = ways(machine, input, policy, rates, parts, &baseline);
    let Some(((problem, solution), others)) = ways.split_first() else {
        return explain::threshold_stands(baseline, None);
    };
    if threshold < solution.time {
        return explain::threshold_stands(baseline, Some(solution.time));
    }
    let components = components(problem, solution);
    let mut plan = Plan {
        schema: 1,
        strategy: Strategy::Auto,
        rule: Rule::Cost,
        low_cpu_mem: !all_page_locked(&components),
        budget: machine.vram_free,
        phases: phases(problem, &components),
        peak: Peak::default(),
        components,
        predicted: None,
        proof: None,
        notes: baseline.notes.into_iter().filter(explain::is_general).collect(),
    };
    let largest = parts.iter().max_by_key(|part| (part.bytes(), Reverse(part.index)));
    plan.strategy = largest.map_or(baseline.strategy, |part| plan.components[part.index].strategy);
    let staged = plan.components.iter().flat_map(|c| &c.stacks).flat_map(|s| &s.host).any(|t| *t == HostTier::Staged);
    let locked = solution.picks.iter().map(|choice| choice.host).sum::<u64>();
    plan.peak = Peak {
        device: plan.phases.iter().map(|phase| phase.engine_bytes).max().unwrap_or(0),
        host: locked + if staged { RING } else { 0 },
    };
    let schedule = simulate::predict(&rates, input, parts, &plan);
    plan.predicted = Some(schedule.predicted());
    let floor = problem.floor(&problem.budget);
    plan.proof = Some(if schedule.request_ns <= floor || (solution.complete && problem.exhaustive()) {
        Proof::Optimal
    } else {
        let gap = u128::from(schedule.request_ns - floor) * 1000;
        Proof::Within { gap_permille: capped(gap.div_ceil(u128::from(schedule.request_ns.max(1)))) }
    });
    explain::explain(problem, solution, others, &schedule, [threshold, floor], &mut plan.notes);
    plan
}

fn components(problem: &Problem<'_, '_>, solution: &Solution) -> Vec<ComponentPlan> {
    let entry = |index: usize| {
        let entry = &problem.input.entries[index];
        let place = problem.frontiers.binary_search_by_key(&entry.holder, |f| f.part.index);
        let (Ok(place), false) = (place, problem.input.is_alias(index)) else {
            let holder = place.map(|place| strategy(&problem.frontiers[place], &solution.picks[place]));
            let (own, holds) = (&entry.component.name, &problem.input.entries[entry.holder].component.name);
            return ComponentPlan::alias(own, holder.unwrap_or_default(), holds);
        };
        component(&problem.frontiers[place], &solution.picks[place])
    };
    (0..problem.input.entries.len()).map(entry).collect()
}

fn component(frontier: &Frontier<'_, '_>, choice: &Choice) -> ComponentPlan {
    let component = frontier.part.component;
    let tiers = frontier.placed(choice);
    let mut rest = tiers.as_slice();
    let stacks = component.stacks.iter().map(|stack| {
        let (own, others) = rest.split_at(stack.groups.len());
        rest = others;
        StackPlan {
            name: stack.name.clone(),
            resident: own.iter().map(Option::is_none).collect(),
            host: own.iter().map(|tier| tier.unwrap_or(HostTier::Mapped)).collect(),
        }
    });
    ComponentPlan {
        name: component.name.clone(),
        strategy: strategy(frontier, choice),
        rest: component.rest,
        stacks: stacks.collect(),
        slots: choice.slots,
        slot_bytes: if choice.slots == 0 { 0 } else { frontier.slot_bytes(&tiers) },
        engine_bytes: choice.device(),
        keep: choice.keep,
        same_as: None,
    }
}

/// A strategy's name for a placement: the one that was asked for, else the one that describes it.
pub(crate) fn strategy(frontier: &Frontier<'_, '_>, choice: &Choice) -> Strategy {
    if frontier.asked() != Strategy::Auto {
        return frontier.asked();
    }
    let streamed = frontier.placed(choice).iter().flatten().count();
    match (streamed, choice.keep) {
        (0, true) => Strategy::NoOffload,
        (0, false) => Strategy::ModelOffload,
        (streamed, _) if streamed < frontier.part.groups.len() => Strategy::BlockPin,
        _ => Strategy::GroupOffload,
    }
}

fn all_page_locked(components: &[ComponentPlan]) -> bool {
    let streamed = || {
        let stacks = components.iter().flat_map(|c| &c.stacks);
        stacks.flat_map(|s| s.resident.iter().zip(&s.host)).filter(|(resident, _)| !**resident)
    };
    streamed().next().is_some() && streamed().all(|(_, tier)| *tier == HostTier::PageLocked)
}

fn phases(problem: &Problem<'_, '_>, components: &[ComponentPlan]) -> Vec<PhasePlan> {
    let kept: u64 = components.iter().filter(|c| c.keep).map(|c| c.engine_bytes).sum();
    let phases = problem.input.phases.iter().zip(&problem.budget.phases);
    phases
        .map(|(phase, budget)| {
            let active = phase.holders.iter().map(|i| &components[*i]).filter(|c| !c.keep);
            let engine_bytes = kept + active.map(|c| c.engine_bytes).sum::<u64>();
            let free = problem.machine.vram_free.unwrap_or(0);
            PhasePlan {
                components: phase.entries.iter().map(|i| problem.input.entries[*i].component.name.clone()).collect(),
                engine_bytes,
                headroom: Some(free.saturating_sub(engine_bytes).saturating_sub(problem.policy.reserve)),
                activation: budget.activation,
            }
        })
        .collect()
}
