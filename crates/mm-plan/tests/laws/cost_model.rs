//! `simulate` and the predictions agree with the replay, and a schedule is one that three lanes can keep.

use crate::{
    by_hand::{Choice, placed_by_hand},
    generate::{Case, any_case, cost_case},
    replay::{active, holder, phases, placed},
    run,
    schedule::{self, Event, Job, Request, Time, copied_times, jobs, request, settled_pass},
};
use mm_plan::{
    Basis, Busy, ComponentPlan, DeviceKind, Granularity, HostTier, Lane, Plan, Predicted, Schedule, Span, simulate,
};
use proptest::{collection::vec, prelude::*, sample::select, strategy::Strategy as Generator};

const CASES: u32 = 300;

/// Placements for up to five components; their patterns repeat.
fn choices() -> impl Generator<Value = Vec<Choice>> {
    let tier = select(vec![
        HostTier::PageLocked,
        HostTier::PageLocked,
        HostTier::Staged,
        HostTier::Mapped,
        HostTier::Pageable,
    ]);
    let groups = prop_oneof![vec((any::<bool>(), tier.clone()), 1..9), vec((Just(false), tier), 1..9)];
    let choice = (groups, 1..5u32, any::<bool>()).prop_map(|(groups, slots, keep)| {
        let (resident, tiers) = groups.into_iter().unzip();
        Choice { resident, tiers, slots, keep }
    });
    vec(choice, 5)
}

fn place(case: &Case, choices: &[Choice]) -> Plan {
    let components = case.components.iter().filter(|c| c.same_as.is_none());
    let chosen = components.zip(choices).map(|(component, choice)| {
        let groups = component.groups().count();
        let mut choice = choice.clone();
        choice.resident = choice.resident.into_iter().cycle().take(groups).collect();
        choice.tiers = choice.tiers.into_iter().cycle().take(groups).collect();
        if component.granularity == Granularity::Whole {
            choice.resident.fill(true);
        }
        if case.machine.device == DeviceKind::Host {
            choice.tiers.fill(HostTier::Mapped);
        }
        (component.name.as_str(), choice)
    });
    placed_by_hand(case, &chosen.collect::<Vec<_>>())
}

fn time(ns: u64) -> Time {
    ns.into()
}

/// Everything that a schedule says, but the steady-state passes.
fn agrees(case: &Case, plan: &Plan, schedule: &Schedule) {
    let expected = request(case, plan);
    assert_eq!(time(schedule.request_ns), expected.end);
    let memory: Vec<_> = schedule.memory.iter().map(|p| (time(p.at_ns), p.device, p.host)).collect();
    assert_eq!(memory, expected.memory);
    assert_eq!(schedule.visits.len(), expected.visits.len());
    for (index, (visit, expected)) in schedule.visits.iter().zip(&expected.visits).enumerate() {
        assert_eq!((&visit.component, visit.phase), (&expected.component, expected.phase));
        let times = [visit.start_ns, visit.loaded_ns, visit.computed_ns, visit.end_ns].map(time);
        assert_eq!(times, [expected.start, expected.loaded, expected.computed, expected.end]);
        assert!(visit.passes == expected.passes && visit.listed <= visit.passes && visit.listed > 0);
        for lane in [Lane::Staging, Lane::Copy, Lane::Compute] {
            let spans: Vec<Event> = spans(schedule, index, lane).map(event).collect();
            // The slots' next contents are listed if all passes are.
            let listed = if visit.listed == visit.passes { u64::MAX } else { visit.listed };
            let events = expected.events.iter().filter(|e| e.lane == lane && e.pass < listed);
            assert_eq!(spans, events.copied().collect::<Vec<_>>(), "{lane:?} of {}", visit.component);
        }
    }
    let predicted = schedule.predicted();
    assert_eq!(predicted, Predicted { components: predicted.components.clone(), ..totals(case, plan, &expected) });
    assert_eq!(schedule.busy, busy(case, plan, &expected));
    components_agree(case, plan, &expected, &predicted);
}

