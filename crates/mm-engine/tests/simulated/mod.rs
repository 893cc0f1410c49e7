//! The engine against the planner: whatever plan is made, each copy and each compute on a virtual clock starts and ends at the
//! nanosecond that `mm_plan::simulate` says, in exactly the plan's bytes.

#[path = "../common/clock_device.rs"]
mod clock_device;
#[path = "../../../mm-plan/tests/laws/generate.rs"]
mod generate;

use clock_device::{ClockBuffer, ClockDevice, Event, Parcel, Rates};
use generate::{Case, any_case, cost_case, hostile_case};
use mm_engine::{
    Device, Homes, ModelManager, Module, ModuleSpec, Place, Registration, Slab, StackSpec, timeline::Timeline,
};
use mm_plan::{Component, ComponentPlan, Lane, Links, Machine, Plan, Policy, Schedule, plan, simulate};
use parking_lot::Mutex;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Plans that are run; `MM_SIMULATED` says another number.
const CASES: u32 = 10_000;
/// Passes of a visit that are run, at the most.
const PASSES: u32 = 9;
/// Links for plans that were made without any.
const LINKS: Links = Links { h2d: 400_000_000, staging: None, disk: None, copy_fixed_ns: 1 };

/// Homes that hold sizes.
#[derive(Clone)]
struct Sizes {
    device: ClockDevice,
    held: Arc<Mutex<HashMap<(Place, usize), ClockBuffer>>>,
}

