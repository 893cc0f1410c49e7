//! One pass of the component that takes longest, group by group.

use super::axis::TimeAxis;
use super::request::track;
use super::sheet::{Anchor, Area, LEFT, Paint, RIGHT, Sheet, fit, text_width};
use super::{Scene, name};
use crate::size::show;
use crate::table::time;
use mm_plan::{ComponentPlan, Lane, Span, Visit};
use std::collections::BTreeMap;
use std::ops::Range;

/// Groups that are drawn at the most: more could not be told apart.
const MOST: usize = 240;
const LANE: f64 = 34.0;
const GAP: f64 = 6.0;

pub(super) fn draw(sheet: &mut Sheet, scene: &Scene<'_>) {
    let Some(detail) = Detail::of(scene) else { return };
    detail.heads(sheet);
    let axis = TimeAxis::new(detail.start, detail.end);
    let shifted = |at: u64| axis.x(at);
    sheet.y += 12.0;
    let top = sheet.y;
    let lanes = scene.lanes(detail.spans.iter().copied());
    for lane in &lanes {
        track(sheet, name(*lane), LANE);
    }
    TimeAxis::new(0, detail.end - detail.start).draw(sheet, top, sheet.y - GAP + detail.stacks_height());
    let mut y = top;
    for lane in lanes {
        let area = |from: u64, to: u64| {
            let (from, to) = (shifted(from), shifted(to));
            // A hair between bars that are wide enough; what takes no time is a hair itself.
            let hair = if to - from > 3.0 { 0.5 } else { 0.0 };
            Area { x: from + hair, y: y + 2.0, width: (to - from - 2.0 * hair).max(0.6), height: LANE - 4.0 }
        };
        let bars = detail.spans.iter().filter(|span| span.lane == lane);
        if lane == Lane::Compute {
            detail.waits(|from, to| {
                if shifted(to) - shifted(from) > 0.4 {
                    sheet.bar(Paint::Wait, area(from, to), &format!("compute waits {}", time(to - from)));
                }
            });
        }
        for span in bars {
            let area = area(span.start_ns, span.end_ns);
            let next = span.pass > detail.pass;
            if next {
                sheet.pale_bar(scene.paint(span), area, &detail.says(span));
            } else {
                sheet.bar(scene.paint(span), area, &detail.says(span));
            }
            let number = span.group.map_or(String::new(), |group| group.to_string());
            if text_width(&number, 11.0) + 2.0 <= area.width {
                let class = if next { "number" } else { "number inside" };
                sheet.text(class, (area.x + area.width / 2.0, y + 21.0), Anchor::Middle, &number);
            }
        }
        y += LANE + GAP;
    }
    sheet.y = y - GAP;
    detail.stacks(sheet, shifted);
    sheet.y += 20.0;
}

/// What is drawn of a visit. Nanoseconds.
struct Detail<'a> {
    visit: &'a Visit,
    part: &'a ComponentPlan,
    pass: u64,
    /// Groups that are shown, of how many.
    shown: Range<usize>,
    groups: usize,
    start: u64,
    end: u64,
    /// The whole pass, and what of it compute waits.
    took: u64,
    waits: u64,
    /// What runs in that time.
    spans: Vec<&'a Span>,
}

impl<'a> Detail<'a> {
    /// `None`: there is no pass that takes time.
    fn of(scene: &Scene<'a>) -> Option<Self> {
        let schedule = scene.schedule;
        let mut times: BTreeMap<&str, u64> = BTreeMap::new();
        for visit in schedule.visits.iter().filter(|visit| visit.computed_ns > visit.loaded_ns) {
            *times.entry(&visit.component).or_default() += visit.end_ns - visit.start_ns;
        }
        let (longest, _) = times.into_iter().max_by_key(|(_, time)| *time)?;
        let visits = schedule.visits.iter().enumerate().filter(|(_, visit)| visit.component == longest);
        let (index, visit) = visits.max_by_key(|(_, visit)| visit.computed_ns - visit.loaded_ns)?;
        let spans: Vec<_> = schedule.spans.iter().filter(|span| span.visit == index && span.group.is_some()).collect();
        // The middle of what is listed: the lanes have settled, and the pass after it is listed too.
        let pass = (visit.listed / 2).min(visit.listed.checked_sub(1)?);
        let computes = |pass: u64| spans.iter().filter(move |span| span.lane == Lane::Compute && span.pass == pass);
        let ends =
            |group: usize| computes(pass).filter(move |span| span.group == Some(group)).map(|span| span.end_ns).next();
        let begin = match pass {
            0 => visit.loaded_ns,
            pass => computes(pass - 1).map(|span| span.end_ns).max()?,
        };
        let took = computes(pass).map(|span| span.end_ns).max()?.saturating_sub(begin);
        let computing: u64 = computes(pass).map(|span| span.end_ns - span.start_ns).sum();
        let groups = scene.streams[index].len();
        let first = match scene.streams[index].iter().position(|streams| *streams) {
            Some(first) if groups > MOST => first.min(groups - MOST),
            _ => 0,
        };
        let shown = first..groups.min(first + MOST);
        let start = if first == 0 { begin } else { ends(first - 1)? };
        let end = ends(shown.end.checked_sub(1)?)?;
        let within = |span: &&Span| match span.lane {
            Lane::Compute => span.pass == pass && span.group.is_some_and(|group| shown.contains(&group)),
            _ => span.pass >= pass && span.end_ns > start && span.start_ns < end,
        };
        let spans = spans.iter().copied().filter(within).collect();
        let part = scene.plan.component(longest)?;
        let waits = took.saturating_sub(computing);
        (end > start).then_some(Self { visit, part, pass, shown, groups, start, end, took, waits, spans })
    }

