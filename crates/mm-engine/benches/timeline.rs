//! What the timeline costs: logging an event, also where four threads do so at once, and a pass with it on and off.
#![allow(missing_docs)]

use divan::{Bencher, counter::ItemsCount};
use mm_cache::TensorSlice;
use mm_engine::{
    Homes, HostBuffer, HostDevice, ModelManager, Module, ModuleSpec, Place, Slab, StackSpec,
    timeline::{DEFAULT_EVENTS, Form, Kind, Label, Timeline},
};
use mm_plan::{DType, DeviceKind, Machine, Policy, Strategy};
use std::{
    collections::HashMap,
    hint::spin_loop,
    sync::{Arc, LazyLock, Mutex},
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

#[derive(Default)]
struct Home(Mutex<HashMap<(Option<usize>, usize), HostBuffer>>);

fn key(place: Place, slab: usize) -> (Option<usize>, usize) {
    (if let Place::Group(group) = place { Some(group) } else { None }, slab)
}

impl Homes<HostBuffer> for Home {
    fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        self.0.lock().expect("no panic").insert(key(place, slab), buffer);
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
        self.0.lock().expect("no panic").remove(&key(place, slab)).ok_or_else(|| "no buffer".to_owned())
    }
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
