//! Taking components off the device, and out of the manager.

use crate::{Dut, common};
use common::{TestDevice, even, misuse};
use mm_engine::{Device, Released};
use mm_plan::Strategy;

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

fn pair(budget: u64, strategy: Strategy) -> Rig {
    Rig::new(budget, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
}

#[test]
fn clear_forgets_everything_and_old_registrations_count_for_nothing() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    rig.pass(1, 0..10).unwrap();
    let run = rig.begin(0).unwrap();
    assert!(misuse(rig.manager.clear()).contains("text_encoder"));
    run.complete().unwrap();
    rig.manager.clear().unwrap();
    assert_eq!(rig.device.memory().in_use, 0);
    assert!(rig.manager.component_names().is_empty() && rig.manager.plan().is_none());
    let Rig { device, manager, modules, registrations, .. } = rig;
    let fresh = manager.register("transformer", &modules[1]).unwrap();
    drop(registrations);
    assert_eq!(manager.component_names(), ["transformer"]);
    drop((fresh, manager, modules));
    device.check_empty();
}

#[test]
fn unload_takes_an_idle_component_off_and_its_next_run_brings_it_back() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    let run = rig.begin(0).unwrap();
    assert!(misuse(rig.manager.unload("text_encoder")).contains("running"));
    run.complete().unwrap();
    rig.manager.unload("text_encoder").unwrap();
    rig.manager.unload("text_encoder").unwrap();
    assert_eq!(rig.device.memory().in_use, 0);
    rig.pass(0, 0..8).unwrap();
    assert!(misuse(rig.manager.unload("nobody")).contains("nobody"));
    rig.finish();
}

#[test]
fn what_unloading_gave_back_is_told_to_the_byte() {
    for strategy in [Strategy::NoOffload, Strategy::GroupOffload] {
        let rig = pair(ROOMY, strategy);
        rig.pass(0, 0..8).unwrap();
        rig.pass(1, 0..10).unwrap();
        let before = rig.device.memory().in_use;
        let released = rig.manager.unload("transformer").unwrap();
        assert!(released.bytes > 0);
        assert_eq!((released.bytes, released.kept), (before - rig.device.memory().in_use, 0));
        assert_eq!(rig.manager.unload("transformer").unwrap(), Released::default());
        rig.finish();
    }
}

#[test]
fn unregistering_a_running_component_lets_its_run_end() {
    let mut rig = pair(ROOMY, Strategy::GroupOffload);
    let run = rig.begin(1).unwrap();
    rig.registrations.pop();
    rig.lease_each(1, 0..10).unwrap();
    run.complete().unwrap();
    assert!(!rig.modules[1].is_loaded());
    rig.finish();
}

#[test]
fn the_one_used_last_leaves_when_it_is_told_to() {
    let rig = pair(ROOMY, Strategy::ModelOffload);
    assert_eq!(rig.manager.offload_last().unwrap(), None);
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    assert_eq!(rig.manager.offload_last().unwrap().as_deref(), Some("transformer"));
    assert_eq!(rig.device.memory().in_use, 0);
    assert_eq!(rig.manager.offload_last().unwrap(), None);
    let run = rig.begin(0).unwrap();
    assert!(misuse(rig.manager.offload_last()).contains("text_encoder is running"));
    run.complete().unwrap();
    rig.pass(1, 0..10).unwrap();
    rig.finish();
}

#[test]
fn what_stays_between_phases_is_not_the_last_one() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    let mut plan = (*rig.manager.apply().unwrap()).clone();
    plan.components.iter_mut().for_each(|c| c.keep = c.name == "transformer");
    rig.manager.apply_plan(plan).unwrap();
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    assert_eq!(rig.manager.offload_last().unwrap().as_deref(), Some("text_encoder"));
    assert_eq!(rig.manager.offload_last().unwrap(), None);
    assert!(rig.modules[1].is_loaded());
    rig.finish();
}

#[test]
fn a_released_module_is_nobodys_under_any_name() {
    let rig = pair(ROOMY, Strategy::GroupOffload);
    let alias = rig.manager.register("alias", &rig.modules[1]).unwrap();
    let run = rig.begin(1).unwrap();
    assert!(misuse(rig.manager.release(&rig.modules[1])).contains("running"));
    run.complete().unwrap();
    rig.pass(0, 0..8).unwrap();
    assert!(rig.manager.release(&rig.modules[1]).unwrap());
    assert!(!rig.manager.release(&rig.modules[1]).unwrap(), "there is nothing left to do");
    assert_eq!(rig.racks[1].count(), 0);
    assert_eq!(rig.manager.component_names(), ["text_encoder"]);
    assert!(rig.modules[0].is_loaded(), "others are left alone");
    // Handles from before count for nothing.
    let again = rig.manager.register("alias", &rig.modules[1]).unwrap();
    drop(alias);
    assert_eq!(rig.manager.registrations(&rig.modules[1]), 1);
    rig.pass(1, 0..10).unwrap();
    drop(again);
    rig.finish();
}

#[test]
fn what_changed_is_loaded_anew_under_every_strategy() {
    for strategy in [Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload] {
        let rig = pair(ROOMY, strategy);
        rig.manager.set_block_pin_count("transformer", 4);
        rig.pass(1, 0..10).unwrap();
        rig.manager.reapply("transformer").unwrap();
        assert!(!rig.modules[1].is_loaded());
        rig.device.take_started();
        rig.pass(1, 0..10).unwrap();
        // The rest and every block's two slabs.
        assert!(rig.device.take_started().len() > 2 * 10);
        rig.manager.reapply("nobody").unwrap();
        let run = rig.begin(1).unwrap();
        assert!(misuse(rig.manager.reapply("transformer")).contains("running"));
        run.complete().unwrap();
        rig.finish();
    }
}

#[test]
fn clear_resets_tuning_and_keeps_the_strategy() {
    let rig = pair(ROOMY, Strategy::GroupOffload);
    let mut policy = rig.manager.policy();
    (policy.use_stream, policy.low_cpu_mem) = (false, false);
    rig.manager.set_policy(policy.clone());
    rig.manager.set_block_pin_count("transformer", 4);
    let guard = rig.manager.use_components(&["transformer"], Strategy::NoOffload).unwrap();
    rig.pass(1, 0..10).unwrap();
    rig.manager.clear().unwrap();
    let cleared = rig.manager.policy();
    assert!(cleared.use_stream && cleared.low_cpu_mem && cleared.resident.is_empty());
    assert_eq!((cleared.strategy, cleared.working_set), (Strategy::GroupOffload, policy.working_set));
    assert_eq!((rig.manager.applied_strategy(), rig.manager.plan()), (None, None));
    let _again = rig.manager.register("transformer", &rig.modules[1]).unwrap();
    rig.manager.apply().unwrap();
    assert_eq!(rig.manager.component_strategy("transformer"), Some(Strategy::GroupOffload));
    drop(guard);
    rig.pass(1, 0..10).unwrap();
}
