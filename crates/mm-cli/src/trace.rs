//! `mm trace`: sums up a timeline that `mm run --timeline` recorded.

use crate::args::TraceArgs;
use crate::exit::Failure;
use crate::size::show;
use crate::table::{Table, print, print_document, time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;

pub(crate) fn run(args: &TraceArgs) -> Result<(), Failure> {
    let bad = |reason: String| Failure::File { code: "bad_trace", file: args.file.clone(), reason };
    let text = fs::read(&args.file).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let trace: Trace = serde_json::from_slice(&text)
        .map_err(|error| bad(format!("is no timeline of `mm run --timeline`: {error}")))?;
    if trace.other.schema != 1 {
        return Err(bad(format!("is a timeline of schema {}; this version reads 1", trace.other.schema)));
    }
    let summary = Summary::of(&trace).map_err(bad)?;
    if args.json {
        return print_document(&summary);
    }
    print(table(&summary))
}

/// A Chrome trace, as far as it is read.
#[derive(Deserialize)]
struct Trace {
    #[serde(rename = "traceEvents")]
    events: Vec<Event>,
    #[serde(rename = "otherData")]
    other: Other,
}

#[derive(Deserialize)]
struct Other {
    schema: u32,
    budget: u64,
    planned: u64,
    #[serde(default)]
    dropped_events: u64,
}

#[derive(Deserialize)]
struct Event {
    ph: String,
    #[serde(default)]
    cat: String,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    component: String,
    bytes: Option<u64>,
}

/// What happened in all. Bytes and nanoseconds.
#[derive(Debug, Serialize)]
struct Summary {
    schema: u32,
    /// From the first event's start to the last one's end.
    duration_ns: u64,
    #[serde(flatten)]
    all: Work,
    /// Of the time in which a copy ran, how much of it a compute ran too.
    overlap_permille: u64,
    peak: Peak,
    /// Events that the recording had no room for; the oldest.
    dropped_events: u64,
    components: Vec<Component>,
}

#[derive(Debug, Serialize)]
struct Peak {
    device: u64,
    planned_device: u64,
    budget: u64,
}

#[derive(Debug, Serialize)]
struct Component {
    name: String,
    #[serde(flatten)]
    work: Work,
}

/// Sums over events; copies that run at the same time each count.
#[derive(Debug, Default, Serialize)]
struct Work {
    passes: u64,
    pass_ns: u64,
    copied_bytes: u64,
    copy_ns: u64,
    compute_ns: u64,
    stall_ns: u64,
}

/// Start and end, nanoseconds.
type Span = (u64, u64);

impl Summary {
    fn of(trace: &Trace) -> Result<Self, String> {
        let (mut all, mut components, mut peak) = (Work::default(), BTreeMap::<&str, Work>::new(), 0);
        let (mut copies, mut computes) = (Vec::new(), Vec::new());
        let (mut first, mut last) = (u64::MAX, 0);
        for (index, event) in trace.events.iter().enumerate() {
            let at =
                |name, value| nanoseconds(value).ok_or_else(|| format!("event {index}: `{name}` is {value}, no time"));
            let start = at("ts", event.ts)?;
            let span = (start, start.saturating_add(at("dur", event.dur)?));
            let bytes = event.args.bytes;
            match (event.ph.as_str(), event.cat.as_str()) {
                ("X", "copy") => copies.push(span),
                ("X", "compute") => computes.push(span),
                ("X", "pass" | "stall") => {}
                ("C", "allocate" | "free") => {
                    let in_use = bytes.ok_or_else(|| format!("event {index}: a memory count without `bytes`"))?;
                    peak = peak.max(in_use);
                }
                // Whatever else a viewer may have added, names of rows among it.
                _ => continue,
            }
            (first, last) = (first.min(span.0), last.max(span.1));
            if event.ph == "X" {
                all.add(&event.cat, span, bytes.unwrap_or(0));
                components.entry(&event.args.component).or_default().add(&event.cat, span, bytes.unwrap_or(0));
            }
        }
        let component = |(name, work): (&str, Work)| Component { name: name.to_owned(), work };
        Ok(Self {
            schema: 1,
            duration_ns: last.saturating_sub(first),
            all,
            overlap_permille: overlap(copies, computes),
            peak: Peak { device: peak, planned_device: trace.other.planned, budget: trace.other.budget },
            dropped_events: trace.other.dropped_events,
            components: components.into_iter().map(component).collect(),
        })
    }
}

impl Work {
    fn add(&mut self, kind: &str, (start, end): Span, bytes: u64) {
        let sum = match kind {
            "copy" => {
                self.copied_bytes = self.copied_bytes.saturating_add(bytes);
                &mut self.copy_ns
            }
            "compute" => &mut self.compute_ns,
            "stall" => &mut self.stall_ns,
            _ => {
                self.passes += 1;
                &mut self.pass_ns
            }
        };
        *sum = sum.saturating_add(end - start);
    }
}

/// Microseconds of the file in whole nanoseconds; `None` for what is no time.
fn nanoseconds(micros: f64) -> Option<u64> {
    let ns = (micros * 1000.0).round();
    (ns.is_finite() && (0.0..1e18).contains(&ns)).then_some(ns as u64)
}

/// Permille of the time of `copies` in which a span of `computes` runs too.
fn overlap(copies: Vec<Span>, computes: Vec<Span>) -> u64 {
    let (copies, computes) = (union(copies), union(computes));
    let total: u64 = copies.iter().map(|(start, end)| end - start).sum();
    let (mut both, mut next) = (0, 0);
    for &(start, end) in &copies {
        while computes.get(next).is_some_and(|compute| compute.1 <= start) {
            next += 1;
        }
        for compute in computes[next..].iter().take_while(|compute| compute.0 < end) {
            both += end.min(compute.1) - start.max(compute.0);
        }
    }
    u64::try_from(u128::from(both) * 1000 / u128::from(total.max(1))).unwrap_or(0)
}

/// The same time without overlaps, in order.
fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for (start, end) in spans {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

fn table(summary: &Summary) -> String {
    let peak = &summary.peak;
    let mut components =
        Table::new(&["component", ">passes", ">pass time", ">copied", ">copying", ">computing", ">stalled"]);
    let row = |name: &str, work: &Work| {
        [
            name.to_owned(),
            work.passes.to_string(),
            time(work.pass_ns),
            show(work.copied_bytes),
            time(work.copy_ns),
            time(work.compute_ns),
            time(work.stall_ns),
        ]
    };
    for component in &summary.components {
        components.row(row(&component.name, &component.work));
    }
    components.row(row("all", &summary.all));
    let dropped = match summary.dropped_events {
        0 => String::new(),
        n => format!("\nThe oldest {n} events were not kept: sums are of the rest."),
    };
    format!(
        "duration  {}\noverlap   {}.{} % of copying ran beside computing\npeak      {} of {} on the device; planned {}\n\n{components}{dropped}",
        time(summary.duration_ns),
        summary.overlap_permille / 10,
        summary.overlap_permille % 10,
        show(peak.device),
        show(peak.budget),
        show(peak.planned_device),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_each_moment_once() {
        assert_eq!(overlap(vec![], vec![]), 0);
        assert_eq!(overlap(vec![(0, 10)], vec![]), 0);
        assert_eq!(overlap(vec![(0, 10)], vec![(0, 10)]), 1000);
        assert_eq!(overlap(vec![(0, 10), (0, 10)], vec![(5, 20), (5, 6)]), 500);
        assert_eq!(overlap(vec![(0, 4), (6, 10)], vec![(3, 7), (9, 30)]), 375);
        assert_eq!(overlap(vec![(0, 100)], vec![(10, 20), (30, 40), (100, 110)]), 200);
        assert_eq!(overlap(vec![(20, 30), (0, 10)], vec![(25, 26), (5, 6)]), 100);
    }

    #[test]
    fn times_are_whole_nanoseconds() {
        assert_eq!(nanoseconds(1.234), Some(1234));
        assert_eq!(nanoseconds(0.0), Some(0));
        for no_time in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(nanoseconds(no_time), None, "{no_time}");
        }
    }
}
