//! Notes of rule `Cost`: what was decided, against what, and what would change it.

use crate::{
    DeviceKind, HostTier, Machine, Note, Plan, Rule, Strategy,
    budget::{self, Phase},
    cost::{MORE, Problem, more, strategy, ways},
    frontier::{Choice, Frontier},
    notes::{capped, size, time},
    part, planner,
    rates::Rates,
    search::Solution,
    simulate::Schedule,
};
use alloc::{format, string::String, vec::Vec};
use core::cmp::Reverse;

/// Components whose other strategies are weighed, the largest ones.
const WEIGHED: usize = 8;

/// Notes that hold under both rules.
pub(crate) fn is_general(note: &Note) -> bool {
    matches!(note.code.as_str(), "alias" | "override_ignored" | "strategy_given" | "ram_warning")
}

/// Nothing that was tried beats the plan by rule `Threshold`.
pub(crate) fn threshold_stands(mut plan: Plan, cost: Option<u64>) -> Plan {
    plan.rule = Rule::Cost;
    let threshold = plan.predicted.as_ref().map_or(0, |p| p.request_ns);
    let mut numbers = Vec::from([("threshold_ns", threshold)]);
    numbers.extend(cost.map(|cost| ("cost_ns", cost)));
    let text = match cost {
        Some(cost) => format!(
            "the plan is rule threshold's: it takes {} a request, the best other placement that was tried {}.",
            time(threshold),
            time(cost)
        ),
        None => "the plan is rule threshold's: no other placement that was tried fits what was asked for.".into(),
    };
    plan.notes.insert(0, Note::new("cost_threshold_stands", &numbers, text));
    plan
}

/// `others`: what other ways to use the host would give.
pub(crate) fn explain(
    problem: &Problem<'_, '_>,
    solution: &Solution,
    others: &[(Problem<'_, '_>, Solution)],
    schedule: &Schedule,
    [threshold, floor]: [u64; 2],
    notes: &mut Vec<Note>,
) {
    let general = core::mem::take(notes);
    notes.push(request(schedule, threshold, floor));
    notes.extend(bottleneck(schedule));
    if !solution.complete && schedule.request_ns > floor {
        let text =
            "the search ended before everything was compared: other placements may be faster, within the proof's gap.";
        notes.push(Note::new("search_incomplete", &[], text));
    }
    notes.extend(unknown_compute(problem));
    notes.extend(uncounted_compute(problem));
    for (place, choice) in solution.picks.iter().enumerate() {
        notes.push(placement(problem, place, choice, schedule));
        notes.extend(resident_override(&problem.frontiers[place]));
    }
    let mut weighed: Vec<usize> = (0..solution.picks.len()).collect();
    weighed.sort_by_key(|place| (Reverse(problem.frontiers[*place].part.bytes()), *place));
    weighed.truncate(WEIGHED);
    weighed.sort_unstable();
    for place in weighed {
        richer(problem, solution, place, notes);
    }
    notes.extend(tiers(problem, solution));
    for (number, phase) in problem.budget.phases.iter().enumerate() {
        notes.extend(reserve(problem, number, phase));
    }
    notes.extend(more_vram(problem, solution, others));
    notes.extend(more_ram(problem, solution));
    notes.extend(general);
}

fn request(schedule: &Schedule, threshold: u64, floor: u64) -> Note {
    let saved = threshold - schedule.request_ns.min(threshold);
    let numbers = [
        ("request_ns", schedule.request_ns),
        ("plan_bound_ns", schedule.lower_bound_ns),
        ("lower_bound_ns", floor),
        ("threshold_ns", threshold),
        ("saved_ns", saved),
    ];
    let against = if saved == 0 {
        "as much as rule threshold's plan".into()
    } else {
        format!("rule threshold's plan {}, {} more", time(threshold), time(saved))
    };
    let text = format!(
        "a request is predicted to take {}, {against}; no placement that fits could take less than {}.",
        time(schedule.request_ns),
        time(floor),
    );
    Note::new("cost_request", &numbers, text)
}

