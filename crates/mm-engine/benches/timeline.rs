//! What the timeline costs: logging an event, also where four threads do so at once, and a pass with it on and off.
#![allow(missing_docs)]

mod common;

use common::Home;
use divan::{Bencher, counter::ItemsCount};
use mm_cache::TensorSlice;
use mm_engine::{
    HostDevice, ModelManager, Module, ModuleSpec, Slab, StackSpec,
    timeline::{DEFAULT_EVENTS, Form, Kind, Label, Timeline},
};
use mm_plan::{DType, DeviceKind, Machine, Policy, Strategy};
use std::{
    hint::spin_loop,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

const GROUPS: usize = 32;
/// Bytes of a group; reading them takes a few microseconds.
const BYTES: usize = 64 << 10;
/// What a group computes.
const COMPUTE: Duration = Duration::from_micros(100);

fn main() {
    divan::main();
}

static LABEL: LazyLock<Label> = LazyLock::new(|| Label { component: "transformer".into(), group: "layers.3".into() });

#[divan::bench]
fn clock() -> u64 {
    static TIMELINE: LazyLock<Timeline> = LazyLock::new(Timeline::default);
    TIMELINE.now()
}

#[divan::bench]
fn label() -> Label {
    LABEL.clone()
}

fn log(timeline: &Timeline) {
    timeline.span(Kind::Compute, 0, &LABEL, 0, 0);
}

/// A log that takes the place of what it drops, as one that has run for long.
#[divan::bench(threads = [1, 4])]
fn event(bencher: Bencher<'_, '_>) {
    let timeline = Timeline::new(10_000);
    (0..10_000).for_each(|_| log(&timeline));
    bencher.bench(|| log(&timeline));
}

#[divan::bench]
fn event_off(bencher: Bencher<'_, '_>) {
    let timeline = Timeline::default();
    timeline.set_recording(false);
    bencher.bench(|| log(&timeline));
}

/// All that are kept, from the first on.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn events_from_none(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(DEFAULT_EVENTS))
        .with_inputs(Timeline::default)
        .bench_refs(|timeline| (0..DEFAULT_EVENTS).for_each(|_| log(timeline)));
}

/// A pass whose groups all stream, each of which computes for 100 µs.
#[divan::bench(args = ["on", "off"], sample_count = 500, sample_size = 1)]
fn pass(bencher: Bencher<'_, '_>, recording: &str) {
    let group = |i: usize| {
        let mut slab = Slab::new(DType::U8);
        let tensor = TensorSlice::from_bytes("w", safetensors::Dtype::U8, [BYTES], vec![i as u8; BYTES]);
        slab.push(tensor.expect("a tensor"));
        vec![slab]
    };
    let stacks = vec![StackSpec { name: "layers".into(), groups: (0..GROUPS).map(group).collect() }];
    let homes = Box::new(Home::default());
    let spec = ModuleSpec { name: "transformer".into(), phase: None, passes: 28, rest: vec![], stacks, homes };
    let (timeline, budget) = (Arc::new(Timeline::default()), 4 * BYTES as u64);
    timeline.set_recording(recording == "on");
    let device = Arc::new(HostDevice::new(budget, timeline.clone()));
    let module = Module::new(spec, device.clone(), timeline.clone());
    let machine = Machine { device: DeviceKind::Host, vram_free: Some(budget), ..Machine::default() };
    let policy = Policy { strategy: Strategy::GroupOffload, ..Policy::default() };
    let manager = ModelManager::new(device, timeline, machine, policy).expect("within the budget");
    let _registration = manager.register("transformer", &module).expect("registers");
    bencher.bench_local(|| {
        let run = manager.begin(&module).expect("begins");
        for group in 0..GROUPS {
            let _lease = module.lease(group).expect("leases");
            let start = Instant::now();
            while start.elapsed() < COMPUTE {
                spin_loop();
            }
        }
        run.complete().expect("completes");
    });
    assert!(manager.memory().allocations > 0);
}

/// Writing all that is kept, in either form; bytes of the document.
#[divan::bench(args = [Form::Chrome, Form::Page], sample_count = 10, sample_size = 1)]
fn render(bencher: Bencher<'_, '_>, form: Form) {
    let timeline = Timeline::default();
    (0..DEFAULT_EVENTS).for_each(|_| log(&timeline));
    let trace = timeline.trace(0, 0);
    let bytes = trace.render(form).len();
    bencher.counter(divan::counter::BytesCount::new(bytes)).bench_local(|| trace.render(form));
}
