//! What a component is made of changes under it, and what a library adds to weights once they have arrived.

use mm_cache::TensorSlice;
use mm_engine::{
    Device, EngineError, Homes, HostBuffer, HostDevice, ModelManager, Module, ModuleSpec, Place, Result, Slab,
    StackSpec, timeline::Timeline,
};
use mm_plan::{DType, DeviceKind, Machine, Policy, Strategy};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

const BYTES: usize = 1024;
const GROUPS: usize = 6;

#[derive(Default)]
struct Seen {
    held: HashMap<Place, HostBuffer>,
    arrived: Vec<Place>,
    /// Arrivals of this place fail.
    fails: Option<Place>,
}

/// Adds a number to every byte that arrives.
struct Adding {
    seen: Arc<Mutex<Seen>>,
    add: u8,
}

impl Homes<HostBuffer> for Adding {
    fn put(&self, place: Place, _: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        assert!(self.seen.lock().unwrap().held.insert(place, buffer).is_none(), "{place:?} put twice");
        Ok(())
    }

    fn take(&self, place: Place, _: usize) -> Result<HostBuffer, String> {
        self.seen.lock().unwrap().held.remove(&place).ok_or_else(|| format!("{place:?} is empty"))
    }

    fn arrived(&self, place: Place) -> Result<()> {
        let mut seen = self.seen.lock().unwrap();
        seen.arrived.push(place);
        // Half of it is done when it fails.
        seen.held.get_mut(&place).unwrap().bytes_mut()[0] += self.add;
        if seen.fails == Some(place) {
            return Err(EngineError::OutOfMemory { reason: "as told".to_owned() });
        }
        seen.held.get_mut(&place).unwrap().bytes_mut()[1..BYTES].iter_mut().for_each(|byte| *byte += self.add);
        Ok(())
    }
}

struct Rig {
    manager: Arc<ModelManager<HostDevice>>,
    module: Arc<Module<HostDevice>>,
    seen: Arc<Mutex<Seen>>,
    _registration: mm_engine::Registration<HostDevice>,
}

/// Every byte of the rest is 100, and of a group its number.
fn spec(seen: &Arc<Mutex<Seen>>, add: u8, groups: usize, bytes: usize) -> ModuleSpec<HostBuffer> {
    let slab = |value: u8| {
        let mut slab = Slab::new(DType::U8);
        slab.push(TensorSlice::from_bytes("w", safetensors::Dtype::U8, [bytes], vec![value; bytes]).unwrap());
        vec![slab]
    };
    let stacks = vec![StackSpec { name: "layers".into(), groups: (0..groups).map(|i| slab(i as u8)).collect() }];
    let homes = Box::new(Adding { seen: seen.clone(), add });
    ModuleSpec { name: "net".into(), phase: None, passes: 2, rest: slab(100), stacks, homes }
}

impl Rig {
    fn new(strategy: Strategy, resident: u32) -> Self {
        let (seen, timeline, budget) = (Arc::default(), Arc::new(Timeline::default()), 64 << 10);
        let device = Arc::new(HostDevice::new(budget, timeline.clone()));
        let module = Module::new(spec(&seen, 0, GROUPS, BYTES), device.clone(), timeline.clone());
        let machine = Machine {
            device: DeviceKind::Host,
            vram_free: Some(budget),
            vram_total: Some(budget),
            ..Machine::default()
        };
        let policy = Policy { strategy, working_set: Some(0), ..Policy::default() };
        let manager = ModelManager::new(device, timeline, machine, policy).unwrap();
        manager.set_block_pin_count("net", resident);
        let _registration = manager.register("net", &module).unwrap();
        Self { manager, module, seen, _registration }
    }

    fn replace(&self, add: u8, bytes: usize) -> Result<()> {
        self.manager.replace(&self.module, spec(&self.seen, add, GROUPS, bytes))
    }

    /// One pass, in which each group, and the rest, is what was stored and this.
    fn pass(&self, add: u8) -> Result<()> {
        let run = self.manager.begin(&self.module)?;
        self.look(add)?;
        run.complete()
    }

    fn look(&self, add: u8) -> Result<()> {
        for group in 0..GROUPS {
            let _lease = self.module.lease(group)?;
            for (place, stored) in [(Place::Group(group), group as u8), (Place::Rest, 100)] {
                let mut seen = self.seen.lock().unwrap();
                let held = seen.held.get_mut(&place).unwrap().bytes_mut();
                assert!(held[..BYTES].iter().all(|byte| *byte == stored + add), "{place:?}: {} {}", held[0], held[1]);
            }
        }
        Ok(())
    }

