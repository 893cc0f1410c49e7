//! The next group's copy runs during compute, also across passes; nothing is allocated inside a pass.

mod common;

use candle_core::DType;
use common::{folder, manager, options, request};
use mm_diffusion::ZImage;
use mm_engine::timeline::{Event, Kind};
use mm_plan::Strategy;

fn record() -> (Vec<Event>, serde_json::Value) {
    let manager = manager(16 << 20, Strategy::GroupOffload);
    let pipeline = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    pipeline.generate(&request(8), |_| {}).unwrap();
    (manager.timeline().events(), manager.timeline().to_chrome_trace(16 << 20, manager.plan().unwrap().peak.device))
}

fn of<'a>(events: &'a [Event], kind: Kind, component: &str) -> Vec<&'a Event> {
    let about = |e: &Event| e.label.as_ref().is_some_and(|l| &*l.component == component);
    events.iter().filter(|e| e.kind == kind && about(e)).collect()
}

fn overlap(a: &Event, b: &Event) -> bool {
    a.start_ns < b.end_ns && b.start_ns < a.end_ns
}

#[test]
fn copies_run_during_compute_and_across_passes() {
    let (events, _) = record();
    let copies = of(&events, Kind::Copy, "transformer");
    let computes = of(&events, Kind::Compute, "transformer");
    let passes = of(&events, Kind::Pass, "transformer");
    assert_eq!(passes.len(), 8);
    assert_eq!(computes.len(), 8 * 14, "ten layers and four refiners a pass");
    let group = |e: &Event| e.label.as_ref().unwrap().group.to_string();
    let beside = copies.iter().filter(|copy| computes.iter().any(|c| overlap(c, copy) && group(c) != group(copy)));
    let share = beside.count() as f64 / copies.len() as f64;
    // A busy machine may start a copying thread late; without prefetch it would be none at all.
    assert!(share > 0.25, "only {share} of the copies ran beside another group's compute");

    let first = group(computes[0]);
    let ahead = passes.windows(2).filter(|pair| {
        copies.iter().any(|c| group(c) == first && c.start_ns < pair[0].end_ns && c.start_ns > pair[0].start_ns)
    });
    assert!(ahead.count() >= 4, "the first group of the next pass is copied before this pass ends");
}

#[test]
fn nothing_is_allocated_inside_a_pass() {
    let (events, _) = record();
    let passes: Vec<&Event> = events.iter().filter(|e| e.kind == Kind::Pass).collect();
    let allocations: Vec<&Event> = events.iter().filter(|e| matches!(e.kind, Kind::Allocate | Kind::Free)).collect();
    assert!(passes.len() > 10 && allocations.len() > 10);
    for pass in passes {
        assert!(!allocations.iter().any(|a| a.start_ns > pass.start_ns && a.end_ns < pass.end_ns));
    }
}

#[test]
fn the_export_is_a_chrome_trace() {
    let (events, trace) = record();
    let list = trace["traceEvents"].as_array().unwrap();
    let spans = list.iter().filter(|e| e["ph"] == "X").count();
    let counters = list.iter().filter(|e| e["ph"] == "C").count();
    let memory = |e: &&Event| matches!(e.kind, Kind::Allocate | Kind::Free);
    assert_eq!(spans, events.iter().filter(|e| !memory(e)).count());
    assert_eq!(counters, events.iter().filter(memory).count());
    let peak = list.iter().filter_map(|e| e["args"]["bytes"].as_u64().filter(|_| e["ph"] == "C")).max();
    assert_eq!(peak, trace["otherData"]["planned"].as_u64());
}