impl Homes<ClockBuffer> for Sizes {
    fn put(&self, place: Place, slab: usize, buffer: ClockBuffer) -> Result<(), (ClockBuffer, String)> {
        if self.held.lock().insert((place, slab), buffer).is_some() {
            self.device.violation(format!("slab {slab} of {place:?} put twice"));
        }
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<ClockBuffer, String> {
        let mut buffer = self.held.lock().remove(&(place, slab)).ok_or("empty")?;
        self.device.mark_used(&mut buffer);
        Ok(buffer)
    }
}

/// A component on the device, as the plan places it.
struct Ran {
    module: Arc<Module<ClockDevice>>,
    homes: Sizes,
    plan: ComponentPlan,
    /// Nanoseconds that each group computes.
    compute: Vec<u64>,
    /// All visits are of as many passes as it was registered with, so that the engine can know the last.
    foreseen: bool,
}

fn hollow(component: &Component) -> (Vec<Slab>, Vec<StackSpec>) {
    let rest = (component.rest > 0).then(|| Slab::hollow(mm_plan::DType::Bytes, component.rest, component.rest));
    let stacks = component.stacks.iter().map(|stack| {
        let groups = stack.groups.iter().map(|group| {
            let stored = |slab| if slab == 0 { group.host_bytes } else { 0 };
            group.slabs.iter().enumerate().map(|(i, slab)| Slab::hollow(slab.dtype, slab.bytes, stored(i))).collect()
        });
        StackSpec { name: stack.name.clone(), groups: groups.collect() }
    });
    (rest.into_iter().collect(), stacks.collect())
}

/// What a component takes on each lane is told to the device; then it is registered. `passes`: of each of its visits.
fn register(
    manager: &Arc<ModelManager<ClockDevice>>,
    rates: &Rates,
    component: &Component,
    placed: &ComponentPlan,
    passes: &[u64],
) -> (Ran, Registration<ClockDevice>) {
    let device = manager.device();
    let (rest, stacks) = hollow(component);
    let mut compute = Vec::new();
    for (stack, planned) in component.stacks.iter().zip(&placed.stacks) {
        for (index, group) in stack.groups.iter().enumerate() {
            let tier = (!planned.resident[index]).then_some(planned.host[index]);
            let bytes = group.slabs.iter().map(|slab| slab.bytes).fold(0, u64::saturating_add);
            let (stored, slabs) = (group.host_bytes, group.slabs.len() as u64);
            let parcel = Parcel { group: compute.len(), tier, bytes, stored, slabs };
            device.expect(&component.name, &format!("{}.{index}", stack.name), parcel);
            // Unknown compute is nothing, but through one slot as long as the copy.
            let unknown = tier.filter(|_| placed.slots == 1).map_or(0, |tier| rates.stream(&parcel, tier).1);
            compute.push(group.compute_ns.unwrap_or(unknown));
        }
    }
    let homes = Sizes { device: ClockDevice::clone(device), held: Arc::default() };
    let foreseen = passes.iter().all(|each| *each == passes[0]);
    let spec = ModuleSpec {
        name: component.name.clone(),
        phase: component.phase,
        passes: passes.first().filter(|_| foreseen).map_or(0, |passes| *passes as u32),
        rest,
        stacks,
        homes: Box::new(homes.clone()),
    };
    let module = Module::new(spec, device.clone(), manager.timeline().clone());
    let registration = manager.register(&component.name, &module).unwrap();
    (Ran { module, homes, plan: placed.clone(), compute, foreseen }, registration)
}

/// What was seen over all cases, so that it is known what was tried.
#[derive(Default)]
struct Seen {
    plans: AtomicU64,
    timed: AtomicU64,
    streamed: AtomicU64,
    staged: AtomicU64,
    /// Whole requests took what was predicted.
    requests: AtomicU64,
}

/// Runs two requests; the second is one of many alike.
fn run(case: &Case, plan: &Plan, schedule: &Schedule, rates: Rates, seen: &Seen) {
    let device = ClockDevice::new(case.machine.vram_free.unwrap(), rates);
    let timeline = Arc::new(Timeline::new(1));
    timeline.set_recording(false);
    let machine = case.machine.clone();
    let manager = ModelManager::new(Arc::new(device.clone()), timeline, machine, Policy::default()).unwrap();
    let holders = case.components.iter().filter(|c| c.same_as.is_none());
    let registered = holders.map(|c| {
        let visits = schedule.visits.iter().filter(|visit| visit.component == c.name);
        let passes: Vec<u64> = visits.map(|visit| visit.passes).collect();
        register(&manager, &rates, c, plan.component(&c.name).unwrap(), &passes)
    });
    let (components, registrations): (Vec<Ran>, Vec<_>) = registered.unzip();
    manager.apply_plan(plan.clone()).unwrap();
    for request in 0..2 {
        let begin = device.synchronize();
        for (index, visit) in schedule.visits.iter().enumerate() {
            let ran = components.iter().find(|ran| ran.module.name() == visit.component).unwrap();
            let steady = request > 0 || !ran.plan.keep;
            let start = device.synchronize();
            device.take_events();
            for pass in 0..visit.passes {
                let run = manager.begin(&ran.module).unwrap();
                device.set_frozen(true);
                let held = device.memory();
                for (group, compute) in ran.compute.iter().enumerate() {
                    let lease = ran.module.lease(group).unwrap();
                    device.compute(group, *compute);
                    drop(lease);
                }
                run.complete().unwrap();
                device.set_frozen(false);
                assert_eq!(device.memory(), held, "allocated in pass {pass}");
            }
            let computed = device.computed();
            let end = device.synchronize();
            let loaded = components.iter().filter(|ran| ran.module.is_loaded());
            let planned: u64 = loaded.map(|ran| ran.plan.engine_bytes).sum();
            assert_eq!(device.memory().in_use, planned, "engine bytes are not the plan's");
            assert!(planned <= plan.phases[visit.phase].engine_bytes);
            let mut events = device.take_events();
            if steady && schedule.request_ns < u64::MAX {
                events.iter_mut().for_each(|e| (e.start, e.end) = (e.start - start, e.end - start));
                agrees(ran, schedule, index, events);
                assert_eq!(
                    computed - start,
                    (visit.computed_ns - visit.start_ns).into(),
                    "{}: computed",
                    visit.component
                );
                if ran.plan.keep {
                    assert_eq!(end - start, (visit.end_ns - visit.start_ns).into(), "{}: ended", visit.component);
                }
            }
            // Those that do not stay leave at the end of the phase.
            if schedule.visits.get(index + 1).is_none_or(|next| next.phase != visit.phase) {
                for leaves in components.iter().filter(|ran| !ran.plan.keep && ran.module.is_loaded()) {
                    manager.unload(leaves.module.name()).unwrap();
                }
            }
        }
        let end = device.synchronize();
        if request > 0 && schedule.request_ns < u64::MAX && components.iter().all(|ran| ran.foreseen) {
            assert_eq!(end - begin, schedule.request_ns.into(), "the request as a whole");
            seen.requests.fetch_add(1, Relaxed);
        }
    }
    assert!(device.memory().peak <= plan.peak.device);
    drop((registrations, manager));
    assert!(components.iter().all(|ran| ran.homes.held.lock().is_empty()), "weights left in homes");
    drop(components);
    device.check_empty();
}

/// Each lane did what the schedule says, when it says so. Only where the engine can't know which pass is the last, copies for
/// one that never came may follow.
fn agrees(ran: &Ran, schedule: &Schedule, visit: usize, events: Vec<Event>) {
    let start = schedule.visits[visit].start_ns;
    for lane in [Lane::Staging, Lane::Copy, Lane::Compute] {
        let spans = schedule.spans.iter().filter(|s| s.visit == visit && s.lane == lane);
        let expected = spans.map(|s| Event {
            lane,
            group: s.group,
            start: (s.start_ns - start).into(),
            end: (s.end_ns - start).into(),
        });
        let expected: Vec<Event> = expected.collect();
        let mut found: Vec<Event> = events.iter().filter(|e| e.lane == lane).copied().collect();
        if !ran.foreseen && !ran.plan.keep && lane != Lane::Compute {
            let ahead = found.len().saturating_sub(expected.len());
            assert!(ahead <= ran.plan.slots as usize, "{}: {ahead} copies for no pass", ran.module.name());
            found.truncate(expected.len());
        }
        if let Some(at) = (0..found.len().max(expected.len())).find(|i| found.get(*i) != expected.get(*i)) {
            let name = ran.module.name();
            panic!(
                "{name}, {lane:?}, step {at}: {:?}, simulated {:?}\n{:#?}",
                found.get(at),
                expected.get(at),
                ran.plan
            );
        }
    }
}

/// A plan of the case, what it is predicted to do in a few passes, and the rates it is predicted with.
fn planned(case: &Case) -> Option<(Case, Plan, Schedule, Rates)> {
    let plan = plan(&case.machine, &case.components, &case.policy).ok()?;
    case.machine.vram_free?;
    let mut case = case.clone();
    case.components.iter_mut().for_each(|c| c.passes = c.passes.min(PASSES));
    let links = case.machine.links.filter(|links| links.h2d > 0).unwrap_or(LINKS);
    let machine = Machine { links: Some(links), ..case.machine.clone() };
    let schedule = simulate(&machine, &case.components, &plan).unwrap();
    let holders = case.components.iter().filter(|c| c.same_as.is_none());
    let stored = |c: &Component| u128::from(c.rest) + c.groups().map(|g| u128::from(g.host_bytes)).sum::<u128>();
    let rates = Rates::new(&machine, links, holders.map(stored).sum());
    Some((case, plan, schedule, rates))
}

#[test]
fn every_plan_runs_as_it_was_simulated() {
    let cases = std::env::var("MM_SIMULATED").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, max_global_rejects: u32::MAX, failure_persistence: None, ..Config::default() };
    let seen = Seen::default();
    let case = prop_oneof![4 => any_case(), 4 => cost_case(), 2 => hostile_case()];
    let outcome = TestRunner::new(config).run(&case, |case| {
        let (case, plan, schedule, rates) = planned(&case).ok_or_else(|| TestCaseError::reject("no plan"))?;
        run(&case, &plan, &schedule, rates, &seen);
        let streamed = plan.components.iter().any(|c| c.streamed_count() > 0);
        let staged = schedule.spans.iter().any(|s| s.lane == Lane::Staging);
        seen.plans.fetch_add(1, Relaxed);
        seen.timed.fetch_add(u64::from(schedule.request_ns < u64::MAX && schedule.request_ns > 0), Relaxed);
        seen.streamed.fetch_add(u64::from(streamed), Relaxed);
        seen.staged.fetch_add(u64::from(staged), Relaxed);
        Ok(())
    });
    let [plans, timed, streamed, staged, requests] =
        [&seen.plans, &seen.timed, &seen.streamed, &seen.staged, &seen.requests].map(|n| n.load(Relaxed));
    println!("{plans} plans, {timed} timed, {streamed} stream, {staged} stage; {requests} requests as predicted");
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let least = |seen: u64, share: u64| assert!(seen * 100 >= share * plans, "only {seen} of {plans} plans");
    [(timed, 50), (streamed, 30), (staged, 2), (requests, 45)].into_iter().for_each(|(seen, share)| least(seen, share));
}
