//! The cost model: a plan as a schedule of what is copied and computed when.

use crate::{
    Basis, Component, HostTier, Infeasible, Machine, Plan, Predicted, PredictedComponent,
    input::Input,
    part::{self, Part},
    rates::Rates,
    recurrence::{Observer, Work},
};
use alloc::{format, string::String, vec::Vec};

/// Spans that a schedule lists per visit, at the most; a pass is listed whole or not at all, but the first.
const MAX_SPANS: usize = 8192;

/// What runs beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Lane {
    /// From a mapping into page-locked memory.
    Staging,
    /// From the host to the device.
    Copy,
    /// The compute stream.
    Compute,
}

/// Something that occupies a lane. Nanoseconds since the request's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Span {
    /// Where.
    pub lane: Lane,
    /// Index into [`Schedule::visits`].
    pub visit: usize,
    /// The group, counted through all stacks; `None`: the component's load.
    pub group: Option<usize>,
    /// The pass in which it computes, from 0 in each visit. A copy that fills a slot for the next request has the number
    /// of passes; it is listed where all passes are.
    pub pass: u64,
    /// Begin.
    pub start_ns: u64,
    /// End.
    pub end_ns: u64,
}

/// A component's passes in one phase, one after the other. Nanoseconds since the request's begin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Visit {
    /// Whose weights.
    pub component: String,
    /// Index into [`Plan::phases`].
    pub phase: usize,
    /// Begin, loading included.
    pub start_ns: u64,
    /// Loaded; the first pass begins.
    pub loaded_ns: u64,
    /// The last compute's end.
    pub computed_ns: u64,
    /// End: for what stays on the device, its slots hold the first groups of the next request.
    pub end_ns: u64,
    /// Passes.
    pub passes: u64,
    /// Passes whose spans are listed, from the first.
    pub listed: u64,
    /// Waiting of compute for copies, loading not counted.
    pub stall_ns: u64,
}

/// Bytes from a time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemoryPoint {
    /// Nanoseconds since the request's begin.
    pub at_ns: u64,
    /// Engine bytes on the device.
    pub device: u64,
    /// Anonymous and page-locked bytes on the host.
    pub host: u64,
}

/// How long each lane is in use during a request, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Busy {
    /// Computing.
    pub compute_ns: u64,
    /// Copying streamed groups.
    pub copy_ns: u64,
    /// Filling page-locked memory for streamed groups.
    pub staging_ns: u64,
    /// Loading what does not stay between phases; nothing runs beside it.
    pub load_ns: u64,
}

/// A plan as it runs: one request of many alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Schedule {
    /// The whole request, nanoseconds.
    pub request_ns: u64,
    /// What no order of copies could beat for these placements, nanoseconds.
    pub lower_bound_ns: u64,
    /// Basis of the compute times; `Unknown`: some groups have none, which count as zero.
    pub compute: Basis,
    /// Per component that holds weights, in the plan's order.
    pub components: Vec<PredictedComponent>,
    /// In the order of time.
    pub visits: Vec<Visit>,
    /// What occupies the lanes, visit by visit.
    pub spans: Vec<Span>,
    /// Bytes held, from each time on.
    pub memory: Vec<MemoryPoint>,
    /// How long each lane is in use.
    pub busy: Busy,
}

/// Runs a plan by the cost model, without a device and without time passing.
///
/// The model is a recurrence over groups with one copy lane, one compute stream and one staging lane: copy j starts when
/// copy j−1 has ended, its staging has ended and the compute that last used its slot has ended; compute i starts when
/// compute i−1 has ended and its own copy, if streamed, has ended; staging j starts when staging j−1 has ended and the
/// copy before the last one has. Passes follow one another, so the next pass's first copies run beside this one's last
/// computes. Where each streamed group has a slot of its own, it is copied once and stays.
///
/// A request visits the components phase by phase. What does not stay on the device is loaded first, with nothing beside
/// it; what stays finds its slots filled, and its visit ends when they are filled again. Times that exceed 64 bits are
/// capped.
///
/// Unknown compute times count as zero; but through one slot, where no copy can run beside the use of what it brings, a
/// streamed group of unknown compute counts as computing as long as its copy takes on the lane. Else one slot would always
/// look best.
///
/// # Errors
///
/// [`Infeasible::BadInput`] where the plan is not one for these components, or the machine has no device or no measured
/// links.
pub fn simulate(machine: &Machine, components: &[Component], plan: &Plan) -> Result<Schedule, Infeasible> {
    let input = Input::new(components)?;
    let parts = Part::all(&input);
    check(&input, &parts, plan)?;
    let Some(rates) = Rates::of(machine, part::stored(&parts)) else {
        return bad("this machine has no device, or its links were never measured".into());
    };
    Ok(run(&rates, &input, &parts, plan, true))
}

