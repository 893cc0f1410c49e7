//! A plan as a picture: one request over time, and one pass of what takes longest.

mod axis;
mod labels;
mod request;
mod sheet;
mod steady;
mod usage;

use crate::plan_table::certainty;
use crate::size::{show, show_rate};
use crate::table::time;
use mm_plan::{Lane, Machine, Plan, Schedule, Span};
use sheet::{Paint, Sheet};

/// An SVG document. Texts are SVG text: no font is needed to make it.
pub(crate) fn draw(machine: &Machine, plan: &Plan, schedule: &Schedule) -> String {
    let mut sheet = Sheet::new(&format!("One request in {}", time(schedule.request_ns)));
    let (bound, certainty) = (time(schedule.lower_bound_ns), certainty(&schedule.predicted(), plan.proof));
    sheet.caption(&format!("These placements take at least {bound}; {certainty}"));
    sheet.caption(&memory(machine, plan));
    let scene = Scene::new(plan, schedule);
    if schedule.request_ns == 0 {
        sheet.caption("No time to draw: nothing is copied, and what is computed counts as zero.");
    } else {
        request::draw(&mut sheet, &scene);
        steady::draw(&mut sheet, &scene);
    }
    sheet.finish()
}

fn memory(machine: &Machine, plan: &Plan) -> String {
    let budget = plan.budget.map_or(String::new(), |budget| format!(" of {} free", show(budget)));
    let mut text = format!(
        "{}: at most {}{budget} on the device, {} of host memory",
        plan.strategy,
        show(plan.peak.device),
        show(plan.peak.host)
    );
    if let Some(links) = machine.links {
        text += &format!("; link {}", show_rate(links.h2d));
        if let Some(staging) = links.staging {
            text += &format!(", staging {}", show_rate(staging));
        }
    }
    text
}

/// What is drawn.
struct Scene<'a> {
    plan: &'a Plan,
    schedule: &'a Schedule,
    /// Per visit: whether each group streams, all stacks one after the other.
    streams: Vec<Vec<bool>>,
}

impl<'a> Scene<'a> {
    fn new(plan: &'a Plan, schedule: &'a Schedule) -> Self {
        let streams = schedule.visits.iter().map(|visit| {
            let stacks = plan.component(&visit.component).map_or(&[][..], |part| &part.stacks);
            stacks.iter().flat_map(|stack| &stack.resident).map(|resident| !resident).collect()
        });
        Self { plan, schedule, streams: streams.collect() }
    }

    fn paint(&self, span: &Span) -> Paint {
        match (span.lane, span.group) {
            (Lane::Staging, _) => Paint::Staging,
            (Lane::Copy, None) => Paint::Load,
            (Lane::Copy, Some(_)) => Paint::Copy,
            (Lane::Compute, Some(group)) if self.is_streamed(span.visit, group) => Paint::Streamed,
            (Lane::Compute, _) => Paint::Resident,
        }
    }

    fn is_streamed(&self, visit: usize, group: usize) -> bool {
        self.streams.get(visit).and_then(|groups| groups.get(group)).copied().unwrap_or(false)
    }

    /// Lanes that are in use, from top to bottom.
    fn lanes<'s>(&self, spans: impl Iterator<Item = &'s Span> + Clone) -> Vec<Lane> {
        let used = |lane| lane != Lane::Staging || spans.clone().any(|span| span.lane == lane);
        [Lane::Staging, Lane::Copy, Lane::Compute].into_iter().filter(|lane| used(*lane)).collect()
    }
}

fn name(lane: Lane) -> &'static str {
    match lane {
        Lane::Staging => "staging",
        Lane::Copy => "copy",
        Lane::Compute => "compute",
    }
}
