//! The planner's slow twin: every residency × every number of slots × kept or not, of all components together, each
//! replayed event by event. For a device that is host memory, where there are no tiers to choose.

use crate::{
    generate::Case,
    replay::{active, passes_in, phases, size},
    schedule::{Job, Time, copied_times, copy, load, visit},
};
use mm_plan::{Basis, Component, Granularity, HostTier};

const SLOTS: usize = 4;

/// One placement of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placement {
    keep: bool,
    bytes: u64,
    /// In a request.
    time: Time,
    /// Bytes that are copied in a request.
    traffic: u64,
}

/// The best that any placement can do: the fastest, of those the one that copies least, of those the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Best {
    pub(crate) time: Time,
    pub(crate) traffic: u64,
    /// Engine bytes, all components.
    pub(crate) bytes: u64,
}

/// `None`: nothing fits.
pub(crate) fn best(case: &Case) -> Option<Best> {
    let holders: Vec<&Component> = case.components.iter().filter(|c| c.same_as.is_none()).collect();
    let phases: Vec<Phase> = phases(case).iter().map(|members| Phase::new(case, members, &holders)).collect();
    let options: Vec<Vec<Placement>> = holders.iter().map(|component| placements(case, component)).collect();
    let mut best = None;
    search(&options, &phases, &mut Vec::new(), &mut best);
    best
}

/// Which components are active, and what they may take together with everything kept.
struct Phase {
    active: Vec<bool>,
    room: Option<u64>,
}

impl Phase {
    fn new(case: &Case, members: &[&Component], holders: &[&Component]) -> Self {
        let names = active(case, members);
        let known = case.components.iter().filter(|c| names.contains(c.name.as_str())).filter_map(|c| c.activation);
        let activation = known.filter(|a| a.basis != Basis::Unknown).map(|a| a.bytes).max().unwrap_or(0);
        Self {
            active: holders.iter().map(|c| names.contains(c.name.as_str())).collect(),
            room: case.machine.vram_free.unwrap().checked_sub(case.policy.reserve + activation),
        }
    }
}

/// Every placement of a component, without those that another one beats in all respects.
fn placements(case: &Case, component: &Component) -> Vec<Placement> {
    let groups: Vec<_> = component.groups().collect();
    let sets = if component.granularity == Granularity::Whole { 1 } else { 1u32 << groups.len() };
    let most = if case.policy.use_stream { SLOTS } else { 1 };
    let mut options = Vec::new();
    for set in 0..sets {
        let streams = |i: usize| set & (1 << i) != 0;
        let streamed = set.count_ones() as usize;
        let jobs: Vec<Job> = (0..groups.len())
            .map(|i| Job {
                copied: streams(i).then(|| copy(case, groups[i], HostTier::Mapped)),
                compute: groups[i].compute_ns.unwrap().into(),
            })
            .collect();
        let fixed: u64 = (0..groups.len()).filter(|i| !streams(*i)).map(|i| size(groups[i])).sum();
        let slot = slot(&groups.iter().enumerate().filter(|(i, _)| streams(*i)).map(|(_, g)| *g).collect::<Vec<_>>());
        let load = load(case, component, |i| !streams(i));
        for slots in streamed.min(1)..=streamed.min(most) {
            let bytes = component.rest + fixed + slots as u64 * slot;
            for keep in [false, true] {
                let visits = phases(case).into_iter().map(|members| passes_in(case, &members, component));
                let (mut time, mut traffic) = (0, 0);
                for passes in visits.filter(|passes| *passes > 0) {
                    let (load, loaded) = if keep { (0, 0) } else { (load, component.rest + fixed) };
                    time += load + visit(&jobs, slots, passes, keep).end;
                    let times = copied_times(streamed, slots, passes, keep);
                    traffic += loaded + (component.bytes() - component.rest - fixed) * times;
                }
                options.push(Placement { keep, bytes, time, traffic });
            }
        }
    }
    let beaten = |option: &Placement, by: &Placement| {
        let no_worse = by.bytes <= option.bytes && by.time <= option.time && by.traffic <= option.traffic;
        by != option && by.keep == option.keep && no_worse
    };
    options.sort_by_key(|o| (o.keep, o.bytes, o.time, o.traffic));
    options.dedup();
    let all = options.clone();
    options.retain(|option| !all.iter().any(|by| beaten(option, by)));
    options
}

fn slot(streamed: &[&mm_plan::Group]) -> u64 {
    let mut slot = std::collections::BTreeMap::new();
    for slab in streamed.iter().flat_map(|g| &g.slabs) {
        let largest: &mut u64 = slot.entry(slab.dtype).or_default();
        *largest = slab.bytes.max(*largest);
    }
    slot.values().sum()
}

/// Tries all combinations of what is left.
fn search(options: &[Vec<Placement>], phases: &[Phase], chosen: &mut Vec<Placement>, best: &mut Option<Best>) {
    if chosen.len() == options.len() {
        let held = |phase: &Phase| -> u64 {
            let here = chosen.iter().zip(&phase.active).filter(|(option, active)| option.keep || **active);
            here.map(|(option, _)| option.bytes).sum()
        };
        if phases.iter().all(|phase| phase.room.is_some_and(|room| held(phase) <= room)) {
            let sum = |of: fn(&Placement) -> u64| chosen.iter().map(of).sum();
            let time = chosen.iter().map(|option| option.time).sum();
            let this = Best { time, traffic: sum(|o| o.traffic), bytes: sum(|o| o.bytes) };
            *best = Some(best.map_or(this, |best| best.min(this)));
        }
        return;
    }
    for option in &options[chosen.len()] {
        chosen.push(*option);
        search(options, phases, chosen, best);
        chosen.pop();
    }
}
