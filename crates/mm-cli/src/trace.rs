//! `mm trace`: sums up a timeline that `mm run --timeline` recorded, and makes a page of it.

use crate::args::TraceArgs;
use crate::exit::Failure;
use crate::output::OutputFile;
use crate::size::show;
use crate::table::{Table, print, print_document, time};
use mm_engine::timeline::{Summary, Trace, Work};
use std::fs;

pub(crate) fn run(args: &TraceArgs) -> Result<(), Failure> {
    let why = "timelines are drawn as pages";
    let page = args.html.as_ref().map(|file| OutputFile::check_named("--html", file, &["html"], why)).transpose()?;
    let bad = |reason: String| Failure::File { code: "bad_trace", file: args.file.clone(), reason };
    let text = fs::read(&args.file).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let trace = Trace::parse(&text).map_err(|error| bad(error.to_string()))?;
    drop(text);
    if let Some(page) = page {
        page.write(trace.to_html().as_bytes())?;
    }
    let summary = trace.summary();
    if args.json {
        return print_document(&summary);
    }
    print(table(&summary))
}

fn table(summary: &Summary) -> String {
    let peak = &summary.peak;
    let mut components =
        Table::new(&["component", ">passes", ">pass time", ">copied", ">copying", ">computing", ">stalled", ">waited"]);
    let row = |name: &str, work: &Work| {
        [
            name.to_owned(),
            work.passes.to_string(),
            time(work.pass_ns),
            show(work.copied_bytes),
            time(work.copy_ns),
            time(work.compute_ns),
            time(work.stall_ns),
            time(work.wait_ns),
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
