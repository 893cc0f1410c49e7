//! A recording as one HTML file: everything it needs is in it, and its policy allows it nothing from elsewhere.

use super::{
    Kind, Summary, Trace,
    trace::{SCHEMA, Span},
};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: [&str; 4] = [
    include_str!("page/format.js"),
    include_str!("page/data.js"),
    include_str!("page/draw.js"),
    include_str!("page/view.js"),
];

/// Kinds in the order of their lanes, from top to bottom.
const ORDER: [Kind; 6] = [Kind::Pass, Kind::Wait, Kind::Compute, Kind::Stall, Kind::Stage, Kind::Copy];
/// Lanes of one kind that are drawn apart; no device has more, but a file may say anything.
const LANES: usize = 32;
/// Rows of one lane, where its spans overlap: several leases, or passes of several threads.
const DEPTH: usize = 4;
/// Nanoseconds that neighbours may overlap by without getting another row: other tools round times.
const SLACK: u64 = 2;

pub(super) fn render(trace: &Trace) -> String {
    let data = serde_json::to_string(&Data::of(trace)).unwrap_or_default();
    // Inside a script element only `<` can end it, or begin a comment; JSON has it in strings alone.
    let data = data.replace('<', "\\u003c");
    let mut page = String::with_capacity(HTML.len() + STYLE.len() + data.len() + (64 << 10));
    for part in HTML.split_inclusive("-->") {
        match part.strip_suffix("-->").and_then(|part| part.rsplit_once("<!--")) {
            Some((before, "style")) => page.extend([before, "<style>\n", STYLE, "</style>"]),
            Some((before, "data")) => {
                page.extend([before, "<script type=\"application/json\" id=\"data\">", &data, "</script>"]);
            }
            Some((before, "script")) => {
                page.extend([before, "<script>\n\"use strict\";\n"]);
                page.extend(SCRIPT);
                page.push_str("</script>");
            }
            _ => page.push_str(part),
        }
    }
    page
}

/// What the page's script reads. Times are nanoseconds since the origin, each list of moments as differences.
#[derive(Serialize)]
struct Data<'a> {
    schema: u32,
    summary: Summary,
    components: Vec<&'a str>,
    /// Index of the component, and the group.
    labels: Vec<(usize, &'a str)>,
    /// Byte counts that occur; the first is zero.
    sizes: Vec<u64>,
    rows: Vec<Row>,
    memory: Memory,
}

/// Spans of one kind in one lane, by their start.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    lane: usize,
    start: Vec<u64>,
    duration: Vec<u64>,
    label: Vec<usize>,
    /// Indices of sizes; empty where all are zero.
    size: Vec<usize>,
}

#[derive(Default, Serialize)]
struct Memory {
    at: Vec<u64>,
    in_use: Vec<u64>,
}

impl<'a> Data<'a> {
    fn of(trace: &'a Trace) -> Self {
        let (origin, _) = trace.extent();
        let (mut components, mut labels) = (Vec::new(), Vec::with_capacity(trace.labels.len()));
        let mut known = HashMap::new();
        for (component, group) in &trace.labels {
            let index = *known.entry(component.as_str()).or_insert_with(|| {
                components.push(component.as_str());
                components.len() - 1
            });
            labels.push((index, group.as_str()));
        }
        let mut sizes = Sizes::default();
        let rows = ORDER.into_iter().flat_map(|kind| rows(trace, kind, origin, &mut sizes)).collect();
        let mut levels = trace.levels.clone();
        levels.sort_by_key(|level| level.at_ns);
        let memory = Memory {
            at: differences(origin, levels.iter().map(|level| level.at_ns)),
            in_use: levels.iter().map(|level| level.in_use).collect(),
        };
        let (schema, summary) = (SCHEMA, trace.summary());
        Self { schema, summary, components, labels, sizes: sizes.list, rows, memory }
    }
}

struct Sizes {
    known: HashMap<u64, usize>,
    list: Vec<u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { known: [(0, 0)].into(), list: vec![0] }
    }
}

impl Sizes {
    fn index(&mut self, bytes: u64) -> usize {
        *self.known.entry(bytes).or_insert_with(|| {
            self.list.push(bytes);
            self.list.len() - 1
        })
    }
}

fn differences(origin: u64, moments: impl Iterator<Item = u64>) -> Vec<u64> {
    moments.scan(origin, |last, at| Some(at - std::mem::replace(last, at))).collect()
}

/// The rows of a kind, lane after lane.
fn rows(trace: &Trace, kind: Kind, origin: u64, sizes: &mut Sizes) -> Vec<Row> {
    let mut lanes: BTreeMap<usize, Vec<&Span>> = BTreeMap::new();
    for span in trace.spans.iter().filter(|span| span.kind == kind) {
        lanes.entry(span.lane).or_default().push(span);
    }
    if lanes.len() > LANES {
        lanes = [(0, lanes.into_values().flatten().collect())].into();
    }
    let row = |(lane, spans): (usize, Vec<&Span>)| Row {
        kind: kind.name(),
        lane,
        start: differences(origin, spans.iter().map(|span| span.start_ns)),
        duration: spans.iter().map(|span| span.end_ns - span.start_ns).collect(),
        label: spans.iter().map(|span| span.label).collect(),
        size: match spans.iter().all(|span| span.bytes == 0) {
            true => Vec::new(),
            false => spans.iter().map(|span| sizes.index(span.bytes)).collect(),
        },
    };
    let apart = |(lane, spans)| spread(spans).into_iter().map(move |spans| (lane, spans));
    lanes.into_iter().flat_map(apart).map(row).collect()
}

/// Spreads spans over rows so that they do not overlap, as far as there are rows.
fn spread(mut spans: Vec<&Span>) -> Vec<Vec<&Span>> {
    spans.sort_by_key(|span| (span.start_ns, span.end_ns));
    let mut rows: Vec<(u64, Vec<&Span>)> = Vec::new();
    for span in spans {
        let free = rows.iter().position(|(end, _)| *end <= span.start_ns.saturating_add(SLACK));
        let row = free.unwrap_or(if rows.len() < DEPTH { rows.len() } else { DEPTH - 1 });
        if row == rows.len() {
            rows.push((0, Vec::new()));
        }
        let (end, spans) = &mut rows[row];
        *end = span.end_ns.max(*end);
        spans.push(span);
    }
    rows.into_iter().map(|(_, spans)| spans).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start_ns: u64, end_ns: u64) -> Span {
        Span { kind: Kind::Compute, lane: 0, label: 0, start_ns, end_ns, bytes: 0 }
    }

    #[test]
    fn spans_that_overlap_get_rows_of_their_own_and_none_is_lost() {
        let spans = [span(50, 90), span(0, 40), span(30, 60), span(40, 50)];
        let spread_out: Vec<Vec<u64>> =
            spread(spans.iter().collect()).iter().map(|row| row.iter().map(|span| span.start_ns).collect()).collect();
        assert_eq!(spread_out, [vec![0, 40, 50], vec![30]]);
        let many: Vec<Span> = (0..20).map(|i| span(i, 100)).collect();
        let rows = spread(many.iter().collect());
        assert_eq!((rows.len(), rows.iter().map(Vec::len).sum::<usize>()), (DEPTH, 20));
    }

    #[test]
    fn moments_are_told_as_differences() {
        assert_eq!(differences(10, [10, 12, 12, 20].into_iter()), [0, 2, 0, 8]);
        assert!(differences(10, [].into_iter()).is_empty());
    }
}
