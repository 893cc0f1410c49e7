//! Several threads at once: beside each other where that fits, in turn where it doesn't, told where it never can be.

use crate::{Dut, common};
use common::{Shape, even, host, machine, misuse, policy};
use mm_engine::{Device, Homes, HostBuffer, HostDevice, ModelManager, Module, ModuleSpec, Place, timeline::Timeline};
use mm_plan::{DType, Strategy};
use safetensors::Dtype;
use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

fn pair(budget: u64, strategy: Strategy) -> Rig {
    Rig::new(budget, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
}

/// Components that are active together, so that they fit the device together.
fn together(names: &[&'static str], strategy: Strategy) -> Rig {
    let shapes: Vec<Shape> = names.iter().map(|name| Shape { phase: Some(0), ..even(name, 8) }).collect();
    Rig::new(ROOMY, 1, strategy, &shapes)
}

/// Waits until that many threads wait for the manager.
fn until_waiting(rig: &Rig, count: usize) {
    while rig.manager.waiting() != count {
        thread::yield_now();
    }
}

#[test]
fn two_threads_take_turns() {
    let rig = pair(ROOMY, Strategy::ModelOffload);
    let plan = rig.manager.apply().unwrap();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (rig, start) = (&rig, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..25 {
                    let module = worker % 2;
                    let run = rig.begin(module).unwrap();
                    rig.lease_each(module, 0..8).unwrap();
                    run.complete().unwrap();
                }
            });
        }
    });
    assert_eq!(rig.device.memory().peak, plan.peak.device);
    assert_eq!(rig.modules[0].stats().passes + rig.modules[1].stats().passes, 100);
    rig.finish();
}

#[test]
fn threads_that_wait_for_each_other_are_told() {
    let mut shapes = [even("a", 8), even("b", 8)];
    shapes.iter_mut().for_each(|shape| shape.phase = Some(0));
    let rig = Rig::new(ROOMY, 1, Strategy::ModelOffload, &shapes);
    let both = Barrier::new(2);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for first in 0..2 {
            let (rig, both, refused) = (&rig, &both, &refused);
            scope.spawn(move || {
                let run = rig.begin(first).unwrap();
                both.wait();
                match rig.begin(1 - first) {
                    Ok(inner) => inner.complete().unwrap(),
                    Err(error) => {
                        assert!(misuse::<()>(Err(error)).contains("wait for each other's"));
                        refused.fetch_add(1, SeqCst);
                    }
                }
                run.complete().unwrap();
            });
        }
    });
    assert_eq!(refused.load(SeqCst), 1);
    rig.finish();
}

#[test]
fn a_run_in_the_way_of_its_own_thread_is_misuse() {
    let rig = pair(ROOMY, Strategy::ModelOffload);
    let run = rig.begin(0).unwrap();
    assert!(misuse(rig.begin(0)).contains("inside its own run"));
    assert!(misuse(rig.begin(1)).contains("this thread is running"));
    assert!(
        misuse(rig.manager.use_components(&[], Strategy::GroupOffload).map(|_g| rig.begin(1)).unwrap())
            .contains("can't change")
    );
    run.complete().unwrap();
    rig.pass(1, 0..10).unwrap();
    rig.finish();
}

/// Random numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// The components' blocks and phases: some fit together, some pairs don't.
const SIX: [(&str, Option<u32>, u16); 6] = [
    ("text_encoder", Some(0), 4),
    ("text_encoder_2", Some(0), 7),
    ("image_encoder", Some(0), 3),
    ("transformer", Some(1), 12),
    ("refiner", Some(1), 5),
    ("vae", None, 6),
];

/// Sixteen threads run six components in random order, ten thousand times in all, with real copies on worker threads. The budget is
/// the plan's peak, to the byte: one byte more is refused by the device.
fn sixteen_threads(strategy: Strategy, runs: u64) {
    const THREADS: u64 = 16;
    let build = |budget: u64| {
        let timeline = Arc::new(Timeline::new(1));
        let device = Arc::new(HostDevice::new(budget, timeline.clone()));
        let manager = ModelManager::new(device.clone(), timeline.clone(), machine(budget), policy(strategy)).unwrap();
        let mut registrations = Vec::new();
        let mut number = 0;
        let components = SIX.map(|(name, phase, blocks)| {
            let numbers = number..number + blocks;
            number += blocks;
            let (module, shelf) = host::numbered(&device, &timeline, name, phase, numbers.clone());
            registrations.push(manager.register(name, &module).unwrap());
            (module, shelf, numbers)
        });
        (manager, components, registrations)
    };
    let roomy = build(ROOMY);
    let (manager, components, registrations) = build(roomy.0.apply().unwrap().peak.device);
    let peak = manager.apply().unwrap().peak.device;
    assert_eq!(peak, manager.memory().budget);
    let passes: Vec<AtomicUsize> = SIX.iter().map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let (manager, components, passes) = (&manager, &components, &passes);
            scope.spawn(move || {
                let mut random = Random(worker);
                for _ in 0..runs / THREADS {
                    let chosen = random.below(6) as usize;
                    let (module, shelf, numbers) = &components[chosen];
                    let run = manager.begin(module).unwrap();
                    for (group, number) in numbers.clone().enumerate() {
                        let lease = module.lease(group).unwrap();
                        assert!(shelf.is_all(group, f32::from(number)), "{} {group}: other bytes", module.name());
                        drop(lease);
                    }
                    assert!(manager.memory().in_use <= peak);
                    // Others get to run beside it, however few cores there are.
                    thread::yield_now();
                    passes[chosen].fetch_add(1, SeqCst);
                    run.complete().unwrap();
                }
            });
        }
    });
    assert!(manager.memory().peak <= peak, "{:?}", manager.memory());
    assert!(manager.reserves().is_empty(), "somebody ran out of memory");
    let counted: Vec<u64> = passes.iter().map(|count| count.load(SeqCst) as u64).collect();
    assert_eq!(counted.iter().sum::<u64>(), runs);
    let known = components.each_ref().map(|(module, ..)| module.stats().passes);
    assert_eq!(counted, known);
    drop(registrations);
    assert_eq!((manager.memory().in_use, manager.waiting()), (0, 0));
}