fn spans(schedule: &Schedule, visit: usize, lane: Lane) -> impl Iterator<Item = &Span> {
    schedule.spans.iter().filter(move |s| s.visit == visit && s.lane == lane)
}

fn event(span: &Span) -> Event {
    let (start, end) = (span.start_ns.into(), span.end_ns.into());
    Event { lane: span.lane, group: span.group, pass: span.pass, start, end }
}

/// Copying, staging and computing in a visit of so many passes.
fn work(jobs: &[Job], plan: &ComponentPlan, passes: u64) -> [Time; 3] {
    let times = copied_times(plan.streamed_count(), plan.slots as usize, passes, plan.keep);
    let copied = || jobs.iter().filter_map(|j| j.copied);
    let (copy, staging): (Time, Time) = (copied().map(|c| c.1).sum(), copied().map(|c| c.0).sum());
    let compute: Time = jobs.iter().map(|j| j.compute).sum();
    [copy * time(times), staging * time(times), compute * time(passes)]
}

fn jobs_of(case: &Case, plan: &Plan, name: &str) -> Vec<Job> {
    let component = case.components.iter().find(|c| c.name == *name).unwrap();
    jobs(case, component, plan.component(name).unwrap())
}

fn bound(jobs: &[Job], plan: &ComponentPlan, passes: u64) -> Time {
    work(jobs, plan, passes).into_iter().max().unwrap()
}

fn ns(time: Time) -> u64 {
    time.try_into().unwrap()
}

fn totals(case: &Case, plan: &Plan, request: &Request) -> Predicted {
    let bounds = request.visits.iter().map(|visit| {
        let jobs = jobs_of(case, plan, &visit.component);
        visit.loaded - visit.start + bound(&jobs, plan.component(&visit.component).unwrap(), visit.passes)
    });
    let computed = |name: &str| case.components.iter().any(|c| holder(case, c).name == name && c.passes > 0);
    let holders = case.components.iter().filter(|c| c.same_as.is_none() && computed(&c.name));
    let unknown = holders.flat_map(|c| c.groups()).any(|g| g.compute_ns.is_none());
    Predicted {
        request_ns: ns(request.end),
        lower_bound_ns: ns(bounds.sum()),
        compute: if unknown { Basis::Unknown } else { Basis::Measured },
        components: vec![],
    }
}

fn busy(case: &Case, plan: &Plan, request: &Request) -> Busy {
    let mut busy = Busy::default();
    for visit in &request.visits {
        let planned = plan.component(&visit.component).unwrap();
        let [copy, staging, compute] = work(&jobs_of(case, plan, &visit.component), planned, visit.passes).map(ns);
        busy.copy_ns += copy;
        busy.staging_ns += staging;
        busy.compute_ns += compute;
        busy.load_ns += ns(visit.loaded - visit.start);
    }
    busy
}

fn components_agree(case: &Case, plan: &Plan, request: &Request, predicted: &Predicted) {
    let holders = plan.components.iter().filter(|c| c.same_as.is_none());
    assert!(holders.map(|c| &c.name).eq(predicted.components.iter().map(|c| &c.name)));
    for component in &predicted.components {
        let jobs = jobs_of(case, plan, &component.name);
        let visits = || request.visits.iter().filter(|v| v.component == component.name);
        assert_eq!(component.passes, visits().map(|v| v.passes).sum::<u64>());
        // Of a pass among many.
        let planned = ComponentPlan { keep: true, ..plan.component(&component.name).unwrap().clone() };
        assert_eq!(time(component.lower_bound_ns), bound(&jobs, &planned, 1));
        assert_eq!(time(component.load_ns), visits().map(|v| v.loaded - v.start).sum());
        let [_, _, compute] = work(&jobs, &planned, 1);
        let stalls = visits().map(|v| v.end - v.loaded - compute * time(v.passes));
        assert_eq!(time(component.stall_ns), stalls.sum());
        if component.passes == 0 {
            assert_eq!(component.pass_ns, 0);
        } else if time(component.pass_ns) != settled_pass(&jobs, plan.component(&component.name).unwrap(), 100) {
            // Lanes that are almost equally busy take long to settle.
            let settled = settled_pass(&jobs, plan.component(&component.name).unwrap(), 3000);
            assert_eq!(time(component.pass_ns), settled, "{}", component.name);
        }
    }
}