    fn heads(&self, sheet: &mut Sheet) {
        let Self { visit, part, .. } = self;
        let which = match visit.passes {
            1 => "its pass".to_owned(),
            passes => format!("pass {} of {passes}", self.pass + 1),
        };
        let waits = if self.waits == 0 { "never waits".to_owned() } else { format!("waits {}", time(self.waits)) };
        sheet.head(&format!("{}, {which}: {}, compute {waits}", visit.component, time(self.took)));
        let mut text = match part.streamed_count() {
            0 => format!("All {} groups are resident", self.groups),
            count => format!(
                "{count} of {} groups stream through {} of {}",
                self.groups,
                if part.slots == 1 { "one slot".to_owned() } else { format!("{} slots", part.slots) },
                show(part.slot_bytes)
            ),
        };
        if self.shown.len() < self.groups {
            text += &format!("; groups {} to {} are shown", self.shown.start, self.shown.end - 1);
        }
        sheet.caption(&text);
    }

    /// Calls back with each stretch in which nothing is computed.
    fn waits(&self, mut each: impl FnMut(u64, u64)) {
        let mut at = self.start;
        for span in self.spans.iter().filter(|span| span.lane == Lane::Compute) {
            if span.start_ns > at {
                each(at, span.start_ns);
            }
            at = at.max(span.end_ns);
        }
    }

    fn says(&self, span: &Span) -> String {
        let group = self.named(span.group.unwrap_or(0));
        let took = time(span.end_ns - span.start_ns);
        match span.lane {
            Lane::Compute => format!("{group} computes for {took}"),
            lane => {
                let next = if span.pass > self.pass { ", for the next pass" } else { "" };
                format!("{} of {group} takes {took}{next}", name(lane))
            }
        }
    }

    /// A group by its stack: `layers.3`.
    fn named(&self, group: usize) -> String {
        let mut index = group;
        for stack in &self.part.stacks {
            if index < stack.resident.len() {
                return format!("{}.{index}", stack.name);
            }
            index -= stack.resident.len();
        }
        group.to_string()
    }

    fn stacks_height(&self) -> f64 {
        if self.part.stacks.len() > 1 { 20.0 } else { 0.0 }
    }

    /// Where each stack computes, if there are several.
    fn stacks(&self, sheet: &mut Sheet, x: impl Fn(u64) -> f64) {
        let y = sheet.y + 6.0;
        let mut first = 0;
        for stack in self.part.stacks.iter().filter(|_| self.part.stacks.len() > 1) {
            let groups = first..first + stack.resident.len();
            first = groups.end;
            let own = || {
                let computes = self.spans.iter().filter(|span| span.lane == Lane::Compute);
                computes.filter(|span| span.group.is_some_and(|group| groups.contains(&group)))
            };
            let (Some(from), Some(to)) = (own().map(|s| s.start_ns).min(), own().map(|s| s.end_ns).max()) else {
                continue;
            };
            let (from, to) = (x(from).max(LEFT) + 1.0, x(to).min(RIGHT) - 1.0);
            sheet.line("axis", (from, y), (to, y));
            if let Some(text) = fit(&stack.name, 11.0, to - from) {
                sheet.text("tick halo", (f64::midpoint(from, to), y + 12.0), Anchor::Middle, &text);
            }
        }
        sheet.y += self.stacks_height();
    }
}