/// The lane that is busy longest.
fn bottleneck(schedule: &Schedule) -> Option<Note> {
    let busy = schedule.busy;
    let numbers = [
        ("compute_ns", busy.compute_ns),
        ("copy_ns", busy.copy_ns),
        ("staging_ns", busy.staging_ns),
        ("load_ns", busy.load_ns),
        ("request_ns", schedule.request_ns),
    ];
    let lanes = [
        ("bottleneck_compute", "computing", busy.compute_ns),
        ("bottleneck_link", "copying to the device", busy.copy_ns),
        ("bottleneck_staging", "filling page-locked memory", busy.staging_ns),
        ("bottleneck_loading", "loading what does not stay between phases", busy.load_ns),
    ];
    // Of equals the first.
    let (code, what, most) = lanes.into_iter().reduce(|most, next| if next.2 > most.2 { next } else { most })?;
    if most == 0 {
        return None;
    }
    let text = format!("the bottleneck is {what}: {} of the {} of a request.", time(most), time(schedule.request_ns));
    Some(Note::new(code, &numbers, text))
}

fn unknown_compute(problem: &Problem<'_, '_>) -> Option<Note> {
    let parts = || problem.frontiers.iter().map(|f| f.part).filter(|part| part.passes() > 0);
    let unknown: usize = parts().map(|part| part.unknown()).sum();
    if unknown == 0 {
        return None;
    }
    let groups: usize = parts().map(|part| part.groups.len()).sum();
    let text = format!(
        "compute times of {unknown} of {groups} groups are not known and count as zero (through one slot, where no copy can \
         hide, as long as the copy): bandwidth alone decides about them."
    );
    Some(Note::new("compute_unknown", &[("unknown", unknown as u64), ("groups", groups as u64)], text))
}

/// Components whose compute is not counted, because they have no groups to count it by.
fn uncounted_compute(problem: &Problem<'_, '_>) -> Option<Note> {
    let parts = problem.frontiers.iter().map(|f| f.part);
    let names: Vec<&str> = parts
        .filter(|part| part.passes() > 0 && part.groups.is_empty() && part.component.rest > 0)
        .map(|part| part.component.name.as_str())
        .collect();
    if names.is_empty() {
        return None;
    }
    let text =
        format!("{}: computing outside groups is not counted, what is predicted for it is loading.", names.join(", "));
    Some(Note::new("compute_not_counted", &[("components", names.len() as u64)], text))
}

/// A count of residents that was asked for.
fn resident_override(frontier: &Frontier<'_, '_>) -> Option<Note> {
    let (name, blocks) = (frontier.part.component.name.as_str(), frontier.family.main_len());
    let asked = frontier.resident()?;
    if matches!(frontier.asked(), Strategy::Auto | Strategy::BlockPin) && blocks > 0 {
        let count = blocks.min(asked as usize);
        let numbers = [("asked", asked.into()), ("blocks", blocks as u64), ("count", count as u64)];
        let text = format!("{name}: {count} of {blocks} blocks resident, as asked for.");
        return Some(Note::new("resident_override", &numbers, text).about(name));
    }
    let text = format!("{name}: its resident count is for block_pin on blocks and does not apply here.");
    Some(Note::new("resident_override_ignored", &[("asked", asked.into())], text).about(name))
}

fn placement(problem: &Problem<'_, '_>, place: usize, choice: &Choice, schedule: &Schedule) -> Note {
    let (frontier, predicted) = (&problem.frontiers[place], &schedule.components[place]);
    let name = frontier.part.component.name.as_str();
    let (groups, streamed) = (frontier.part.groups.len(), frontier.placed(choice).iter().flatten().count());
    let numbers = [
        ("groups", groups as u64),
        ("resident", (groups - streamed) as u64),
        ("slots", choice.slots.into()),
        ("keep", choice.keep.into()),
        ("engine_bytes", choice.device()),
        ("pass_ns", predicted.pass_ns),
        ("lower_bound_ns", predicted.lower_bound_ns),
        ("passes", predicted.passes),
    ];
    let holds = match streamed {
        0 => String::from("all of it"),
        _ if streamed == groups => format!("{} and all {groups} groups streamed", slots(choice.slots)),
        _ => format!("{} of {groups} groups and {}", groups - streamed, slots(choice.slots)),
    };
    let stays = if choice.keep { "stays on the device between phases" } else { "is loaded for each phase" };
    let pass = match groups {
        0 => String::new(),
        _ => format!(
            "; a pass takes {}, no order of copies less than {}",
            time(predicted.pass_ns),
            time(predicted.lower_bound_ns)
        ),
    };
    let (strategy, bytes) = (strategy(frontier, choice), size(choice.device()));
    let text = format!("{name}, {strategy}: holds {holds}, {bytes}, and {stays}{pass}.");
    Note::new("cost_placement", &numbers, text).about(name)
}

fn slots(count: u32) -> String {
    if count == 1 { "one slot".into() } else { format!("{count} slots") }
}

