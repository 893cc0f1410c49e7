//! The life cycle: registrations, plans, overrides, room, threads.

mod common;

use common::{Rig, even, policy};
use mm_engine::{Device, EngineError};
use mm_plan::Strategy;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

const ROOMY: u64 = 1 << 20;

fn pair(budget: u64, strategy: Strategy) -> Rig {
    Rig::new(budget, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
}

fn bytes(rig: &Rig, module: usize) -> u64 {
    rig.modules[module].description().bytes()
}

fn misuse<T>(result: Result<T, EngineError>) -> String {
    match result {
        Err(EngineError::Misuse(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("allowed"),
    }
}

#[test]
fn a_component_stays_while_anyone_holds_it() {
    let mut rig = pair(ROOMY, Strategy::ModelOffload);
    let again = rig.manager.register("transformer", &rig.modules[1]).unwrap();
    rig.pass(1, 0..10).unwrap();
    drop(again);
    assert!(rig.modules[1].is_loaded());
    rig.registrations.pop();
    assert!(!rig.modules[1].is_loaded());
    assert_eq!(rig.manager.component_names(), ["text_encoder"]);
    assert!(misuse(rig.begin(1)).contains("not registered"));
    rig.finish();
}

#[test]
fn one_module_under_two_names_counts_once() {
    let mut rig = pair(ROOMY, Strategy::NoOffload);
    let alone = rig.manager.apply().unwrap().peak.device;
    rig.registrations.push(rig.manager.register("text_encoder_2", &rig.modules[0]).unwrap());
    let plan = rig.manager.apply().unwrap();
    assert_eq!(plan.peak.device, alone);
    assert!(Arc::ptr_eq(&rig.manager.get_component("text_encoder_2").unwrap(), &rig.modules[0]));
    rig.pass(0, 0..8).unwrap();
    // The first name goes, the second keeps it.
    rig.registrations.remove(0);
    rig.pass(0, 0..8).unwrap();
    rig.finish();
}

#[test]
fn another_module_takes_a_name_over() {
    let rig = pair(ROOMY, Strategy::Auto);
    rig.pass(1, 0..10).unwrap();
    let (other, _rack) = rig.build(&even("other", 2));
    let taken = rig.manager.register("transformer", &other).unwrap();
    assert!(Arc::ptr_eq(&rig.manager.get_component("transformer").unwrap(), &other));
    assert!(!rig.modules[1].is_loaded());
    assert!(misuse(rig.begin(1)).contains("took its name"));
    drop((taken, other));
    rig.finish();
}

#[test]
fn a_module_of_another_device_is_refused() {
    let rig = pair(ROOMY, Strategy::Auto);
    let other = Rig::new(ROOMY, 1, Strategy::Auto, &[even("vae", 1)]);
    assert!(misuse(rig.manager.register("vae", &other.modules[0])).contains("device"));
    other.finish();
    rig.finish();
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

#[test]
fn an_override_ends_with_its_guard_also_on_a_panic() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    let before = rig.manager.apply().unwrap();
    let guard = rig.manager.use_components(&["transformer"], Strategy::GroupOffload).unwrap();
    rig.pass(1, 0..10).unwrap();
    let plan = rig.manager.plan().unwrap();
    assert_eq!(plan.component("transformer").unwrap().strategy, Strategy::GroupOffload);
    assert_eq!(plan.component("text_encoder").unwrap().strategy, Strategy::NoOffload);
    drop(guard);
    assert_eq!(rig.manager.apply().unwrap(), before);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = rig.manager.use_components(&[], Strategy::GroupOffload).unwrap();
        assert_eq!(rig.manager.apply().unwrap().strategy, Strategy::GroupOffload);
        panic!("inside");
    }));
    assert!(panicked.is_err());
    assert_eq!(rig.manager.apply().unwrap(), before);
    assert!(misuse(rig.manager.use_components(&["nobody"], Strategy::Auto)).contains("nobody"));
    rig.finish();
}

