//! What being measured costs a pass: ten passes of groups that are all resident and compute nothing.
#![allow(missing_docs)]

mod common;

use common::Home;
use divan::{Bencher, counter::ItemsCount};
use mm_cache::TensorSlice;
use mm_engine::{
    Calibration, HostDevice, ModelManager, Module, ModuleSpec, Registration, Slab, StackSpec, timeline::Timeline,
};
use mm_plan::{DType, DeviceKind, Machine, Policy, Strategy};
use std::sync::Arc;

const GROUPS: usize = 60;
const BYTES: usize = 4096;
const PASSES: usize = 10;

fn main() {
    divan::main();
}

struct Run {
    manager: Arc<ModelManager<HostDevice>>,
    module: Arc<Module<HostDevice>>,
    _registration: Registration<HostDevice>,
}

impl Run {
    fn new(calibrated: bool) -> Self {
        let group = |i: usize| {
            let mut slab = Slab::new(DType::U8);
            let tensor = TensorSlice::from_bytes("w", safetensors::Dtype::U8, [BYTES], vec![i as u8; BYTES]);
            slab.push(tensor.expect("a tensor"));
            vec![slab]
        };
        let stacks = vec![StackSpec { name: "layers".into(), groups: (0..GROUPS).map(group).collect() }];
        let homes = Box::new(Home::default());
        let spec = ModuleSpec { name: "transformer".into(), phase: None, passes: 28, rest: vec![], stacks, homes };
        let (timeline, budget) = (Arc::new(Timeline::new(1000)), 2 * (GROUPS * BYTES) as u64);
        let device = Arc::new(HostDevice::with_workers(budget, 1, timeline.clone()));
        let module = Module::new(spec, device.clone(), timeline.clone());
        let machine = Machine { device: DeviceKind::Host, vram_free: Some(budget), ..Machine::default() };
        let policy = Policy { strategy: Strategy::NoOffload, ..Policy::default() };
        let manager = ModelManager::new(device, timeline, machine, policy).expect("within the budget");
        if calibrated {
            manager.calibrate(Calibration::of("bench")).expect("the first");
        }
        let registration = manager.register("transformer", &module).expect("registers");
        let run = Self { manager, module, _registration: registration };
        // The passes after which the plan is looked at are not what is timed; nor are those after which nothing is measured.
        (0..4).for_each(|_| run.pass());
        run
    }

    fn pass(&self) {
        let run = self.manager.begin(&self.module).expect("begins");
        for group in 0..GROUPS {
            let _lease = self.module.lease(group).expect("leases");
        }
        run.complete().expect("completes");
    }
}

/// Per group and pass.
#[divan::bench(args = [false, true], sample_count = 300, sample_size = 1)]
fn pass(bencher: Bencher<'_, '_>, calibrated: bool) {
    bencher
        .counter(ItemsCount::new(PASSES * GROUPS))
        .with_inputs(|| Run::new(calibrated))
        .bench_local_refs(|run| (0..PASSES).for_each(|_| run.pass()));
}
