//! What the engine itself takes per group and pass, on the host: nothing is copied and nothing computed. Divide by the groups.
#![allow(missing_docs)]

use divan::{Bencher, counter::ItemsCount};
use mm_cache::TensorSlice;
use mm_engine::{
    CopyFailed, Device, DeviceMemory, EngineError, Homes, ModelManager, Module, ModuleSpec, Place, Result, Slab,
    StackSpec,
    timeline::{Label, Timeline},
};
use mm_plan::{DType, DeviceKind, HostTier, Machine, Policy, Strategy};
use parking_lot::Mutex;
use std::sync::Arc;

/// Bytes of a slab.
const BYTES: u64 = 4096;
/// Elements of a slab, by the element's size.
const fn elements(dtype: DType) -> usize {
    (BYTES / dtype.size()) as usize
}

fn main() {
    divan::main();
}

/// A device whose copies are over as soon as they are asked for, as they are for the host where a stream of its own does them.
struct Free(Mutex<DeviceMemory>);

impl Device for Free {
    type Buffer = u64;
    type Event = ();
    type Source = Arc<Slab>;
    type Copy = u64;

    fn allocate(&self, _: DType, bytes: u64) -> Result<u64> {
        let mut memory = self.0.lock();
        if memory.in_use + bytes > memory.budget {
            return Err(EngineError::OverBudget { need: bytes, in_use: memory.in_use, budget: memory.budget });
        }
        memory.in_use += bytes;
        memory.allocations += 1;
        Ok(bytes)
    }

    fn free(&self, buffer: u64) {
        self.0.lock().in_use -= buffer;
    }

    fn record(&self) -> Result<()> {
        Ok(())
    }

    fn in_files(&self, slab: Arc<Slab>) -> Arc<Slab> {
        slab
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], _: HostTier) -> Result<Vec<Arc<Slab>>> {
        Ok(slabs.to_vec())
    }

    fn copy(&self, _: Label, _: Arc<Slab>, into: u64, _: Option<()>) -> u64 {
        into
    }

    fn finish(&self, copy: u64) -> Result<u64, CopyFailed<u64>> {
        Ok(copy)
    }

    fn is_done(&self, _: &u64) -> bool {
        true
    }

    fn memory(&self) -> DeviceMemory {
        *self.0.lock()
    }
}

/// One place per slab, the rest first.
struct Home(Vec<[Mutex<Option<u64>>; 2]>);

impl Home {
    fn at(&self, place: Place, slab: usize) -> &Mutex<Option<u64>> {
        let index = if let Place::Group(group) = place { group + 1 } else { 0 };
        &self.0[index][slab]
    }
}

impl Homes<u64> for Home {
    fn put(&self, place: Place, slab: usize, buffer: u64) -> Result<(), (u64, String)> {
        *self.at(place, slab).lock() = Some(buffer);
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<u64, String> {
        self.at(place, slab).lock().take().ok_or_else(|| "no buffer".to_owned())
    }
}

fn group(dtypes: &[(DType, safetensors::Dtype)]) -> Vec<Slab> {
    let slab = |(dtype, stored): &(DType, safetensors::Dtype)| {
        let mut slab = Slab::new(*dtype);
        let zeros = vec![0; BYTES as usize];
        slab.push(TensorSlice::from_bytes("w", *stored, [elements(*dtype)], zeros).expect("a tensor"));
        slab
    };
    dtypes.iter().map(slab).collect()
}

/// A pass of so many groups of so many slabs, all of which stay or stream through two slots.
fn pass(bencher: Bencher<'_, '_>, groups: usize, slabs: usize, strategy: Strategy) {
    let dtypes = [(DType::F32, safetensors::Dtype::F32), (DType::Bf16, safetensors::Dtype::BF16)];
    let stacks =
        vec![StackSpec { name: "layers".into(), groups: (0..groups).map(|_| group(&dtypes[..slabs])).collect() }];
    let homes = Box::new(Home((0..=groups).map(|_| Default::default()).collect()));
    let spec = ModuleSpec { name: "transformer".into(), phase: None, passes: 28, rest: vec![], stacks, homes };
    let budget = (groups * slabs) as u64 * BYTES * 2;
    let timeline = Arc::new(Timeline::default());
    let device = Arc::new(Free(Mutex::new(DeviceMemory { budget, ..DeviceMemory::default() })));
    let module = Module::new(spec, device.clone(), timeline.clone());
    let machine = Machine { device: DeviceKind::Host, vram_free: Some(budget), ..Machine::default() };
    let policy = Policy { strategy, ..Policy::default() };
    let manager = ModelManager::new(device, timeline, machine, policy).expect("within the budget");
    let _registration = manager.register("transformer", &module).expect("registers");
    let run = || {
        let run = manager.begin(&module).expect("begins");
        for group in 0..groups {
            let _lease = divan::black_box(module.lease(group).expect("leases"));
        }
        run.complete().expect("completes");
    };
    run();
    let allocations = manager.memory().allocations;
    bencher.counter(ItemsCount::new(groups)).bench_local(run);
    assert_eq!(manager.memory().allocations, allocations, "allocated inside a pass");
}

#[divan::bench(args = [(8, 1), (48, 1), (48, 2), (1000, 1)])]
fn resident(bencher: Bencher<'_, '_>, (groups, slabs): (usize, usize)) {
    pass(bencher, groups, slabs, Strategy::NoOffload);
}

#[divan::bench(args = [(8, 1), (48, 1), (48, 2), (1000, 1)])]
fn streamed(bencher: Bencher<'_, '_>, (groups, slabs): (usize, usize)) {
    pass(bencher, groups, slabs, Strategy::GroupOffload);
}