/// The times of a plan that is known to be one for these parts.
pub(crate) fn predict(rates: &Rates, input: &Input<'_>, parts: &[Part<'_>], plan: &Plan) -> Schedule {
    run(rates, input, parts, plan, false)
}

impl Schedule {
    /// The times without the spans.
    pub fn predicted(&self) -> Predicted {
        Predicted {
            request_ns: self.request_ns,
            lower_bound_ns: self.lower_bound_ns,
            compute: self.compute,
            components: self.components.clone(),
        }
    }
}

fn bad<T>(text: String) -> Result<T, Infeasible> {
    Err(Infeasible::BadInput { text })
}

fn check(input: &Input<'_>, parts: &[Part<'_>], plan: &Plan) -> Result<(), Infeasible> {
    if plan.components.len() != input.entries.len() || plan.phases.len() != input.phases.len() {
        return bad(format!(
            "the plan has {} components in {} phases, there are {} in {}: plan anew",
            plan.components.len(),
            plan.phases.len(),
            input.entries.len(),
            input.phases.len()
        ));
    }
    for (entry, placed) in input.entries.iter().zip(&plan.components) {
        if entry.component.name != placed.name {
            return bad(format!("the plan has `{}` where `{}` is: plan anew", placed.name, entry.component.name));
        }
    }
    for part in parts {
        let (name, placed) = (&part.component.name, &plan.components[part.index]);
        let shapes = || part.component.stacks.iter().zip(&placed.stacks);
        let same = part.component.stacks.len() == placed.stacks.len()
            && shapes()
                .all(|(s, p)| s.name == p.name && s.groups.len() == p.resident.len() && s.groups.len() == p.host.len());
        if placed.same_as.is_some() || !same {
            return bad(format!("the plan's stacks of `{name}` are not those it has: plan anew"));
        }
        if placed.streamed_count() > 0 && (!part.streamable || placed.slots == 0) {
            return bad(format!("the plan streams `{name}`, which cannot be streamed, or has no slot for it"));
        }
    }
    Ok(())
}

/// Where each group streams from; `None`: resident.
fn tiers(plan: &Plan, part: &Part<'_>) -> Vec<Option<HostTier>> {
    let stacks = plan.components[part.index].stacks.iter();
    stacks.flat_map(|s| s.resident.iter().zip(&s.host).map(|(resident, tier)| (!resident).then_some(*tier))).collect()
}

fn run(rates: &Rates, input: &Input<'_>, parts: &[Part<'_>], plan: &Plan, detail: bool) -> Schedule {
    let host = plan.peak.host;
    let unknown = parts.iter().any(|part| part.unknown() > 0);
    let mut schedule = Schedule {
        request_ns: 0,
        lower_bound_ns: 0,
        compute: if unknown { Basis::Unknown } else { Basis::Measured },
        components: Vec::with_capacity(parts.len()),
        visits: Vec::new(),
        spans: Vec::new(),
        memory: Vec::new(),
        busy: Busy::default(),
    };
    // Per part: its course, what a pass does, and its load.
    let prepared: Vec<_> = parts
        .iter()
        .map(|part| {
            let (placed, tiers) = (&plan.components[part.index], tiers(plan, part));
            let times = |i: usize| tiers[i].map(|tier| rates.stream(part.groups[i].0, tier));
            let course = part.course(placed.slots as usize, times);
            let load = if placed.keep { 0 } else { part.load(rates, |i| tiers[i].is_some()) };
            let pass_ns = if part.passes() == 0 { 0 } else { course.settled_pass() };
            schedule.components.push(PredictedComponent {
                name: part.component.name.clone(),
                pass_ns,
                lower_bound_ns: course.work().bound(),
                passes: part.passes(),
                load_ns: 0,
                stall_ns: 0,
            });
            (course, load, tiers)
        })
        .collect();
    for (phase, (planned, own)) in plan.phases.iter().zip(&input.phases).enumerate() {
        let at_ns = schedule.request_ns;
        schedule.memory.push(MemoryPoint { at_ns, device: planned.engine_bytes, host });
        for entry in &own.entries {
            // By name; aliases are their holders' passes.
            let Ok(place) = parts.binary_search_by_key(entry, |part| part.index) else { continue };
            let part = &parts[place];
            let Some((_, passes)) = part.visits.iter().find(|(p, passes)| *p == phase && *passes > 0) else { continue };
            let (course, load, tiers) = &prepared[place];
            let keep = plan.components[part.index].keep;
            let start_ns = schedule.request_ns;
            let visit = schedule.visits.len();
            let mut recorder = Recorder {
                part,
                tiers,
                spans: Vec::new(),
                visit,
                listed: 0,
                more: true,
                at: *load,
                streamed: Vec::new(),
            };
            if detail {
                recorder.streamed = (0..tiers.len()).filter(|i| tiers[*i].is_some()).collect();
                if *load > 0 {
                    recorder.push(Lane::Copy, None, 0, (0, *load));
                }
            }
            let outcome = if detail {
                course.visit(*passes, keep, *load, &mut recorder)
            } else {
                course.visit(*passes, keep, *load, &mut ())
            };
            let work = course.visit_work(*passes, keep);
            let stall_ns = outcome.total.saturating_sub(*load).saturating_sub(work.compute);
            let later = |time: u64| start_ns.saturating_add(time);
            schedule.spans.extend(recorder.spans.into_iter().map(|span| Span {
                start_ns: later(span.start_ns),
                end_ns: later(span.end_ns),
                ..span
            }));
            schedule.visits.push(Visit {
                component: part.component.name.clone(),
                phase,
                start_ns,
                loaded_ns: later(*load),
                computed_ns: later(outcome.computed),
                end_ns: later(outcome.total),
                passes: *passes,
                listed: recorder.listed,
                stall_ns,
            });
            schedule.request_ns = later(outcome.total);
            schedule.lower_bound_ns = schedule.lower_bound_ns.saturating_add(load.saturating_add(work.bound()));
            schedule.busy.add(work, *load);
            let predicted = &mut schedule.components[place];
            predicted.load_ns = predicted.load_ns.saturating_add(*load);
            predicted.stall_ns = predicted.stall_ns.saturating_add(stall_ns);
        }
    }
    schedule
}