    fn arrived(&self) -> Vec<Place> {
        std::mem::take(&mut self.seen.lock().unwrap().arrived)
    }
}

#[test]
fn what_arrives_is_added_to_once_and_what_stays_is_not_added_to_again() {
    for (strategy, resident) in [(Strategy::NoOffload, 0), (Strategy::BlockPin, 3), (Strategy::GroupOffload, 0)] {
        let rig = Rig::new(strategy, resident);
        rig.replace(5, BYTES).unwrap();
        rig.pass(5).unwrap();
        let stays = rig.arrived();
        assert!(stays.contains(&Place::Rest));
        assert_eq!(stays.len(), GROUPS + 1, "{strategy}: {stays:?}");
        rig.pass(5).unwrap();
        let again = rig.arrived();
        assert!(!again.contains(&Place::Rest));
        match strategy {
            Strategy::NoOffload => assert!(again.is_empty(), "{again:?}"),
            Strategy::BlockPin => assert!(again.len() <= 3 && !again.is_empty(), "{again:?}"),
            _ => assert!(!again.is_empty()),
        }
        // Twice at once is one arrival.
        let run = rig.manager.begin(&rig.module).unwrap();
        let (_one, _two) = (rig.module.lease(0).unwrap(), rig.module.lease(0).unwrap());
        assert!(rig.arrived().len() <= 1);
        drop(run);
    }
}

#[test]
fn a_change_is_seen_by_the_next_run_and_by_no_other() {
    for (strategy, resident) in [(Strategy::NoOffload, 0), (Strategy::BlockPin, 3), (Strategy::GroupOffload, 0)] {
        let rig = Rig::new(strategy, resident);
        rig.pass(0).unwrap();
        let run = rig.manager.begin(&rig.module).unwrap();
        // Of the same size, then of another.
        rig.replace(3, BYTES).unwrap();
        rig.replace(7, 4 * BYTES).unwrap();
        rig.look(0).unwrap();
        run.complete().unwrap();
        rig.pass(7).unwrap();
        let plan = rig.manager.plan().unwrap();
        assert_eq!((plan.components[0].rest, rig.manager.memory().in_use), (4 * BYTES as u64, plan.peak.device));
        rig.replace(2, 4 * BYTES).unwrap();
        rig.pass(2).unwrap();
        rig.replace(0, BYTES).unwrap();
        rig.pass(0).unwrap();
        assert_eq!(rig.manager.memory().in_use, rig.manager.plan().unwrap().peak.device);
        assert_eq!(rig.module.described(), *rig.module.description());
    }
}

#[test]
fn what_can_not_be_added_is_an_error_and_the_next_run_is_right() {
    for (strategy, place) in [
        (Strategy::GroupOffload, Place::Group(2)),
        (Strategy::GroupOffload, Place::Rest),
        (Strategy::NoOffload, Place::Group(2)),
    ] {
        let rig = Rig::new(strategy, 0);
        rig.replace(9, BYTES).unwrap();
        rig.seen.lock().unwrap().fails = Some(place);
        for _ in 0..2 {
            assert!(matches!(rig.pass(9), Err(EngineError::OutOfMemory { .. })), "{strategy} {place:?}");
        }
        rig.seen.lock().unwrap().fails = None;
        for _ in 0..2 {
            rig.pass(9).unwrap();
        }
        assert_eq!(rig.manager.memory().in_use, rig.manager.plan().unwrap().peak.device);
        rig.manager.unload("net").unwrap();
        assert_eq!((rig.manager.memory().in_use, rig.seen.lock().unwrap().held.len()), (0, 0));
    }
}

#[test]
fn other_groups_and_strangers_are_refused() {
    let rig = Rig::new(Strategy::GroupOffload, 0);
    let other = rig.manager.replace(&rig.module, spec(&rig.seen, 0, GROUPS + 1, BYTES));
    assert!(matches!(other, Err(EngineError::Misuse(text)) if text.contains("other groups")));
    let stranger =
        Module::new(spec(&rig.seen, 0, GROUPS, BYTES), rig.manager.device().clone(), rig.manager.timeline().clone());
    let answer = rig.manager.replace(&stranger, spec(&rig.seen, 0, GROUPS, BYTES));
    assert!(matches!(answer, Err(EngineError::Misuse(text)) if text.contains("no component")));
    rig.pass(0).unwrap();
    assert!(rig.manager.device().memory().peak > 0);
}
