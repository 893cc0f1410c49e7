//! Low-RAM mode against full copies in memory, where host memory is the device: passes over groups that all stream, read from a file in
//! the page cache or copied from memory that was filled once. Pairs in turn (A B B A), ratio of each pair, medians.
#![allow(missing_docs)]

use mm_cache::Weights;
use mm_engine::{
    Homes, HostBuffer, HostDevice, ModelManager, Module, ModuleSpec, Place, Slab, StackSpec, timeline::Timeline,
};
use mm_plan::{DType, DeviceKind, HostTier, Machine, Policy, Strategy};
use safetensors::{Dtype, tensor::TensorView};
use std::{
    collections::HashMap,
    hint::spin_loop,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const GROUPS: usize = 24;
const GROUP_BYTES: usize = 16 << 20;
const PAIRS: usize = 25;

#[derive(Default)]
struct Home(Mutex<HashMap<(Place, usize), HostBuffer>>);

impl Homes<HostBuffer> for Home {
    fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        self.0.lock().expect("no panic").insert((place, slab), buffer);
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
        self.0.lock().expect("no panic").remove(&(place, slab)).ok_or_else(|| "no buffer".to_owned())
    }
}

/// A component on a device of its own, every group of which streams from `tier` through two slots.
struct Streamed {
    manager: Arc<ModelManager<HostDevice>>,
    module: Arc<Module<HostDevice>>,
    _registration: mm_engine::Registration<HostDevice>,
}

impl Streamed {
    fn new(weights: &Weights, tier: HostTier) -> Self {
        let group = |i: usize| {
            let mut slab = Slab::new(DType::F32);
            slab.push(weights.get(&format!("{i}")).expect("there").clone());
            vec![slab]
        };
        let stacks = vec![StackSpec { name: "layers".into(), groups: (0..GROUPS).map(group).collect() }];
        let homes = Box::new(Home::default());
        let spec = ModuleSpec { name: "transformer".into(), phase: None, passes: 28, rest: vec![], stacks, homes };
        let (timeline, budget) = (Arc::new(Timeline::default()), 2 * GROUP_BYTES as u64);
        let device = Arc::new(HostDevice::new(budget, timeline.clone()));
        let module = Module::new(spec, device.clone(), timeline.clone());
        let machine = Machine { device: DeviceKind::Host, vram_free: Some(budget), ..Machine::default() };
        let policy = Policy { strategy: Strategy::GroupOffload, ..Policy::default() };
        let manager = ModelManager::new(device, timeline, machine, policy).expect("within the budget");
        let registration = manager.register("transformer", &module).expect("registers");
        let mut plan = (*manager.apply().expect("fits")).clone();
        assert_eq!(plan.components[0].slots, 2);
        plan.components[0].stacks[0].host.fill(tier);
        manager.apply_plan(plan).expect("a plan for this device");
        Self { manager, module, _registration: registration }
    }

    /// The time of a pass whose groups compute for so long each.
    fn pass(&self, compute: Duration) -> Duration {
        let start = Instant::now();
        let run = self.manager.begin(&self.module).expect("begins");
        for group in 0..GROUPS {
            let _lease = self.module.lease(group).expect("leases");
            let start = Instant::now();
            while start.elapsed() < compute {
                spin_loop();
            }
        }
        run.complete().expect("completes");
        start.elapsed()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(stored: Dtype) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weights.safetensors");
    let elements = GROUP_BYTES / 4;
    let bytes: Vec<u8> = (0..elements * stored.bitsize() / 8).map(|i| (i * 7919 / 8) as u8 & 0x3F).collect();
    let views =
        (0..GROUPS).map(|i| (format!("{i}"), TensorView::new(stored, vec![elements], &bytes).expect("a tensor")));
    std::fs::write(&file, safetensors::serialize(views, None).expect("serializes")).expect("writes");
    let weights = Weights::open(&[&file]).expect("opens");
    let files = Streamed::new(&weights, HostTier::Mapped);
    let copies = Streamed::new(&weights, HostTier::PageLocked);
    for side in [&files, &copies] {
        (0..3).for_each(|_| assert!(!side.pass(Duration::ZERO).is_zero()));
    }
    let group = |side: &Streamed| side.pass(Duration::ZERO) / GROUPS as u32;
    let copy = (0..5).map(|_| group(&copies)).min().unwrap_or_default();
    for factor in [0.0, 0.5, 1.0, 2.0] {
        let compute = copy.mul_f64(factor);
        let (mut ratios, mut from_files, mut from_memory) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let measure = |side: &Streamed| side.pass(compute).as_secs_f64();
            let (files, copies) = if pair % 2 == 0 {
                let files = measure(&files);
                (files, measure(&copies))
            } else {
                let copies = measure(&copies);
                (measure(&files), copies)
            };
            ratios.push(files / copies);
            from_files.push(files);
            from_memory.push(copies);
        }
        let gib = (GROUPS * GROUP_BYTES) as f64 / (1u64 << 30) as f64;
        let (least, most) = ratios.iter().fold((f64::MAX, 0.0f64), |(a, b), r| (a.min(*r), b.max(*r)));
        println!(
            "{stored:?} to F32, {gib:.2} GiB a pass, compute {factor} of a copy: {:.1} ms from files, {:.1} ms from copies; ratio \
             {:.3} ({least:.2} to {most:.2})",
            median(from_files) * 1e3,
            median(from_memory) * 1e3,
            median(ratios),
        );
    }
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    [Dtype::F32, Dtype::BF16].into_iter().for_each(compare);
}
