//! The whole request: who is at work, what each lane does, and the memory on the device.

use super::axis::{ByteAxis, TimeAxis};
use super::labels::{Label, place};
use super::sheet::{Anchor, Area, LEFT, Paint, RIGHT, Sheet, text_width};
use super::usage::Usage;
use super::{Scene, name};
use crate::size::show;
use mm_plan::{Lane, Visit};
use std::collections::BTreeMap;

const LANE: f64 = 30.0;
const MEMORY: f64 = 110.0;

pub(super) fn draw(sheet: &mut Sheet, scene: &Scene<'_>) {
    let schedule = scene.schedule;
    sheet.head("The request");
    sheet.caption("Bars are as high as the share of time that a lane is in use.");
    let axis = TimeAxis::new(0, schedule.request_ns);
    let bands = Bands::of(&schedule.visits, axis);
    let top = sheet.y + bands.height();
    // Grounds first, then the grid, then what stands on it.
    sheet.y = top + 26.0;
    let lanes = scene.lanes(schedule.spans.iter());
    let ys: Vec<f64> = lanes.iter().map(|lane| track(sheet, name(*lane), LANE)).collect();
    let memory = (sheet.y + 20.0, sheet.y + 20.0 + MEMORY);
    axis.draw(sheet, top, memory.1);
    bands.draw(sheet, top);
    let mut usage = usage(scene, axis);
    for (lane, y) in lanes.into_iter().zip(ys) {
        let busy = match lane {
            Lane::Staging => schedule.busy.staging_ns,
            Lane::Copy => schedule.busy.copy_ns.saturating_add(schedule.busy.load_ns),
            Lane::Compute => schedule.busy.compute_ns,
        };
        let busy = format!("{} busy", percent(busy, schedule.request_ns));
        sheet.text("tick", (LEFT - 8.0, y + 26.0), Anchor::End, &busy);
        let mut below = Usage::new();
        for ((_, paint), usage) in usage.iter_mut().filter(|((of, _), _)| *of == lane) {
            usage.blur();
            sheet.areas(*paint, usage.areas(&mut below, y, LANE));
        }
    }
    draw_memory(sheet, scene, axis, memory);
    sheet.y = memory.1 + 20.0;
}

/// A lane's name and ground; the sheet moves below it. Returns its top.
pub(super) fn track(sheet: &mut Sheet, name: &str, height: f64) -> f64 {
    let y = sheet.y;
    sheet.rectangle("track", Area { x: LEFT, y, width: RIGHT - LEFT, height });
    sheet.text("lane", (LEFT - 8.0, y + 13.0), Anchor::End, name);
    sheet.y += height + 6.0;
    y
}

fn percent(part: u64, whole: u64) -> String {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    match permille {
        1..10 => "< 1 %".into(),
        _ => format!("{} %", (permille + 5) / 10),
    }
}

/// Who is at work when: a band, with names in it where they fit and above it where not.
struct Bands {
    /// From, to, and the name.
    bands: Vec<(f64, f64, Option<String>)>,
    labels: Vec<Label>,
}

impl Bands {
    fn of(visits: &[Visit], axis: TimeAxis) -> Self {
        let (mut bands, mut narrow) = (Vec::new(), Vec::new());
        for visit in visits {
            let (from, to) = (axis.x(visit.start_ns), axis.x(visit.end_ns));
            let whole = match visit.passes {
                1 => visit.component.clone(),
                passes => format!("{}, {passes} passes", visit.component),
            };
            let fits = |text: &&String| text_width(text, 12.0) + 8.0 <= to - from;
            let inside = [&whole, &visit.component].into_iter().find(fits).cloned();
            if inside.is_none() {
                narrow.push((f64::midpoint(from, to), whole));
            }
            bands.push((from, to, inside));
        }
        Self { bands, labels: place(narrow) }
    }

    /// Of what is above the band.
    fn height(&self) -> f64 {
        12.0 + self.labels.iter().map(|label| label.row + 1).max().unwrap_or(0) as f64 * 16.0
    }