#[test]
fn sixteen_threads_run_six_components_ten_thousand_times() {
    sixteen_threads(Strategy::ModelOffload, 10_000);
}

#[test]
fn sixteen_threads_stream_six_components() {
    sixteen_threads(Strategy::GroupOffload, 2000);
}

#[test]
fn what_fits_together_runs_beside_each_other() {
    let rig = together(&["a", "b", "c"], Strategy::ModelOffload);
    let all = Barrier::new(3);
    thread::scope(|scope| {
        for module in 0..3 {
            let (rig, all) = (&rig, &all);
            scope.spawn(move || {
                let run = rig.begin(module).unwrap();
                // Nobody passes before all are inside.
                all.wait();
                rig.lease_each(module, 0..8).unwrap();
                all.wait();
                run.complete().unwrap();
            });
        }
    });
    assert_eq!(rig.device.memory().peak, rig.manager.plan().unwrap().peak.device);
    rig.finish();
}

/// Says that it is being loaded, and goes on when told.
struct SlowHomes {
    shelf: host::Shelf,
    loading: mpsc::SyncSender<()>,
    go_on: parking_lot::Mutex<mpsc::Receiver<()>>,
}

impl Homes<HostBuffer> for SlowHomes {
    fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        self.loading.send(()).unwrap();
        self.go_on.lock().recv().unwrap();
        self.shelf.put(place, slab, buffer)
    }

    fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
        self.shelf.take(place, slab)
    }
}

#[test]
fn loading_keeps_nobody_else_from_running() {
    let timeline = Arc::new(Timeline::default());
    let device = Arc::new(HostDevice::new(ROOMY, timeline.clone()));
    let options = policy(Strategy::NoOffload);
    let manager = ModelManager::new(device.clone(), timeline.clone(), machine(ROOMY), options).unwrap();
    let ((loading, is_loading), (go_on, gone_on)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    let homes = SlowHomes { shelf: host::Shelf::default(), loading, go_on: parking_lot::Mutex::new(gone_on) };
    let slow = ModuleSpec {
        name: "slow".to_owned(),
        phase: None,
        passes: 1,
        rest: vec![host::slab(DType::U8, Dtype::U8, vec![1; 256])],
        stacks: Vec::new(),
        homes: Box::new(homes),
    };
    let slow = Module::new(slow, device.clone(), timeline.clone());
    let (quick, _shelf) = host::component(&device, &timeline, 2);
    let _registrations = [("slow", &slow), ("quick", &quick)].map(|(name, m)| manager.register(name, m).unwrap());
    thread::scope(|scope| {
        let loader = scope.spawn(|| manager.begin(&slow).unwrap().complete().unwrap());
        is_loading.recv().unwrap();
        for _ in 0..3 {
            manager.begin(&quick).unwrap().complete().unwrap();
        }
        // Also what only looks, and what changes something else.
        assert_eq!(manager.stats().len(), 2);
        manager.unload("quick").unwrap();
        assert!(misuse(manager.unload("slow")).contains("running"));
        go_on.send(()).unwrap();
        loader.join().unwrap();
    });
}

#[test]
fn first_come_first_served() {
    let rig = Rig::new(ROOMY, 1, Strategy::ModelOffload, &["a", "b", "c", "d", "e"].map(|name| even(name, 8)));
    let order = parking_lot::Mutex::new(Vec::new());
    let run = rig.begin(0).unwrap();
    thread::scope(|scope| {
        for (place, module) in [3, 1, 4, 2].into_iter().enumerate() {
            let (rig, order) = (&rig, &order);
            scope.spawn(move || {
                let run = rig.begin(module).unwrap();
                order.lock().push(module);
                run.complete().unwrap();
            });
            until_waiting(rig, place + 1);
        }
        run.complete().unwrap();
    });
    assert_eq!(order.into_inner(), [3, 1, 4, 2]);
    rig.finish();
}

/// One thread runs a small component again and again; a large one that waits gets its turn.
#[test]
fn a_large_one_is_not_starved_by_small_ones() {
    let mut shapes = [even("small", 2), even("small_2", 2), even("large", 30)];
    shapes[..2].iter_mut().for_each(|shape| shape.phase = Some(0));
    let rig = Rig::new(ROOMY, 1, Strategy::ModelOffload, &shapes);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        let first = rig.begin(0).unwrap();
        let large = scope.spawn(|| {
            rig.begin(2).unwrap().complete().unwrap();
            served.store(1, SeqCst);
        });
        until_waiting(&rig, 1);
        // The device is never empty: each begins before the other ends.
        let small = scope.spawn(|| {
            let mut passes = 0;
            while served.load(SeqCst) == 0 {
                rig.begin(1).unwrap().complete().unwrap();
                passes += 1;
            }
            passes
        });
        // The small ones come to a halt by themselves, while the first one runs still.
        until_waiting(&rig, 2);
        first.complete().unwrap();
        large.join().unwrap();
        assert!(small.join().unwrap() >= 1);
    });
    rig.finish();
}