/// Why a component's strategy is not a richer one.
fn richer(problem: &Problem<'_, '_>, solution: &Solution, place: usize, notes: &mut Vec<Note>) {
    let (frontier, pick) = (&problem.frontiers[place], &solution.picks[place]);
    if frontier.asked() != Strategy::Auto || frontier.resident().is_some() || frontier.part.passes() == 0 {
        return;
    }
    let rank = |s: Strategy| match s {
        Strategy::NoOffload => 3,
        Strategy::ModelOffload => 2,
        Strategy::BlockPin => 1,
        _ => 0,
    };
    let is = strategy(frontier, pick);
    // Where it is active in all phases, to be loaded for each of them is worth nothing.
    let alone = frontier.part.visits.len() == problem.input.phases.len();
    for other in [Strategy::NoOffload, Strategy::ModelOffload] {
        if rank(other) > rank(is) && !(alone && other == Strategy::ModelOffload) {
            notes.push(rejected(problem, solution, place, other));
        }
    }
}

fn rejected(problem: &Problem<'_, '_>, solution: &Solution, place: usize, other: Strategy) -> Note {
    let frontier = &problem.frontiers[place];
    let name = frontier.part.component.name.as_str();
    let code = format!("{other}_rejected");
    let bytes = capped(frontier.part.bytes());
    let choice = frontier.whole(other == Strategy::NoOffload);
    let found =
        choice.and_then(|choice| problem.solve(&problem.budget, problem.host.locked, Some((place, choice)), None));
    let where_ = if other == Strategy::NoOffload { "in every phase" } else { "while it is active" };
    let Some(with) = found else {
        let rooms = problem.frontiers[place].part.visits.iter().map(|(phase, _)| *phase);
        let all = 0..problem.budget.rooms.len();
        let phases: Vec<usize> = if other == Strategy::NoOffload { all.collect() } else { rooms.collect() };
        let room = phases.into_iter().map(|phase| problem.budget.rooms[phase]).min().unwrap_or(0);
        let text = format!(
            "{name}, not {other}: its {} do not fit {where_} beside the least of what else is there; the tightest has {}.",
            size(bytes),
            size(room)
        );
        return Note::new(&code, &[("bytes", bytes), ("room", room)], text).about(name);
    };
    let slower = with.time.saturating_sub(solution.time);
    let numbers = [("bytes", bytes), ("request_ns", solution.time), ("with_ns", with.time), ("bought_ns", slower)];
    let others = losers(problem, solution, &with, place);
    let text = if slower == 0 {
        format!("{name}, not {other}: the request would be no faster and hold more.")
    } else if others.is_empty() {
        format!(
            "{name}, not {other}: with all of it on the device {where_} a request would take {} longer.",
            time(slower)
        )
    } else {
        format!(
            "{name} gives way: as {other} it would take room from {}, and a request {} longer.",
            others.join(", "),
            time(slower)
        )
    };
    Note::new(&code, &numbers, text).about(name)
}

/// Components that are slower in the other solution.
fn losers<'p>(problem: &'p Problem<'_, '_>, solution: &Solution, other: &Solution, place: usize) -> Vec<&'p str> {
    let picks = solution.picks.iter().zip(&other.picks).enumerate();
    let slower = picks.filter(|(i, (is, would))| *i != place && would.time() > is.time());
    slower.map(|(i, _)| problem.frontiers[i].part.component.name.as_str()).collect()
}

/// What of the host's memory is page-locked, and why not more.
fn tiers(problem: &Problem<'_, '_>, solution: &Solution) -> Option<Note> {
    if problem.machine.device == DeviceKind::Host {
        let streams = solution.picks.iter().any(|choice| choice.slots > 0);
        let text = "streamed groups stay mapped: the device is host memory, page-locking buys nothing.";
        return streams.then(|| Note::new("host_mapped", &[], text));
    }
    let tiers = || solution.picks.iter().zip(&problem.frontiers).flat_map(|(c, f)| f.placed(c)).flatten();
    let count = |tier: HostTier| tiers().filter(|t| *t == tier).count() as u64;
    let streamed = tiers().count() as u64;
    if streamed == 0 {
        return None;
    }
    let locked = solution.picks.iter().map(|choice| choice.host).sum::<u64>();
    let numbers = [
        ("page_locked_bytes", locked),
        ("limit", problem.host.locked),
        ("page_locked", count(HostTier::PageLocked)),
        ("staged", count(HostTier::Staged)),
        ("mapped", count(HostTier::Mapped)),
    ];
    let text = format!(
        "of {streamed} streamed groups {} have page-locked copies ({} of {} allowed), {} go through staging buffers, {} \
         come straight from the mapping.",
        numbers[2].1,
        size(locked),
        size(problem.host.locked),
        numbers[3].1,
        numbers[4].1,
    );
    Some(Note::new("host_tiers", &numbers, text))
}

