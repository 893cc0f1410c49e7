//! What the timeline tells: copies run beside computes, also across the end of a pass.

mod common;

use common::{host::component, machine, policy};
use mm_engine::{
    Device, HostDevice, ModelManager,
    timeline::{Event, Kind, Timeline},
};
use mm_plan::Strategy;
use std::{sync::Arc, thread, time::Duration};

const BLOCKS: u16 = 4;

fn copies(timeline: &Timeline) -> usize {
    timeline.events().iter().filter(|event| event.kind == Kind::Copy).count()
}

/// Waits (long enough for any machine) until that many copies have ended.
fn wait_for_copies(timeline: &Timeline, count: usize) {
    for _ in 0..10_000 {
        if copies(timeline) >= count {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("copy {count} did not run beside the compute that is held open for it");
}

/// Two passes; each compute is held open until the copy of the group after the next has ended.
fn two_passes(timeline: &Arc<Timeline>) -> Arc<HostDevice> {
    let device = Arc::new(HostDevice::new(1 << 20, timeline.clone()));
    let (module, shelf) = component(&device, timeline, BLOCKS);
    let options = policy(Strategy::GroupOffload);
    let manager = ModelManager::new(device.clone(), timeline.clone(), machine(1 << 20), options).unwrap();
    let _registration = manager.register("transformer", &module).unwrap();
    assert_eq!(manager.apply().unwrap().components[0].slots, 2);
    let mut computed = 0;
    for _ in 0..2 {
        let run = manager.begin(&module).unwrap();
        for group in 0..BLOCKS {
            let lease = module.lease(usize::from(group)).unwrap();
            assert_eq!(shelf.first(usize::from(group)), Some(f32::from(group)));
            computed += 1;
            wait_for_copies(timeline, computed + 1);
            drop(lease);
        }
        run.complete().unwrap();
    }
    device
}

#[test]
fn the_next_copy_ends_inside_each_compute_and_the_last_one_of_a_pass_hides_the_next_pass() {
    let timeline = Arc::new(Timeline::default());
    two_passes(&timeline);
    let events = timeline.events();
    let of = |kind: Kind| events.iter().filter(move |event| event.kind == kind).collect::<Vec<&Event>>();
    let group = |event: &Event| event.label.as_ref().unwrap().group.to_string();
    let (computes, copies) = (of(Kind::Compute), of(Kind::Copy));
    assert_eq!((computes.len(), of(Kind::Pass).len()), (8, 2));
    let last = computes[usize::from(BLOCKS) - 1];
    assert_eq!(group(last), "layers.3");
    let next_pass = copies.iter().filter(|copy| group(copy) == "layers.0").nth(1).unwrap();
    assert!(next_pass.end_ns <= last.end_ns, "the next pass's first copy waited for this pass to end");
    assert!(copies.iter().all(|copy| copy.bytes == 4096));
}

#[test]
fn the_export_is_a_chrome_trace_with_the_memory_curve() {
    let timeline = Arc::new(Timeline::default());
    let device = two_passes(&timeline);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    timeline.write(&path, device.memory().budget, 8192).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(trace["otherData"]["planned"], 8192);
    assert_eq!(trace["otherData"]["dropped_events"], 0);
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |phase: &str| events.iter().filter(|e| e["ph"] == phase).collect::<Vec<_>>();
    assert!(of("X").iter().all(|e| e["ts"].is_number() && e["dur"].as_f64().unwrap() >= 0.0 && e["tid"].is_number()));
    assert_eq!(of("X").iter().filter(|e| e["cat"] == "compute").count(), 8);
    let curve: Vec<u64> = of("C").iter().map(|e| e["args"]["bytes"].as_u64().unwrap()).collect();
    assert_eq!(curve, [4096, 8192, 4096, 0]);
    let missing = folder.path().join("no_such_folder").join("trace.json");
    assert!(timeline.write(&missing, 0, 0).is_err());
}

#[test]
fn a_full_timeline_drops_the_oldest_and_counts_them() {
    let timeline = Arc::new(Timeline::new(16));
    let device = HostDevice::new(1 << 20, timeline.clone());
    for _ in 0..20 {
        device.free(device.allocate(mm_plan::DType::U8, 256).unwrap());
    }
    assert_eq!(timeline.events().len(), 16);
    assert_eq!(timeline.to_chrome_trace(0, 0)["otherData"]["dropped_events"], 24);
}
