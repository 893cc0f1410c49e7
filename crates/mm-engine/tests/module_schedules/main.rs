//! Modules and the host device under a checker of schedules: their very source, with the locks, channels and threads of `sync.rs`
//! beside this file. A schedule in which nobody can go on is reported as a deadlock.
// A driver is not compiled here.
#![cfg(not(feature = "cuda"))]
#![allow(dead_code, unreachable_pub)]

#[path = "../../src/cast.rs"]
mod cast;
#[path = "../../src/device/mod.rs"]
#[allow(unused_imports)]
mod device;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/module.rs"]
mod module;
#[path = "../../src/order.rs"]
mod order;
#[path = "../../src/placement.rs"]
mod placement;
#[path = "../../src/slab.rs"]
mod slab;
#[path = "../../src/slots.rs"]
mod slots;
#[path = "../../src/source.rs"]
mod source;
mod sync;
#[path = "../../src/tiers.rs"]
mod tiers;
mod timeline;

use device::{Device, HostBuffer, HostCopy, HostDevice};
use error::{EngineError, Result};
use mm_cache::TensorSlice;
use mm_plan::{ComponentPlan, DType, HostTier, StackPlan, Strategy};
use module::{Homes, Module, ModuleSpec, Place, StackSpec};
use shuttle::thread;
use slab::Slab;
use source::HostSource;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use timeline::{Label, Timeline};

const BYTES: u64 = 256;

/// Schedules at random, and those with few but well placed changes of thread.
fn explored(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(scenario, 1500);
    shuttle::check_pct(scenario, 1500, 3);
}

// Whoever opens a scope waits for nothing but its threads: it is woken as they end, and the checker takes that for a wake-up of
// whatever it waits for.

/// No point for a change of thread: what happens to a home happens under its module's lock.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<HashMap<Place, HostBuffer>>>);

impl Shelf {
    /// Whether the group is there with its bytes.
    fn holds(&self, group: usize) -> bool {
        let held = self.0.lock().unwrap();
        let bytes = [group as u8 + 1; BYTES as usize];
        matches!(held.get(&Place::Group(group)), Some(HostBuffer::U8(found)) if found[..BYTES as usize] == bytes)
    }
}

impl Homes<HostBuffer> for Shelf {
    fn put(&self, place: Place, _: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        assert!(self.0.lock().unwrap().insert(place, buffer).is_none(), "{place:?} put twice");
        Ok(())
    }

    fn take(&self, place: Place, _: usize) -> Result<HostBuffer, String> {
        self.0.lock().unwrap().remove(&place).ok_or_else(|| format!("{place:?} is empty"))
    }
}

fn slab(dtype: DType, value: u8) -> Slab {
    let mut slab = Slab::new(dtype);
    let bytes = vec![value; BYTES as usize];
    slab.push(TensorSlice::from_bytes("weight", safetensors::Dtype::U8, [BYTES as usize], bytes).unwrap());
    slab
}

/// Blocks that all stream through slots.
struct Rig {
    device: Arc<HostDevice>,
    module: Arc<Module<HostDevice>>,
    shelf: Shelf,
    plan: ComponentPlan,
}

impl Rig {
    fn new(groups: usize, slots: u32, workers: usize) -> Self {
        let timeline = Arc::new(Timeline);
        let device = Arc::new(HostDevice::with_workers(u64::from(slots) * BYTES, workers, timeline.clone()));
        let shelf = Shelf::default();
        let blocks = (0..groups).map(|group| vec![slab(DType::U8, group as u8 + 1)]).collect();
        let stacks = vec![StackSpec { name: "layers".to_owned(), groups: blocks }];
        let homes = Box::new(shelf.clone());
        let spec = ModuleSpec { name: "transformer".to_owned(), phase: None, passes: 9, rest: vec![], stacks, homes };
        let module = Module::new(spec, device.clone(), timeline);
        let stack = StackPlan {
            name: "layers".to_owned(),
            resident: vec![false; groups],
            host: vec![HostTier::Mapped; groups],
        };
        let plan = ComponentPlan {
            name: "transformer".to_owned(),
            strategy: Strategy::GroupOffload,
            rest: 0,
            stacks: vec![stack],
            slots,
            slot_bytes: BYTES,
            engine_bytes: BYTES * u64::from(slots),
            keep: true,
            same_as: None,
        };
        Self { device, module, shelf, plan }
    }

    fn begin(&self) {
        self.module.load(&self.plan, &self.module.layout()).unwrap();
        self.module.begin_pass();
    }

    fn end(&self) {
        self.module.end_pass(0, true).unwrap();
        assert_eq!(self.device.memory().in_use, self.plan.engine_bytes);
        assert_eq!(self.device.memory().allocations, u64::from(self.plan.slots), "allocated inside a pass");
        self.module.unload().unwrap();
        self.empty();
    }

    fn empty(&self) {
        assert_eq!(self.device.memory().in_use, 0, "bytes still held");
        assert!(self.shelf.0.lock().unwrap().is_empty(), "weights left in homes");
    }

