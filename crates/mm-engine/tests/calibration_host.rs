//! Calibration on the host device, whose times nobody knows: what is computed stays the same bytes, from several threads too.

mod common;

use common::{host::Shelf, host::component, host::slab, machine, policy};
use mm_engine::{
    Calibration, HostDevice, ModelManager, Module, ModuleSpec, StackSpec, calibrate::Hysteresis, timeline::Timeline,
};
use mm_plan::{DType, Rule, Strategy};
use safetensors::Dtype;
use std::{sync::Arc, thread};

const BLOCKS: u16 = 12;

/// Any gain replaces a plan.
fn any() -> Calibration {
    Calibration::of("test").hysteresis(Hysteresis { gain_permille: 0, ..Hysteresis::default() })
}

#[test]
fn outputs_are_the_same_before_and_after_the_plan_is_redone() {
    let timeline = Arc::new(Timeline::default());
    // Room for five blocks.
    let budget = 5 * 4096;
    let device = Arc::new(HostDevice::new(budget, timeline.clone()));
    let (module, shelf) = component(&device, &timeline, BLOCKS);
    let manager = ModelManager::new(device, timeline.clone(), machine(budget), policy(Strategy::GroupOffload)).unwrap();
    manager.calibrate(any()).unwrap();
    // What is recorded doesn't matter.
    timeline.set_recording(false);
    let _registration = manager.register("transformer", &module).unwrap();
    let before = manager.apply().unwrap();
    let pass = || {
        let run = manager.begin(&module).unwrap();
        let mut sum = 0.0;
        for group in 0..usize::from(BLOCKS) {
            let _lease = module.lease(group).unwrap();
            assert_eq!(shelf.first(group), Some(group as f32));
            // Some thousand roundings whose order counts.
            sum = (0..2000).fold(sum, |sum: f32, _| (sum + shelf.first(group).unwrap_or(f32::NAN)) * 0.7);
        }
        run.complete().unwrap();
        (sum.to_bits(), manager.plan().unwrap())
    };
    let (first, plan) = pass();
    assert!(Arc::ptr_eq(&plan, &before));
    for _ in 0..4 {
        assert_eq!(pass().0, first);
    }
    // Whatever the times were, a plan for half of the memory is another one.
    manager.set_free_memory(budget * 3 / 5);
    let mut policy = policy(Strategy::BlockPin);
    policy.rule = Some(Rule::Cost);
    manager.set_policy(policy);
    let (sum, after) = pass();
    assert_eq!(sum, first);
    assert_ne!(after.components, before.components);
    assert_eq!(after.rule, Rule::Cost, "its links were measured");
    for _ in 0..20 {
        assert_eq!(pass().0, first);
    }
    let figures = manager.calibration().unwrap().figures;
    assert!(figures.links.unwrap().h2d > 0);
    let measured = &figures.components["transformer"];
    assert_eq!(measured.compute_ns.len(), usize::from(BLOCKS));
    assert!(measured.compute_ns.iter().all(|ns| ns.is_some_and(|ns| ns > 0)), "{measured:?}");
    assert!(manager.memory().peak <= budget);
}

#[test]
fn threads_that_run_components_beside_each_other_go_on_while_plans_are_redone() {
    let timeline = Arc::new(Timeline::new(100));
    let budget = 40 * 4096;
    let device = Arc::new(HostDevice::new(budget, timeline.clone()));
    let manager = ModelManager::new(device.clone(), timeline.clone(), machine(budget), policy(Strategy::Auto)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    manager.calibrate(any().kept_in(folder.path())).unwrap();
    let mut registrations = Vec::new();
    let components: Vec<_> = (0..4u16)
        .map(|index| {
            let shelf = Shelf::default();
            let value = |i: u16| f32::from(100 * index + i).to_le_bytes().repeat(1024);
            let groups = (0..BLOCKS).map(|i| vec![slab(DType::F32, Dtype::F32, value(i))]).collect();
            let spec = ModuleSpec {
                name: format!("component {index}"),
                phase: Some(u32::from(index / 2)),
                passes: 4,
                rest: Vec::new(),
                stacks: vec![StackSpec { name: "layers".to_owned(), groups }],
                homes: Box::new(shelf.clone()),
            };
            let module = Module::new(spec, device.clone(), timeline.clone());
            registrations.push(manager.register(module.name(), &module).unwrap());
            (index, module, shelf)
        })
        .collect();
    thread::scope(|scope| {
        for (index, module, shelf) in &components {
            let manager = &manager;
            scope.spawn(move || {
                for pass in 0..150 {
                    if pass % 10 == 0 {
                        manager.set_free_memory(budget * (6 + pass / 10 % 5) / 10);
                    }
                    let run = manager.begin(module).unwrap();
                    for group in 0..usize::from(BLOCKS) {
                        let _lease = module.lease(group).unwrap();
                        assert_eq!(shelf.first(group), Some(f32::from(100 * index) + group as f32));
                    }
                    run.record_activation(pass);
                    run.complete().unwrap();
                    assert!(manager.memory().in_use <= budget);
                }
            });
        }
    });
    let report = manager.calibration().unwrap();
    assert_eq!(report.figures.components.len(), 4);
    assert!(report.figures.components.values().all(|figures| figures.passes >= 16), "{:?}", report.figures);
    drop((registrations, components));
    assert_eq!(manager.memory().in_use, 0);
}
