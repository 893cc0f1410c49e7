//! The cost model once more: a request replayed event by event, without any short cut and with times that cannot overflow.
//!
//! Written from the model's description. It believes a plan's flags (residents, slots, tiers, `keep`) and none of its
//! figures, and shares nothing with the planner.

use crate::{
    generate::{Case, RING},
    replay::{active, held, passes_in, phases, placed, size, tiers},
};
use mm_plan::{Component, ComponentPlan, DeviceKind, Group, HostTier, Lane, Plan};

/// Nanoseconds.
pub(crate) type Time = u128;

/// Something that occupied a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) lane: Lane,
    /// `None`: the component's load.
    pub(crate) group: Option<usize>,
    pub(crate) pass: u64,
    pub(crate) start: Time,
    pub(crate) end: Time,
}

/// A component's passes in one phase.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    pub(crate) component: String,
    pub(crate) phase: usize,
    pub(crate) passes: u64,
    pub(crate) start: Time,
    pub(crate) loaded: Time,
    pub(crate) computed: Time,
    pub(crate) end: Time,
    /// In the order in which they start, lanes mixed.
    pub(crate) events: Vec<Event>,
}

/// One request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) end: Time,
    pub(crate) visits: Vec<Visit>,
    /// Begin of each phase, and the bytes held on the device and the host from there on.
    pub(crate) memory: Vec<(Time, u64, u64)>,
}

/// What a group does in each pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    /// Filling page-locked memory and copying, if it streams.
    pub(crate) copied: Option<(Time, Time)>,
    pub(crate) compute: Time,
}

/// Runs one request.
pub(crate) fn request(case: &Case, plan: &Plan) -> Request {
    let host = host_bytes(case, plan);
    let mut request = Request::default();
    for (phase, members) in phases(case).into_iter().enumerate() {
        let kept = |c: &Component| plan.component(&c.name).unwrap().keep;
        let active = active(case, &members);
        let holders = || case.components.iter().filter(|c| c.same_as.is_none());
        let on_device = holders().filter(|c| kept(c) || active.contains(c.name.as_str()));
        let device = on_device.map(|c| held(c, plan.component(&c.name).unwrap())).sum();
        request.memory.push((request.end, device, host));
        let mut holders: Vec<&Component> = holders().filter(|c| active.contains(c.name.as_str())).collect();
        holders.sort_by_key(|c| c.name.as_str());
        for component in holders {
            let passes = passes_in(case, &members, component);
            if passes == 0 {
                continue;
            }
            let planned = plan.component(&component.name).unwrap();
            let resident: Vec<bool> = placed(component, planned).into_iter().map(|(_, resident)| resident).collect();
            let load = if planned.keep { 0 } else { load(case, component, |i| resident[i]) };
            let jobs = jobs(case, component, planned);
            let mut visit = visit(&jobs, planned.slots as usize, passes, planned.keep);
            visit.component = component.name.clone();
            visit.phase = phase;
            visit.begin(request.end, load);
            request.end = visit.end;
            request.visits.push(visit);
        }
    }
    request
}

/// Nanoseconds of a pass once the lanes have settled, rounded up: the mean of 12 passes after `before` others. 12, because
/// passes repeat in a rhythm of up to as many passes as there are slots.
pub(crate) fn settled_pass(jobs: &[Job], plan: &ComponentPlan, before: u64) -> Time {
    let visit = visit(jobs, plan.slots as usize, before + 12, true);
    let end = |pass: u64| {
        let last = visit.events.iter().rev().find(|e| e.lane == Lane::Compute && e.pass == pass);
        last.map_or(0, |e| e.end)
    };
    (end(before + 11) - end(before - 1)).div_ceil(12)
}