    fn lease_each(&self, groups: impl Iterator<Item = usize>) {
        for group in groups {
            let lease = self.module.lease(group).unwrap();
            assert!(self.shelf.holds(group), "group {group} is leased, its bytes are not right");
            // The other thread may go on while it is leased.
            thread::yield_now();
            assert!(self.shelf.holds(group), "group {group} was taken away while it was leased");
            drop(lease);
        }
    }
}

/// Each thread holds one lease at a time, so that there is a slot for each.
fn leased_by_two(groups: usize, workers: usize, backwards: bool) {
    let rig = Rig::new(groups, 2, workers);
    rig.begin();
    thread::scope(|scope| {
        scope.spawn(|| rig.lease_each(0..groups));
        scope.spawn(|| match backwards {
            true => rig.lease_each((0..groups).rev()),
            false => rig.lease_each(0..groups),
        });
    });
    rig.end();
}

#[test]
fn two_threads_lease_each_its_own_groups_and_the_same() {
    explored(|| leased_by_two(3, 1, false));
    explored(|| leased_by_two(3, 2, true));
}

/// More leases than slots: told at once, never waited for.
fn leased_by_three() {
    let rig = Rig::new(3, 2, 1);
    rig.begin();
    thread::scope(|scope| {
        for group in 0..3 {
            let rig = &rig;
            scope.spawn(move || match rig.module.lease(group) {
                Ok(lease) => {
                    thread::yield_now();
                    assert!(rig.shelf.holds(group));
                    drop(lease);
                }
                Err(error) => assert!(matches!(error, EngineError::Misuse(_)), "{error}"),
            });
        }
    });
    rig.end();
}

#[test]
fn a_lease_too_many_is_refused_and_the_others_keep_their_weights() {
    explored(leased_by_three);
}

/// A group's lease is dropped by another thread while the next one is taken.
fn dropped_elsewhere(workers: usize) {
    let rig = Rig::new(4, 2, workers);
    rig.begin();
    let mut last: Option<thread::JoinHandle<()>> = None;
    for group in [0, 1, 2, 3, 0, 1] {
        let lease = rig.module.lease(group).unwrap();
        assert!(rig.shelf.holds(group));
        if let Some(last) = last.replace(thread::spawn(move || drop(lease))) {
            last.join().unwrap();
        }
    }
    last.unwrap().join().unwrap();
    rig.end();
}

#[test]
fn a_lease_may_be_dropped_by_another_thread() {
    explored(|| dropped_elsewhere(1));
    explored(|| dropped_elsewhere(2));
}

/// Taken off the device and put there again while another thread leases: leases of before touch nothing of what is there now.
fn unloaded_beside() {
    let rig = Rig::new(3, 2, 1);
    rig.begin();
    thread::scope(|scope| {
        let leases = scope.spawn(|| {
            for group in 0..3 {
                match rig.module.lease(group) {
                    Ok(lease) => drop(lease),
                    Err(error) => assert!(matches!(error, EngineError::Misuse(_)), "{error}"),
                }
            }
        });
        scope.spawn(|| {
            rig.module.unload().unwrap();
            rig.begin();
            let lease = rig.module.lease(2).unwrap();
            assert!(rig.shelf.holds(2));
            leases.join().unwrap();
            assert!(rig.shelf.holds(2), "a lease of before took the weights away");
            drop(lease);
        });
    });
    rig.module.end_pass(0, true).unwrap();
    rig.module.unload().unwrap();
    rig.empty();
}

#[test]
fn unloading_beside_leases_leaves_nothing() {
    explored(unloaded_beside);
}

fn copy(device: &HostDevice, dtype: DType, value: u8) -> HostCopy {
    let label = Label { component: "transformer".into(), group: "layers.0".into() };
    let source = device.in_files(Arc::new(slab(dtype, value)));
    device.copy(label, source, device.allocate(dtype, BYTES).unwrap(), None)
}

/// Copies that end, that fail, that nobody waits for, and that outlive their device.
fn copied(workers: usize) {
    let device = HostDevice::with_workers(4 * BYTES, workers, Arc::new(Timeline));
    thread::scope(|scope| {
        scope.spawn(|| drop(copy(&device, DType::U8, 1)));
        scope.spawn(|| {
            let [waited, dropped, fails] =
                [(DType::U8, 2), (DType::U8, 3), (DType::I16, 4)].map(|(dtype, value)| copy(&device, dtype, value));
            let done = device.is_done(&waited);
            let buffer = device.finish(waited).ok().unwrap();
            assert!(matches!(&buffer, HostBuffer::U8(bytes) if bytes.iter().all(|byte| *byte == 2)), "{done}");
            drop(dropped);
            device.free(buffer);
            let failed = device.finish(fails).err().unwrap();
            device.free(failed.buffer.unwrap());
        });
    });
    assert_eq!(device.memory().in_use, 0);
    let last = copy(&device, DType::U8, 5);
    drop(device);
    drop(last);
}

#[test]
fn the_account_of_copies_is_right_whoever_waits() {
    explored(|| copied(1));
    explored(|| copied(2));
}
