//! Applying plans: only what changes is touched, it leaves before what is new comes, and a failure changes nothing.

use crate::{Dut, common};
use common::{even, misuse, policy, virtual_device::Faults};
use mm_engine::{Device, EngineError};
use mm_plan::{Infeasible, Strategy};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

fn pair(budget: u64, strategy: Strategy) -> Rig {
    Rig::new(budget, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
}

#[test]
fn applying_again_leaves_what_did_not_change() {
    let rig = pair(ROOMY, Strategy::ModelOffload);
    rig.manager.apply().unwrap();
    rig.pass(0, 0..8).unwrap();
    let allocations = rig.device.memory().allocations;
    let (vae, _rack) = rig.build(&even("vae", 1));
    let registration = rig.manager.register("vae", &vae).unwrap();
    rig.manager.apply().unwrap();
    assert!(rig.modules[0].is_loaded());
    rig.pass(0, 0..8).unwrap();
    assert_eq!(rig.device.memory().allocations, allocations);
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    rig.manager.apply().unwrap();
    assert!(!rig.modules[0].is_loaded());
    drop(registration);
    drop(vae);
    rig.finish();
}

const ALL: [Strategy; 4] = [Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

#[test]
fn from_every_strategy_to_every_other() {
    for from in ALL {
        for to in ALL {
            let rig = pair(ROOMY, from);
            rig.manager.set_block_pin_count("transformer", 3);
            let before = rig.manager.apply().unwrap();
            rig.pass(0, 0..8).unwrap();
            rig.pass(1, 0..10).unwrap();
            assert!(rig.device.memory().peak <= before.peak.device);
            let mut changed = policy(to);
            changed.resident.insert("transformer".to_owned(), 3);
            rig.manager.set_policy(changed);
            let after = rig.manager.apply().unwrap();
            assert_eq!(rig.manager.applied_strategy(), Some(to));
            let held = rig.device.memory().in_use;
            assert!(held <= after.peak.device, "{from} to {to}: {held} bytes are held, {} planned", after.peak.device);
            for (module, count) in [(0, 8), (1, 10), (0, 8)] {
                rig.pass(module, 0..count).unwrap();
                assert!(rig.device.memory().in_use <= after.peak.device);
            }
            assert!(rig.device.memory().peak <= before.peak.device.max(after.peak.device), "{from} to {to}");
            rig.finish();
        }
    }
}

/// Where both plans place a component alike it stays; what is over the smaller peak leaves at once.
#[test]
fn a_smaller_peak_holds_from_the_start() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    let allocations = rig.device.memory().allocations;
    rig.manager.set_policy(policy(Strategy::ModelOffload));
    let plan = rig.manager.apply().unwrap();
    assert!(!rig.modules[0].is_loaded(), "used longest ago");
    assert_eq!(rig.device.memory().in_use, plan.peak.device);
    rig.pass(1, 0..10).unwrap();
    assert_eq!(rig.device.memory().allocations, allocations);
    rig.finish();
}

#[test]
fn applying_the_same_again_is_nothing() {
    let rig = pair(ROOMY, Strategy::BlockPin);
    let plan = rig.manager.apply().unwrap();
    rig.pass(1, 0..10).unwrap();
    let memory = rig.device.memory();
    for _ in 0..3 {
        assert_eq!(rig.manager.apply().unwrap(), plan);
        rig.manager.set_policy(policy(Strategy::BlockPin));
        assert_eq!(rig.manager.apply().unwrap(), plan);
    }
    assert_eq!(rig.device.memory(), memory);
    rig.finish();
}

#[test]
fn with_nothing_registered_a_strategy_is_applied_all_the_same() {
    let rig = Rig::empty(ROOMY, Strategy::GroupOffload);
    rig.manager.apply().unwrap();
    assert_eq!(rig.manager.applied_strategy(), Some(Strategy::GroupOffload));
}

#[test]
fn the_block_pin_count_is_clamped_and_zero_is_one() {
    let rig = pair(ROOMY, Strategy::BlockPin);
    for (asked, kept) in [(0, 0), (3, 3), (10, 10), (u32::MAX, 10)] {
        rig.manager.set_block_pin_count("transformer", asked);
        let plan = rig.manager.apply().unwrap();
        assert_eq!(plan.component("transformer").unwrap().resident_count(), kept);
        rig.pass(1, 0..10).unwrap();
        assert!(rig.device.memory().in_use <= plan.peak.device);
    }
    assert_eq!(rig.manager.policy().resident["transformer"], u32::MAX);
    rig.finish();
}

#[test]
fn only_auto_tunes() {
    let low_cpu_mem = |strategy: Strategy, budget: u64| {
        let rig = pair(budget, strategy);
        let plan = rig.manager.apply().unwrap();
        assert!(rig.manager.policy().low_cpu_mem, "what was asked for stays what was asked for");
        rig.finish();
        (plan.strategy, plan.low_cpu_mem)
    };
    // Memory abounds, so what is tuned is tuned to full copies; where `auto` streams.
    assert_eq!(low_cpu_mem(Strategy::Auto, 12_000), (Strategy::BlockPin, false));
    for strategy in [Strategy::BlockPin, Strategy::GroupOffload] {
        assert_eq!(low_cpu_mem(strategy, 12_000), (strategy, true));
    }
}

#[test]
fn a_plan_that_can_not_be_made_leaves_the_one_before() {
    let rig = pair(ROOMY, Strategy::ModelOffload);
    rig.pass(0, 0..8).unwrap();
    let before = rig.manager.apply().unwrap();
    let mut broken = policy(Strategy::NoOffload);
    broken.reserve = ROOMY;
    rig.manager.set_policy(broken);
    assert!(matches!(rig.manager.apply(), Err(EngineError::Infeasible(Infeasible::NeverFits { .. }))));
    assert_eq!((rig.manager.applied_strategy(), rig.manager.plan()), (Some(Strategy::ModelOffload), None));
    assert!(rig.modules[0].is_loaded());
    rig.manager.set_policy(policy(Strategy::ModelOffload));
    assert_eq!(rig.manager.apply().unwrap(), before);
    rig.finish();
}

/// A component that will not leave: the plan before is in force for all of them, and what left comes back.
#[test]
fn a_plan_that_can_not_be_put_in_force_is_rolled_back_for_all() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    // Taking its weights away is an error, once.
    rig.racks[0].refuse_next();
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    assert!(matches!(rig.manager.apply(), Err(EngineError::Internal(text)) if text.contains("refused as told")));
    for name in ["text_encoder", "transformer"] {
        assert_eq!(rig.manager.component_strategy(name), Some(Strategy::NoOffload));
    }
    rig.manager.set_policy(policy(Strategy::NoOffload));
    rig.pass(1, 0..10).unwrap();
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    rig.pass(1, 0..10).unwrap();
    assert_eq!(rig.manager.component_strategy("transformer"), Some(Strategy::GroupOffload));
}

#[test]
fn a_failed_load_leaves_others_and_the_plan_alone() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    rig.pass(0, 0..8).unwrap();
    rig.device.set_faults(Faults::Once(5));
    assert!(rig.begin(1).is_err());
    assert!(rig.modules[0].is_loaded() && !rig.modules[1].is_loaded());
    assert_eq!(rig.device.memory().in_use, rig.modules[0].description().bytes());
    rig.pass(1, 0..10).unwrap();
    rig.finish();
}

#[test]
fn what_runs_does_not_change_and_who_asks_for_that_is_told() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    let run = rig.begin(0).unwrap();
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    assert!(misuse(rig.manager.apply()).contains("text_encoder is running; its strategy can't change"));
    assert!(rig.modules[0].is_loaded());
    rig.lease_each(0, 0..8).unwrap();
    run.complete().unwrap();
    rig.manager.apply().unwrap();
    rig.finish();
}