#[test]
fn an_override_gives_a_given_plan_back() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    let given = (*rig.manager.apply().unwrap()).clone();
    rig.manager.set_policy(policy(Strategy::NoOffload));
    rig.manager.apply_plan(given.clone()).unwrap();
    let guard = rig.manager.use_components(&[], Strategy::ModelOffload).unwrap();
    assert_eq!(rig.manager.apply().unwrap().strategy, Strategy::ModelOffload);
    drop(guard);
    assert_eq!(*rig.manager.apply().unwrap(), given);
    rig.finish();
}

#[test]
fn its_own_plan_is_accepted_and_altered_ones_are_refused_with_the_reason() {
    let rig = pair(ROOMY, Strategy::GroupOffload);
    let plan = (*rig.manager.apply().unwrap()).clone();
    rig.manager.apply_plan(plan.clone()).unwrap();
    type Change = fn(&mut mm_plan::Plan);
    let changes: [(&str, Change); 9] = [
        ("schema", |p| p.schema = 2),
        ("budget", |p| p.peak.device = u64::MAX),
        ("slot", |p| p.components[0].slots = 0),
        ("slot", |p| p.components[0].slot_bytes += 256),
        ("takes", |p| p.components[0].stacks[0].resident[0] ^= true),
        ("stacks", |p| p.components[0].stacks[0].resident.truncate(1)),
        ("rest", |p| p.components[0].rest -= 1),
        ("takes", |p| p.components[0].slots = u32::MAX),
        ("no component", |p| p.components.truncate(1)),
    ];
    for (word, change) in changes {
        let mut altered = plan.clone();
        change(&mut altered);
        match rig.manager.apply_plan(altered) {
            Err(EngineError::PlanMismatch { reason }) => assert!(reason.contains(word), "{word}: {reason}"),
            other => panic!("{word}: {other:?}"),
        }
    }
    assert_eq!(*rig.manager.plan().unwrap(), plan, "a refused plan changes nothing");
    rig.pass(0, 0..8).unwrap();
    rig.finish();
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
fn a_component_leaves_only_when_another_needs_the_room() {
    let shapes = || [even("a", 8), even("b", 8), even("c", 8)];
    let rig = Rig::new(ROOMY, 1, Strategy::ModelOffload, &shapes());
    let one = bytes(&rig, 0);
    let plan = rig.manager.apply().unwrap();
    assert_eq!(plan.peak.device, one, "components without a phase are each active alone");
    for module in [0, 0, 1, 1, 2, 0] {
        rig.pass(module, 0..8).unwrap();
        assert_eq!((0..3).filter(|m| rig.modules[*m].is_loaded()).collect::<Vec<_>>(), [module]);
    }
    assert_eq!(rig.device.memory().peak, plan.peak.device);
    // One load of nine buffers a block pair and one rest each time the component changed.
    assert_eq!(rig.device.memory().allocations, 4 * (1 + 8 * 2));
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
fn a_forgotten_run_is_misuse_on_its_own_thread() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    std::mem::forget(rig.begin(0).unwrap());
    assert!(misuse(rig.begin(0)).contains("inside its own run"));
    rig.pass(1, 0..10).unwrap();
}

#[test]
fn a_factory_runs_once_however_many_ask() {
    let rig = pair(ROOMY, Strategy::Auto);
    let runs = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let load = || {
                    runs.fetch_add(1, SeqCst);
                    Ok::<_, std::io::Error>(vec![7u8; 10])
                };
                let loaded =
                    rig.manager.load_component("tokenizer", "tokenizer@1", |v: &Vec<_>| v.len() as u64, load).unwrap();
                assert_eq!(*loaded, [7u8; 10]);
            });
        }
    });
    assert_eq!(runs.load(SeqCst), 1);
    rig.finish();
}

#[test]
fn a_given_plan_is_never_replaced_silently() {
    let mut rig = pair(ROOMY, Strategy::GroupOffload);
    let plan = (*rig.manager.apply().unwrap()).clone();
    rig.manager.apply_plan(plan).unwrap();
    // One component less: the plan no longer is one for what is registered.
    rig.registrations.pop();
    assert!(matches!(rig.begin(0), Err(EngineError::PlanMismatch { reason }) if reason.contains("transformer")));
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    rig.pass(0, 0..8).unwrap();
    rig.finish();
}