/// Page-locked bytes, the ring included.
pub(crate) fn host_bytes(case: &Case, plan: &Plan) -> u64 {
    let mut bytes = 0;
    let mut staged = false;
    for component in case.components.iter().filter(|c| c.same_as.is_none()) {
        let planned = plan.component(&component.name).unwrap();
        for ((group, resident), tier) in placed(component, planned).into_iter().zip(tiers(planned)) {
            if !resident && matches!(tier, HostTier::PageLocked | HostTier::Pageable) {
                bytes += size(group);
            }
            staged |= !resident && tier == HostTier::Staged;
        }
    }
    bytes + if staged { RING } else { 0 }
}

/// What each group of a component does in a pass.
pub(crate) fn jobs(case: &Case, component: &Component, plan: &ComponentPlan) -> Vec<Job> {
    let groups = placed(component, plan).into_iter().zip(tiers(plan));
    let job = |((group, resident), tier): ((&Group, bool), HostTier)| {
        let copied = (!resident).then(|| copy(case, group, tier));
        // Unknown compute is nothing, but through one slot as long as the copy.
        let unknown = copied.filter(|_| plan.slots == 1).map_or(0, |(_, copy)| copy);
        Job { copied, compute: group.compute_ns.map_or(unknown, Time::from) }
    };
    groups.map(job).collect()
}

fn nanoseconds(bytes: u64, rate: u64) -> Time {
    (Time::from(bytes) * 1_000_000_000).div_ceil(rate.into())
}

/// Time on the staging lane and on the copy lane.
pub(crate) fn copy(case: &Case, group: &Group, tier: HostTier) -> (Time, Time) {
    let links = case.machine.links.unwrap();
    let link = nanoseconds(size(group), links.h2d) + Time::from(links.copy_fixed_ns) * group.slabs.len() as Time;
    let read = read(case, group.host_bytes);
    if case.machine.device == DeviceKind::Host {
        return (0, link.max(read));
    }
    let fill = nanoseconds(size(group), staging(case));
    match tier {
        HostTier::PageLocked => (0, link),
        HostTier::Staged => (fill.max(read), link),
        HostTier::Mapped => (0, fill.max(read) + link),
        HostTier::Pageable => (0, fill + link),
    }
}

fn staging(case: &Case) -> u64 {
    let links = case.machine.links.unwrap();
    links.staging.unwrap_or(links.h2d.div_ceil(2))
}

/// Reading from the disk what does not all stay in RAM.
fn read(case: &Case, stored: u64) -> Time {
    let holders = case.components.iter().filter(|c| c.same_as.is_none());
    let all: u64 = holders.map(|c| c.rest + c.groups().map(|g| g.host_bytes).sum::<u64>()).sum();
    let cached = case.machine.ram_available == 0 || all <= case.machine.ram_available;
    match case.machine.links.unwrap().disk {
        Some(disk) if !cached => nanoseconds(stored, disk),
        _ => 0,
    }
}

/// Loading what does not stream of a component.
pub(crate) fn load(case: &Case, component: &Component, resident: impl Fn(usize) -> bool) -> Time {
    let links = case.machine.links.unwrap();
    let (mut bytes, mut stored, mut copies) = (component.rest, component.rest, u64::from(component.rest > 0));
    for (_, group) in component.groups().enumerate().filter(|(i, _)| resident(*i)) {
        bytes += size(group);
        stored += group.host_bytes;
        copies += group.slabs.len() as u64;
    }
    let fill = if case.machine.device == DeviceKind::Host { 0 } else { nanoseconds(bytes, staging(case)) };
    let moved = nanoseconds(bytes, links.h2d).max(fill).max(read(case, stored));
    moved + Time::from(links.copy_fixed_ns) * Time::from(copies)
}

impl Visit {
    /// Puts the load before everything, and all of it `at` a time.
    fn begin(&mut self, at: Time, load: Time) {
        (self.start, self.loaded) = (at, at + load);
        self.computed += at + load;
        self.end += at + load;
        for event in &mut self.events {
            event.start += at + load;
            event.end += at + load;
        }
        if load > 0 {
            self.events.insert(0, Event { lane: Lane::Copy, group: None, pass: 0, start: at, end: at + load });
        }
    }
}