/// What is kept free for activations that nobody knows.
fn reserve(problem: &Problem<'_, '_>, number: usize, phase: &Phase) -> Option<Note> {
    let (wanted, kept) = phase.reserve?;
    let names: Vec<&str> = problem.input.phases[number]
        .entries
        .iter()
        .map(|i| problem.input.entries[*i].component.name.as_str())
        .collect();
    let working_set = problem.policy.working_set_on(&problem.machine.os);
    let numbers = [
        ("phase", number as u64),
        ("working_set", working_set),
        ("active", capped(phase.active)),
        ("wanted", wanted),
        ("kept", kept),
    ];
    let names = names.join(", ");
    let (code, text) = if kept == wanted {
        let why = format!("the smaller of the working set of {} and half of {}", size(working_set), size(phase.active));
        (
            "activation_reserved",
            format!("{names}: activations are not known, {} are kept free for them: {why}.", size(kept)),
        )
    } else {
        let why = "with everything streamed, or as rule threshold places it, no more is left";
        let text = format!(
            "{names}: activations are not known, {} of {} are kept free for them: {why}.",
            size(kept),
            size(wanted)
        );
        ("activation_not_reserved", text)
    };
    Some(Note::new(code, &numbers, text))
}

fn more_vram(problem: &Problem<'_, '_>, solution: &Solution, others: &[(Problem<'_, '_>, Solution)]) -> Option<Note> {
    let with = |(problem, solution): (&Problem<'_, '_>, &Solution)| {
        problem.solve(&problem.with_more(MORE)?, problem.host.locked, None, Some(solution))
    };
    // Another way to use the host may be the better one then.
    let ways = [(problem, solution)].into_iter().chain(others.iter().map(|(problem, solution)| (problem, solution)));
    let with: Vec<Solution> = ways.filter_map(with).collect();
    let time = with.iter().map(|with| with.time).min()?;
    Some(gain("more_vram", "device memory", solution.time, time, with.iter().all(|with| with.complete)))
}

fn more_ram(problem: &Problem<'_, '_>, solution: &Solution) -> Option<Note> {
    if problem.machine.ram_available == 0 {
        return None;
    }
    let machine = Machine { ram_available: more(problem.machine.ram_available), ..problem.machine.clone() };
    let parts = || problem.frontiers.iter().map(|f| f.part);
    let rates = Rates::of(&machine, part::stored(parts()))?;
    let weights = parts().map(|part| part.bytes()).sum::<u128>();
    let hosts = budget::hosts(&machine, problem.policy, weights);
    let (time, complete) = match hosts.as_slice() {
        [host] if host.ring == problem.host.ring && rates == problem.rates => {
            if weights <= problem.host.locked.into() || host.locked == problem.host.locked {
                // Everything can be page-locked already, or no more than now.
                (solution.time, true)
            } else {
                let with = problem.solve(&problem.budget, host.locked, None, Some(solution))?;
                (with.time, with.complete)
            }
        }
        _ => {
            // The weights now fit the page cache, or the staging ring the host: all times change.
            let parts: Vec<_> = parts().cloned().collect();
            let baseline = planner::by_threshold(&machine, problem.input, problem.policy).ok()?;
            let ways = ways(&machine, problem.input, problem.policy, rates, &parts, &baseline);
            (ways.first()?.1.time, ways.iter().all(|(_, with)| with.complete))
        }
    };
    Some(gain("more_ram", "RAM", solution.time, time, complete))
}

/// `complete`: nothing faster was left out.
fn gain(code: &str, what: &str, now: u64, then: u64, complete: bool) -> Note {
    let gain = now.saturating_sub(then);
    let numbers =
        [("bytes", MORE), ("request_ns", now), ("with_ns", then), ("gain_ns", gain), ("complete", complete.into())];
    let text = match (gain, complete) {
        (0, true) => format!("1 GiB more of {what} would gain nothing."),
        (0, false) => format!("1 GiB more of {what} would gain nothing, as far as was searched."),
        (_, true) => format!("1 GiB more of {what} would make a request {} faster.", time(gain)),
        (_, false) => format!("1 GiB more of {what} would make a request at least {} faster.", time(gain)),
    };
    Note::new(code, &numbers, text)
}
