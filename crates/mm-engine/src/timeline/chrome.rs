//! The Chrome trace format, as far as it is written and read here.

use super::{
    Kind, Trace, TraceError,
    trace::{Labels, Level, SCHEMA, Span},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;

/// The kinds that take time, each with the number of its first row: viewers sort rows by number. Copies come last, as
/// they have as many rows as the device has lanes.
const ROWS: [(Kind, u64); 6] = [
    (Kind::Pass, 0),
    (Kind::Compute, 100),
    (Kind::Stall, 200),
    (Kind::Wait, 220),
    (Kind::Stage, 240),
    (Kind::Copy, 300),
];

/// Rows of the same kind before the next kind's; copies have no next.
fn row(kind: Kind, lane: usize) -> u64 {
    let lane = u64::try_from(lane).unwrap_or(u64::MAX);
    let lane = if kind == Kind::Copy { lane } else { lane.min(19) };
    first_row(kind).saturating_add(lane)
}

fn first_row(kind: Kind) -> u64 {
    ROWS.iter().find(|(known, _)| *known == kind).map_or(0, |(_, row)| *row)
}

#[derive(Serialize)]
pub(super) struct Document<'a> {
    #[serde(rename = "traceEvents")]
    events: Events<'a>,
    #[serde(rename = "displayTimeUnit")]
    unit: &'static str,
    #[serde(rename = "otherData")]
    other: Other,
}

pub(super) fn document(trace: &Trace) -> Document<'_> {
    let other = Other { schema: SCHEMA, budget: trace.budget, planned: trace.planned, dropped_events: trace.dropped };
    Document { events: Events(trace), unit: "ms", other }
}

#[derive(Deserialize, Serialize)]
struct Other {
    schema: u32,
    budget: u64,
    planned: u64,
    #[serde(default)]
    dropped_events: u64,
}

/// Names of rows, spans, levels; made one at a time as they are written.
struct Events<'a>(&'a Trace);

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let trace = self.0;
        let mut rows: Vec<(Kind, usize)> = ROWS.iter().map(|(kind, _)| (*kind, 0)).collect();
        rows.extend(trace.spans.iter().filter(|span| span.lane > 0).map(|span| (span.kind, span.lane)));
        rows.sort_unstable_by_key(|(kind, lane)| row(*kind, *lane));
        rows.dedup_by_key(|(kind, lane)| row(*kind, *lane));
        let names = rows.into_iter().map(|(kind, lane)| Written::row(kind, lane));
        let spans = trace.spans.iter().map(|span| Written::span(trace, span));
        serializer.collect_seq(names.chain(spans).chain(trace.levels.iter().map(Written::level)))
    }
}

#[derive(Serialize)]
struct Written<'a> {
    ph: &'static str,
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    args: Arguments<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Arguments<'a> {
    Row { name: String },
    Span { component: &'a str, group: &'a str, bytes: u64 },
    Level { bytes: u64 },
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

impl<'a> Written<'a> {
    fn row(kind: Kind, lane: usize) -> Self {
        let name = if lane == 0 { kind.name().to_owned() } else { format!("{} {lane}", kind.name()) };
        let (tid, args) = (Some(row(kind, lane)), Arguments::Row { name });
        Self { ph: "M", name: "thread_name".into(), cat: None, pid: 1, tid, ts: None, dur: None, args }
    }

    fn span(trace: &'a Trace, span: &Span) -> Self {
        let (component, group) = trace.labels.get(span.label).map_or(("", ""), |(c, g)| (c, g));
        let name = if group.is_empty() { component.into() } else { format!("{component}.{group}").into() };
        Self {
            ph: "X",
            name,
            cat: Some(span.kind.name()),
            pid: 1,
            tid: Some(row(span.kind, span.lane)),
            ts: Some(micros(span.start_ns)),
            dur: Some(micros(span.end_ns.saturating_sub(span.start_ns))),
            args: Arguments::Span { component, group, bytes: span.bytes },
        }
    }

    fn level(level: &Level) -> Self {
        let (cat, ts) = (Some(level.kind.name()), Some(micros(level.at_ns)));
        let args = Arguments::Level { bytes: level.in_use };
        Self { ph: "C", name: "engine bytes".into(), cat, pid: 1, tid: None, ts, dur: None, args }
    }
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(rename = "traceEvents", borrow)]
    events: Vec<ReadEvent<'a>>,
    #[serde(rename = "otherData")]
    other: Other,
}

#[derive(Deserialize)]
struct ReadEvent<'a> {
    #[serde(borrow)]
    ph: Cow<'a, str>,
    #[serde(borrow, default)]
    cat: Cow<'a, str>,
    /// Other tools' rows may have names.
    #[serde(default)]
    tid: Value,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(borrow, default)]
    args: ReadArguments<'a>,
}

#[derive(Default, Deserialize)]
struct ReadArguments<'a> {
    #[serde(borrow, default)]
    component: Cow<'a, str>,
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    bytes: Option<u64>,
}

pub(super) fn read(document: &[u8]) -> Result<Trace, TraceError> {
    let Read { events, other } = serde_json::from_slice(document)?;
    if other.schema != SCHEMA {
        return Err(TraceError::Schema(other.schema));
    }
    let (budget, planned, dropped) = (other.budget, other.planned, other.dropped_events);
    let mut trace = Trace { budget, planned, dropped, ..Trace::default() };
    let mut labels = Labels::default();
    for (index, event) in events.iter().enumerate() {
        let bad = |reason: String| TraceError::Event { index, reason };
        let at = |name, value| nanoseconds(value).ok_or_else(|| bad(format!("`{name}` is {value}, no time")));
        let (start_ns, dur) = (at("ts", event.ts)?, at("dur", event.dur)?);
        match (&*event.ph, Kind::named(&event.cat)) {
            ("C", Some(kind @ (Kind::Allocate | Kind::Free))) => {
                let in_use = event.args.bytes.ok_or_else(|| bad("a memory count without `bytes`".to_owned()))?;
                trace.levels.push(Level { kind, at_ns: start_ns, in_use });
            }
            ("X", Some(kind)) if ROWS.iter().any(|(known, _)| *known == kind) => {
                let lane = event.tid.as_u64().unwrap_or(0).saturating_sub(first_row(kind));
                trace.spans.push(Span {
                    kind,
                    lane: usize::try_from(lane).unwrap_or(usize::MAX),
                    label: labels.index((&event.args.component, &event.args.group)),
                    start_ns,
                    end_ns: start_ns.saturating_add(dur),
                    bytes: event.args.bytes.unwrap_or(0),
                });
            }
            // Whatever else a viewer may have added, names of rows among it.
            _ => {}
        }
    }
    trace.labels = labels.list;
    Ok(trace)
}

/// Microseconds of the file in whole nanoseconds; `None` for what is no time.
fn nanoseconds(micros: f64) -> Option<u64> {
    let ns = (micros * 1000.0).round();
    (ns.is_finite() && (0.0..1e18).contains(&ns)).then_some(ns as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_nanoseconds() {
        assert_eq!(nanoseconds(1.234), Some(1234));
        assert_eq!(nanoseconds(0.0), Some(0));
        for no_time in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(nanoseconds(no_time), None, "{no_time}");
        }
    }
}