    fn draw(self, sheet: &mut Sheet, top: f64) {
        for Label { text, x, row, leftward } in self.labels {
            let y = top - 6.0 - row as f64 * 16.0;
            sheet.line("leader", (x, y - 9.0), (x, top));
            let (dx, anchor) = if leftward { (-4.0, Anchor::End) } else { (4.0, Anchor::Start) };
            sheet.text("label", (x + dx, y), anchor, &text);
        }
        let mut drawn = f64::MIN;
        for (from, to, name) in self.bands {
            // What would lie under the one before is not seen.
            let end = to.max(from + 1.0);
            if end > drawn + 0.5 {
                let width = if end - from > 3.0 { end - from - 1.0 } else { end - from };
                sheet.rectangle("visit", Area { x: from, y: top, width, height: 20.0 });
                drawn = end;
            }
            if let Some(name) = name {
                sheet.text("inside", (f64::midpoint(from, to), top + 14.0), Anchor::Middle, &name);
            }
        }
    }
}

/// What of each pixel's time each lane is in use for what.
fn usage(scene: &Scene<'_>, axis: TimeAxis) -> BTreeMap<(Lane, Paint), Usage> {
    let mut usage: BTreeMap<(Lane, Paint), Usage> = BTreeMap::new();
    for spans in scene.schedule.spans.chunk_by(|a, b| a.visit == b.visit) {
        let visit = &scene.schedule.visits[spans[0].visit];
        let last = || spans.iter().filter(|span| span.group.is_some() && span.pass + 1 == visit.listed);
        let listed = last().filter(|span| span.lane == Lane::Compute).map(|span| span.end_ns).max();
        let listed = listed.filter(|_| visit.passes > visit.listed).unwrap_or(u64::MAX);
        for span in spans.iter().filter(|span| span.start_ns < listed) {
            let usage = usage.entry((span.lane, scene.paint(span))).or_insert_with(Usage::new);
            usage.bar(axis.x(span.start_ns), axis.x(span.end_ns.min(listed)));
        }
        // Passes that are not listed go on as the last one that is.
        let rest = visit.computed_ns.saturating_sub(listed);
        let mut sums: BTreeMap<(Lane, Paint), f64> = BTreeMap::new();
        for span in last().filter(|_| rest > 0) {
            *sums.entry((span.lane, scene.paint(span))).or_default() += (span.end_ns - span.start_ns) as f64;
        }
        for (key, sum) in sums {
            let share = sum * (visit.passes - visit.listed) as f64 / rest as f64;
            usage.entry(key).or_insert_with(Usage::new).add(axis.x(listed), axis.x(visit.computed_ns), share);
        }
    }
    usage
}

/// Device bytes over time against the budget.
fn draw_memory(sheet: &mut Sheet, scene: &Scene<'_>, axis: TimeAxis, (top, bottom): (f64, f64)) {
    let (plan, schedule) = (scene.plan, scene.schedule);
    let expected = |visit: &Visit| {
        let phase = plan.phases.get(visit.phase)?;
        Some(phase.engine_bytes.saturating_add(phase.activation?.bytes))
    };
    let most = schedule.visits.iter().filter_map(expected).max().unwrap_or(0);
    let most = most.max(plan.budget.unwrap_or(0)).max(plan.peak.device);
    let bytes = ByteAxis { most, top, bottom };
    bytes.draw(sheet);
    let area = |from: u64, to: u64, height: u64| {
        let (x, y) = (axis.x(from), bytes.y(height));
        Area { x, y, width: axis.x(to) - x, height: bytes.bottom - y }
    };
    let visible = |area: &Area| area.width > 0.02;
    let activations = schedule.visits.iter();
    let activations = activations.filter_map(|v| expected(v).map(|top| area(v.start_ns, v.end_ns, top)));
    sheet.areas(Paint::Activation, activations.filter(visible));
    let ends = schedule.memory.iter().skip(1).map(|point| point.at_ns).chain([schedule.request_ns]);
    let held = schedule.memory.iter().zip(ends).map(|(point, end)| area(point.at_ns, end, point.device));
    sheet.areas(Paint::Memory, held.filter(visible));
    if let Some(budget) = plan.budget {
        sheet.budget(bytes.y(budget), &format!("budget {}", show(budget)));
    }
}
