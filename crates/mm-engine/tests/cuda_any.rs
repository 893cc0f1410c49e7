//! A card behind [`AnyDevice`], the one type that adapters know: what it answers is the card's, over the fake driver.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;

use common::{fake_cuda::driver, host::slab};
use mm_engine::{
    AnyBuffer, AnyDevice, CudaDevice, Device, Homes, HostDevice, ModelManager, Module, ModuleSpec, Place, StackSpec,
    Staging, timeline::Timeline,
};
use mm_plan::{DType, HostTier, Strategy};
use parking_lot::Mutex;
use safetensors::Dtype;
use std::{collections::HashMap, sync::Arc};

const BUDGET: u64 = 1 << 20;
const BLOCKS: u8 = 5;
const BYTES: usize = 4000;

#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<HashMap<Place, AnyBuffer>>>);

impl Homes<AnyBuffer> for Shelf {
    fn put(&self, place: Place, _: usize, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        self.0.lock().insert(place, buffer);
        Ok(())
    }

    fn take(&self, place: Place, _: usize) -> Result<AnyBuffer, String> {
        self.0.lock().remove(&place).ok_or_else(|| "empty".to_owned())
    }
}

fn card(timeline: &Arc<Timeline>) -> CudaDevice {
    driver().seed(7);
    let staging = Staging { buffers: 3, bytes: 4096, limit: 1 << 20 };
    CudaDevice::with_staging(0, None, BUDGET, staging, timeline.clone()).unwrap()
}

/// The same bytes reach compute from each host tier, and all comes back.
#[test]
fn passes_over_a_card() {
    for tier in [HostTier::Mapped, HostTier::PageLocked] {
        let timeline = Arc::new(Timeline::default());
        let cuda = card(&timeline);
        let stream = cuda.compute_stream().cu_stream() as u64;
        let device = Arc::new(AnyDevice::Cuda(cuda));
        let shelf = Shelf::default();
        let block = |i: u8| vec![slab(DType::F32, Dtype::F32, vec![i + 1; BYTES])];
        let stacks = vec![StackSpec { name: "layers".to_owned(), groups: (0..BLOCKS).map(block).collect() }];
        let homes = Box::new(shelf.clone());
        let spec = ModuleSpec { name: "transformer".to_owned(), phase: None, passes: 3, rest: vec![], stacks, homes };
        let module = Module::new(spec, device.clone(), timeline.clone());
        let policy = common::policy(Strategy::Auto);
        let manager = ModelManager::new(device.clone(), timeline, common::machine(BUDGET), policy).unwrap();
        let registration = manager.register("transformer", &module).unwrap();
        let plan = common::placement(module.description(), &[false; BLOCKS as usize], 2);
        manager.apply_plan(common::plan_of(vec![common::on_tiers(plan, &[tier])])).unwrap();
        for _ in 0..3 {
            let run = manager.begin(&module).unwrap();
            for group in 0..BLOCKS {
                let lease = module.lease(group.into()).unwrap();
                match shelf.0.lock().get(&Place::Group(group.into())) {
                    // The fake driver ends the program where compute sees other bytes.
                    Some(AnyBuffer::Cuda(buffer)) => {
                        driver().kernel(stream, buffer.address(), &[group + 1; BYTES]);
                    }
                    _ => panic!("group {group} is not on the card"),
                }
                drop(lease);
            }
            run.complete().unwrap();
        }
        drop(registration);
        assert_eq!(device.memory().in_use, 0);
    }
}

/// A method that this type forgot to hand on would answer as no device in particular does.
#[test]
fn what_the_card_says_is_said() {
    let timeline = Arc::new(Timeline::default());
    let (alone, any) = (card(&timeline), AnyDevice::<mm_engine::HostBuffer>::Cuda(card(&timeline)));
    assert_eq!(any.host_tiers(), alone.host_tiers());
    assert_eq!(any.tells_times(), alone.tells_times());
    assert!(any.stopwatch().is_some() && alone.stopwatch().is_some());
    assert!(any.driver_memory().is_some() && any.driver_memory() == alone.driver_memory());
    assert_eq!((any.unfreed(), any.trim()), (alone.unfreed(), alone.trim()));
    assert_eq!(any.memory(), alone.memory());
    let host = AnyDevice::Host(HostDevice::new(BUDGET, timeline));
    assert!(host.tells_times() && host.stopwatch().is_none() && host.driver_memory().is_none());
    assert!(host.reserve(10).is_some() && any.reserve(10).is_none());
}

/// Memory of one kind of device given to the other is an error, and is not lost.
#[test]
fn memory_of_another_kind_is_refused() {
    let timeline = Arc::new(Timeline::default());
    let (card, host) = (AnyDevice::Cuda(card(&timeline)), AnyDevice::Host(HostDevice::new(BUDGET, timeline)));
    let label = || mm_engine::timeline::Label { component: "a".into(), group: "b".into() };
    let source = |device: &AnyDevice| device.in_files(Arc::new(slab(DType::F32, Dtype::F32, vec![1; BYTES])));
    let buffer = host.allocate(DType::F32, 4096).unwrap();
    let copy = card.copy(label(), source(&card), buffer, None);
    assert!(card.is_done(&copy));
    match card.finish(copy) {
        Err(failed) => host.free(failed.buffer.expect("given back")),
        Ok(_) => panic!("copied"),
    }
    assert_eq!((host.memory().in_use, card.memory().in_use), (0, 0));
}