#[test]
fn a_run_inside_a_run_is_served_before_those_that_wait_for_it() {
    let rig = Rig::new(
        ROOMY,
        1,
        Strategy::ModelOffload,
        &[Shape { phase: Some(0), ..even("a", 2) }, Shape { phase: Some(0), ..even("b", 2) }, even("large", 30)],
    );
    let outer = rig.begin(0).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| rig.begin(2).unwrap().complete().unwrap());
        until_waiting(&rig, 1);
        for _ in 0..50 {
            rig.begin(1).unwrap().complete().unwrap();
        }
        outer.complete().unwrap();
    });
    rig.finish();
}

#[test]
fn who_waits_for_what_is_taken_away_is_told() {
    let mut rig = pair(ROOMY, Strategy::ModelOffload);
    let run = rig.begin(0).unwrap();
    let (manager, module) = (rig.manager.clone(), rig.modules[1].clone());
    let waits = thread::spawn(move || misuse(manager.begin(&module).map(drop)));
    until_waiting(&rig, 1);
    rig.registrations.pop();
    assert!(waits.join().unwrap().contains("its registration ended"));
    run.complete().unwrap();
    rig.finish();
}

#[test]
fn a_plan_waits_for_the_runs_that_it_changes_and_for_no_others() {
    let rig = together(&["a", "b"], Strategy::NoOffload);
    let run = rig.begin(0).unwrap();
    thread::scope(|scope| {
        let guard = rig.manager.use_components(&["b"], Strategy::GroupOffload).unwrap();
        scope.spawn(|| rig.begin(1).unwrap().complete().unwrap()).join().unwrap();
        assert_eq!(rig.manager.component_strategy("b"), Some(Strategy::GroupOffload), "a runs, and stays as it is");
        drop(guard);
        scope.spawn(|| rig.manager.set_policy(policy(Strategy::GroupOffload))).join().unwrap();
        let other = scope.spawn(|| rig.begin(1).unwrap().complete().unwrap());
        until_waiting(&rig, 1);
        assert_eq!(rig.manager.component_strategy("a"), Some(Strategy::NoOffload));
        rig.lease_each(0, 0..8).unwrap();
        run.complete().unwrap();
        other.join().unwrap();
        assert_eq!(rig.manager.component_strategy("a"), Some(Strategy::GroupOffload));
    });
    rig.finish();
}

/// Registrations, overrides, plans, unloading and runs, all at once.
#[test]
fn everything_at_once() {
    let rig = together(&["a", "b", "c", "d"], Strategy::ModelOffload);
    thread::scope(|scope| {
        for worker in 0..8 {
            let rig = &rig;
            scope.spawn(move || {
                let mut random = Random(worker);
                for _ in 0..200 {
                    let module = random.below(4) as usize;
                    let name = ["a", "b", "c", "d"][module];
                    match random.below(8) {
                        0 => drop(rig.manager.register(&format!("alias{worker}"), &rig.modules[module]).unwrap()),
                        1 => {
                            let strategy = [Strategy::GroupOffload, Strategy::NoOffload][module % 2];
                            let _guard = rig.manager.use_components(&[name], strategy).unwrap();
                            let run = rig.begin(module).unwrap();
                            rig.lease_each(module, 0..8).unwrap();
                            run.complete().unwrap();
                        }
                        // It may be running.
                        2 => drop(rig.manager.unload(name)),
                        3 => drop(rig.manager.apply().unwrap()),
                        _ => {
                            let run = rig.begin(module).unwrap();
                            rig.lease_each(module, 0..8).unwrap();
                            run.complete().unwrap();
                        }
                    }
                }
            });
        }
    });
    rig.manager.apply().unwrap();
    assert!(rig.device.memory().in_use <= rig.manager.plan().unwrap().peak.device);
    rig.finish();
}