impl Busy {
    fn add(&mut self, work: Work, load: u64) {
        let add = |sum: &mut u64, time: u64| *sum = sum.saturating_add(time);
        add(&mut self.compute_ns, work.compute);
        add(&mut self.copy_ns, work.copy);
        add(&mut self.staging_ns, work.stage);
        self.load_ns = self.load_ns.saturating_add(load);
    }
}

/// Writes down what occupies the lanes during a visit.
struct Recorder<'a> {
    part: &'a Part<'a>,
    tiers: &'a [Option<HostTier>],
    spans: Vec<Span>,
    visit: usize,
    listed: u64,
    /// The next pass is listed too.
    more: bool,
    /// The last compute's end.
    at: u64,
    /// Groups that stream, in order.
    streamed: Vec<usize>,
}

impl Recorder<'_> {
    fn push(&mut self, lane: Lane, group: Option<usize>, pass: u64, (start_ns, end_ns): (u64, u64)) {
        self.spans.push(Span { lane, visit: self.visit, group, pass, start_ns, end_ns });
    }

    /// The residents from `from` on compute one after the other.
    fn residents(&mut self, pass: u64, from: usize) {
        for group in from..self.tiers.len() {
            if self.tiers[group].is_some() {
                break;
            }
            let end = self.at.saturating_add(self.part.groups[group].1.compute);
            self.push(Lane::Compute, Some(group), pass, (self.at, end));
            self.at = end;
        }
    }
}

impl Observer for Recorder<'_> {
    fn item(
        &mut self,
        pass: u64,
        item: usize,
        stage: Option<(u64, u64)>,
        copy: Option<(u64, u64)>,
        compute: (u64, u64),
    ) {
        if !self.listens() {
            return;
        }
        let group = Some(self.streamed[item]);
        self.residents(pass, if item == 0 { 0 } else { self.streamed[item - 1] + 1 });
        for (lane, span) in [(Lane::Staging, stage), (Lane::Copy, copy), (Lane::Compute, Some(compute))] {
            if let Some(span) = span {
                self.push(lane, group, pass, span);
            }
        }
        self.at = compute.1;
    }

    fn pass(&mut self, pass: u64) {
        if self.more {
            self.residents(pass, self.streamed.last().map_or(0, |last| last + 1));
            self.listed = pass + 1;
            // As long as one pass more, as long as this one, stays within the limit.
            let (groups, streamed) = (self.tiers.len(), self.streamed.len());
            self.more = self.spans.len() + groups + 2 * streamed <= MAX_SPANS && self.listed < MAX_SPANS as u64;
        }
    }

    fn refill(&mut self, passes: u64, item: usize, stage: Option<(u64, u64)>, copy: (u64, u64)) {
        // Where not all passes were simulated these are not the last copies' times.
        if self.listed == passes {
            for (lane, span) in [(Lane::Staging, stage), (Lane::Copy, Some(copy))] {
                if let Some(span) = span {
                    self.push(lane, Some(self.streamed[item]), passes, span);
                }
            }
        }
    }

    fn listens(&self) -> bool {
        self.more
    }
}