/// What must hold of any schedule, whatever the model's numbers: no lane does two things at once, nothing starts before
/// what it needs, and a visit follows the one before.
fn can_be_kept(case: &Case, plan: &Plan, schedule: &Schedule) {
    for lane in [Lane::Staging, Lane::Copy, Lane::Compute] {
        let spans: Vec<&Span> = schedule.spans.iter().filter(|s| s.lane == lane).collect();
        assert!(spans.iter().all(|s| s.start_ns <= s.end_ns));
        assert!(spans.windows(2).all(|pair| pair[0].end_ns <= pair[1].start_ns), "{lane:?}");
    }
    let mut now = 0;
    for (index, visit) in schedule.visits.iter().enumerate() {
        assert_eq!(visit.start_ns, now);
        assert!(visit.start_ns <= visit.loaded_ns && visit.loaded_ns <= visit.computed_ns);
        assert!(visit.computed_ns <= visit.end_ns);
        now = visit.end_ns;
        let own = schedule.spans.iter().filter(|s| s.visit == index);
        assert!(own.clone().all(|s| visit.start_ns <= s.start_ns && s.end_ns <= visit.end_ns));
        assert!(own.clone().all(|s| s.group.is_none() || s.start_ns >= visit.loaded_ns));
        order_in(case, plan, schedule, index);
    }
    assert_eq!(now, schedule.request_ns);
    assert!(schedule.lower_bound_ns <= schedule.request_ns);
}