/// How often each streamed group is copied in a visit: where each has a slot of its own, never while it is there.
pub(crate) fn copied_times(streamed: usize, slots: usize, passes: u64, keep: bool) -> u64 {
    if slots < streamed { passes } else { u64::from(!keep && passes > 0) }
}

/// Steps that one lane has to do, in order. It does one at a time.
#[derive(Default)]
struct Worker {
    /// Steps that have ended.
    done: usize,
    /// The step under way ends then.
    until: Option<Time>,
}

/// Runs passes of a component from time 0: three workers, each starting its next step as soon as what it waits for has
/// ended. `keep`: the first slots are filled at the begin, and are to be filled again at the end.
pub(crate) fn visit(jobs: &[Job], slots: usize, passes: u64, keep: bool) -> Visit {
    let streamed: Vec<usize> = (0..jobs.len()).filter(|i| jobs[*i].copied.is_some()).collect();
    let place: Vec<usize> = (0..jobs.len()).map(|i| streamed.iter().filter(|s| **s < i).count()).collect();
    let (n, passes_count) = (streamed.len(), passes as usize);
    let ready = if keep { slots.min(n) } else { 0 };
    // Copies are numbered through all passes. Those that fill slots for the next request come last. What has a slot of its
    // own is never copied twice.
    let copies = if slots >= n { n } else { passes_count * n + ready };
    let times = |copy: usize| jobs[streamed[copy % n]].copied.unwrap();
    // An empty group has nothing to stage.
    let staged: Vec<usize> = (ready..copies).filter(|copy| times(*copy).0 > 0).collect();
    let computes = passes_count * jobs.len();
    // Streamed groups computed before compute number `step`.
    let used = |step: usize| if jobs.is_empty() { 0 } else { step / jobs.len() * n + place[step % jobs.len()] };

    let (mut staging, mut copying, mut computing) = (Worker::default(), Worker::default(), Worker::default());
    copying.done = ready;
    let mut events = Vec::new();
    let (mut now, mut computed) = (0, 0);
    loop {
        let mut moved = false;
        for worker in [&mut staging, &mut copying, &mut computing] {
            if worker.until.is_some_and(|end| end <= now) {
                (worker.until, worker.done, moved) = (None, worker.done + 1, true);
            }
        }
        if staging.until.is_none() && staging.done < staged.len() {
            let step = staging.done;
            // Two are under way: the copy of the one before the last one has ended.
            if step < 2 || copying.done > staged[step - 2] {
                let copy = staged[step];
                let end = now + times(copy).0;
                staging.until = Some(end);
                events.push(event(Lane::Staging, streamed[copy % n], copy / n, now, end));
            }
        }
        if copying.until.is_none() && copying.done < copies {
            let copy = copying.done;
            let staged = times(copy).0 == 0 || staged[..staging.done].last().is_some_and(|last| *last >= copy);
            // The compute that last used its slot has ended.
            if staged && used(computing.done) + slots > copy {
                let end = now + times(copy).1;
                copying.until = Some(end);
                events.push(event(Lane::Copy, streamed[copy % n], copy / n, now, end));
            }
        }
        if computing.until.is_none() && computing.done < computes {
            let step = computing.done;
            let job = &jobs[step % jobs.len()];
            let needs = if slots >= n { used(step) % n.max(1) } else { used(step) };
            if job.copied.is_none() || copying.done > needs {
                let end = now + job.compute;
                computing.until = Some(end);
                computed = end;
                events.push(event(Lane::Compute, step % jobs.len(), step / jobs.len(), now, end));
            }
        }
        let next = [&staging, &copying, &computing].into_iter().filter_map(|w| w.until).min();
        match next {
            Some(next) => now = next,
            None if moved => {}
            None => break,
        }
    }
    assert_eq!((copying.done, computing.done), (copies, computes), "nothing waits for ever");
    Visit { component: String::new(), phase: 0, passes, start: 0, loaded: 0, computed, end: now, events }
}

fn event(lane: Lane, group: usize, pass: usize, start: Time, end: Time) -> Event {
    Event { lane, group: Some(group), pass: pass as u64, start, end }
}