fn order_in(case: &Case, plan: &Plan, schedule: &Schedule, index: usize) {
    let visit = &schedule.visits[index];
    let planned = plan.component(&visit.component).unwrap();
    let component = case.components.iter().find(|c| c.name == visit.component).unwrap();
    let groups = placed(component, planned);
    let streams: Vec<usize> = (0..groups.len()).filter(|i| !groups[*i].1).collect();
    let computes: Vec<&Span> = spans(schedule, index, Lane::Compute).collect();
    let each = (0..visit.listed).flat_map(|pass| (0..groups.len()).map(move |group| (Some(group), pass)));
    assert!(computes.iter().map(|s| (s.group, s.pass)).eq(each), "each group once per pass, in order");
    let copies: Vec<&Span> = spans(schedule, index, Lane::Copy).filter(|s| s.group.is_some()).collect();
    let stagings: Vec<&Span> = spans(schedule, index, Lane::Staging).collect();
    let slots = planned.slots as usize;
    let ready = if planned.keep { slots.min(streams.len()) } else { 0 };
    let used: Vec<&&Span> = computes.iter().filter(|s| streams.contains(&s.group.unwrap())).collect();
    let holds = slots >= streams.len();
    for (number, compute) in used.iter().enumerate().skip(ready) {
        if holds && number >= streams.len() {
            assert!(copies.len() <= streams.len(), "what has a slot of its own is copied once");
            continue;
        }
        let copy = copies[number - ready];
        assert_eq!((copy.group, copy.pass), (compute.group, compute.pass));
        assert!(copy.end_ns <= compute.start_ns, "computed before it was there");
    }
    for (number, copy) in copies.iter().enumerate() {
        if let Some(last) = (number + ready).checked_sub(slots) {
            assert!(used[last].end_ns <= copy.start_ns, "copied into a slot in use");
        }
    }
    for staging in stagings {
        let copy = copies.iter().find(|c| (c.group, c.pass) == (staging.group, staging.pass)).unwrap();
        assert!(staging.end_ns <= copy.start_ns, "copied before it was staged");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn simulate_equals_the_replay(case in cost_case(), choices in choices()) {
        let plan = place(&case, &choices);
        agrees(&case, &plan, &simulate(&case.machine, &case.components, &plan).unwrap());
    }

    #[test]
    fn schedules_can_be_kept(case in cost_case(), choices in choices(), often in 1..400u32) {
        let mut case = case;
        case.components.iter_mut().for_each(|c| c.passes = c.passes.saturating_mul(often));
        let plan = place(&case, &choices);
        can_be_kept(&case, &plan, &simulate(&case.machine, &case.components, &plan).unwrap());
    }

    #[test]
    fn predictions_are_the_replays(case in prop_oneof![any_case(), cost_case()]) {
        if let Ok(plan) = run(&case) {
            let times = case.machine.links.is_some() && case.machine.vram_free.is_some();
            prop_assert_eq!(plan.predicted.is_some(), times);
            if let Some(predicted) = &plan.predicted {
                let schedule = simulate(&case.machine, &case.components, &plan).unwrap();
                prop_assert_eq!(predicted, &schedule.predicted());
                agrees(&case, &plan, &schedule);
                can_be_kept(&case, &plan, &schedule);
            }
        }
    }
}

/// What the replay says of the smallest cases by hand, so that it is not trusted blindly either.
#[test]
fn the_replay_by_hand() {
    let streamed = |copy, compute| Job { copied: Some((0, copy)), compute };
    let jobs = [streamed(30, 10), Job { copied: None, compute: 15 }];
    // One slot, one that streams: it is copied once.
    let visit = schedule::visit(&jobs, 1, 2, false);
    assert_eq!((visit.computed, visit.end), (30 + 25 + 25, 80));
    let visit = schedule::visit(&jobs, 1, 2, true);
    assert_eq!((visit.computed, visit.end), (25 + 25, 50));
    // One slot, two that stream: copies of 30 and 40, computes of 10 and 5, the resident's 15 beside the next copy of 30.
    let jobs = [streamed(30, 10), streamed(40, 5), Job { copied: None, compute: 15 }];
    let visit = schedule::visit(&jobs, 1, 2, false);
    assert_eq!((visit.computed, visit.end), (30 + 10 + 40 + 5 + 30 + 10 + 40 + 5 + 15, 185));
    // Kept: the first copy is there, the next request's runs from 140 to 170.
    let visit = schedule::visit(&jobs, 1, 2, true);
    assert_eq!((visit.computed, visit.end), (10 + 40 + 5 + 30 + 10 + 40 + 5 + 15, 170));
    // Staged: each 50, the copies of 5 follow; three stagings back to back, as the copy before the last has ended.
    let staged = [Job { copied: Some((50, 5)), compute: 1 }; 3];
    let visit = schedule::visit(&staged, 2, 1, false);
    assert_eq!(visit.end, 3 * 50 + 5 + 1);
    // Copies of 50 hold up the staging of 5: the third starts when the first copy has ended.
    let held = [Job { copied: Some((5, 50)), compute: 0 }; 3];
    let visit = schedule::visit(&held, 2, 1, false);
    let staging: Vec<Time> = visit.events.iter().filter(|e| e.lane == Lane::Staging).map(|e| e.start).collect();
    assert_eq!((staging, visit.end), (vec![0, 5, 55], 155));
}

#[test]
fn the_generator_reaches_every_tier_and_several_phases() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut staged, mut locked, mut shared, mut kept) = (0, 0, 0, 0);
    for _ in 0..300 {
        let case = cost_case().new_tree(&mut runner).unwrap().current();
        let plan = place(&case, &choices().new_tree(&mut runner).unwrap().current());
        let spans = simulate(&case.machine, &case.components, &plan).unwrap().spans;
        staged += u32::from(spans.iter().any(|s| s.lane == Lane::Staging));
        locked += u32::from(!plan.peak.host.is_multiple_of(crate::generate::RING));
        shared += u32::from(phases(&case).iter().any(|members| active(&case, members).len() > 1));
        kept += u32::from(plan.components.iter().any(|c| c.keep && c.slots > 1));
    }
    assert!(staged > 40 && locked > 60 && shared > 60 && kept > 60, "{staged} {locked} {shared} {kept}");
}
