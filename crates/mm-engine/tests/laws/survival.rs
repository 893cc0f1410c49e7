//! Running out of memory: something leaves the device, step by step, the pass is tried again with the same bytes, and what left
//! comes back.

use crate::{Dut, common};
use common::{Shape, TestDevice, even, policy};
use mm_engine::{Device, EngineError};
use mm_plan::Strategy;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    thread,
};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

/// Good passes until something comes back.
const PASSES: u32 = 32;

fn pair(strategy: Strategy) -> Rig {
    Rig::new(ROOMY, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
}

fn spent() -> EngineError {
    EngineError::OutOfMemory { reason: "computing".to_owned() }
}

/// Bytes that the transformer holds by the plan.
fn planned(rig: &Rig) -> u64 {
    rig.manager.apply().unwrap().component("transformer").unwrap().engine_bytes
}

/// The least that the transformer can do with: its rest and one slot.
fn least(rig: &Rig) -> u64 {
    let transformer = rig.modules[1].description();
    transformer.rest + transformer.stacks[0].groups[0].bytes()
}

/// Passes of the transformer, of which those compute out of memory that `fits` says no to; what was on the device at each.
fn survive(rig: &Rig, mut fits: impl FnMut(u64) -> bool) -> (Result<(), EngineError>, Vec<u64>) {
    let mut held = Vec::new();
    let pass = || {
        held.push(rig.device.memory().in_use);
        rig.lease_each(1, 0..5)?;
        if !fits(rig.device.memory().in_use) {
            let _lease = rig.modules[1].lease(5)?;
            return Err(spent());
        }
        rig.lease_each(1, 5..10)
    };
    let outcome = rig.manager.run(&rig.modules[1], pass, EngineError::shortage);
    rig.device.check();
    (outcome, held)
}

#[test]
fn idle_ones_leave_first_then_residents_then_slots_and_at_last_it_is_told() {
    let rig = pair(Strategy::Auto);
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    let both = rig.device.memory().in_use;
    let own = planned(&rig);
    assert!(own < both);
    let (outcome, held) = survive(&rig, |_| false);
    assert!(matches!(outcome, Err(EngineError::OutOfMemory { .. })), "{outcome:?}");
    assert!(!rig.modules[0].is_loaded());
    assert_eq!(held[..2], [both, own], "what is idle leaves first, and nothing else with it");
    assert!(held.windows(2).all(|pair| pair[0] > pair[1]) && held.len() <= 6, "{held:?}");
    assert_eq!(*held.last().unwrap(), least(&rig));
    let plan = rig.manager.apply().unwrap();
    let placed = plan.component("transformer").unwrap();
    assert_eq!((placed.resident_count(), placed.slots), (0, 1));
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    assert_eq!(rig.device.memory().in_use, least(&rig), "others leave before it runs");
    rig.finish();
}

#[test]
fn a_pass_that_fits_at_last_is_right_and_a_note_says_what_was_given_up() {
    let rig = pair(Strategy::Auto);
    let before = planned(&rig);
    assert!(rig.manager.reserves().is_empty());
    let (outcome, held) = survive(&rig, |held| held <= before / 2);
    outcome.unwrap();
    assert!(held.len() > 1 && *held.last().unwrap() <= before / 2, "{held:?}");
    let plan = rig.manager.plan().unwrap();
    let note = plan.notes.iter().find(|note| note.code == "out_of_memory").unwrap();
    assert_eq!(note.component.as_deref(), Some("transformer"));
    assert!(note.numbers["reserve"] >= before - held.last().unwrap());
    assert_eq!(note.numbers["times"], held.len() as u64 - 1);
    assert_eq!(rig.manager.reserves()[0].component, note.component);
    rig.finish();
}

#[test]
fn what_was_given_up_comes_back_after_good_passes() {
    let rig = pair(Strategy::Auto);
    let before = planned(&rig);
    rig.pass(0, 0..8).unwrap();
    let mut left = 3;
    let (outcome, held) = survive(&rig, |_| {
        left -= 1;
        left < 0
    });
    outcome.unwrap();
    assert_eq!(held.len(), 4);
    let after_two = planned(&rig);
    for _ in 1..PASSES {
        assert_eq!(planned(&rig), after_two);
        rig.pass(1, 0..10).unwrap();
    }
    // The pass that survived was the first good one.
    let after_one = planned(&rig);
    assert!(after_two < after_one && after_one < before);
    for _ in 0..PASSES {
        rig.pass(1, 0..10).unwrap();
    }
    assert_eq!(planned(&rig), before);
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    assert!(!rig.modules[0].is_loaded());
    for _ in 1..PASSES {
        rig.pass(1, 0..10).unwrap();
    }
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    assert!(rig.modules[0].is_loaded(), "what is idle may stay again");
    assert!(rig.manager.reserves().is_empty());
    rig.finish();
}

#[test]
fn a_given_plan_is_run_exactly_but_idle_ones_leave() {
    let rig = pair(Strategy::NoOffload);
    let plan = (*rig.manager.apply().unwrap()).clone();
    rig.manager.apply_plan(plan.clone()).unwrap();
    rig.pass(0, 0..8).unwrap();
    let (outcome, held) = survive(&rig, |_| false);
    assert!(matches!(outcome, Err(EngineError::OutOfMemory { .. })), "{outcome:?}");
    assert_eq!(held.len(), 2, "once with the other one there, once without");
    assert_eq!(*rig.manager.apply().unwrap(), plan);
    let (outcome, held) = survive(&rig, |_| true);
    outcome.unwrap();
    assert_eq!(held, [plan.component("transformer").unwrap().engine_bytes]);
    rig.finish();
}

#[test]
fn a_strategy_that_was_asked_for_by_name_is_not_demoted() {
    for strategy in [Strategy::ModelOffload, Strategy::NoOffload] {
        let rig = pair(strategy);
        let before = planned(&rig);
        let (outcome, held) = survive(&rig, |_| false);
        assert!(outcome.is_err());
        assert_eq!((held.len(), planned(&rig)), (1, before));
        // What is of no use is not reserved.
        assert!(rig.manager.reserves().iter().all(|note| note.numbers["reserve"] == 0));
        rig.finish();
    }
}

#[test]
fn an_error_that_is_no_shortage_is_told_at_once() {
    let rig = pair(Strategy::Auto);
    let mut calls = 0;
    let pass = || {
        calls += 1;
        Err::<(), _>(EngineError::Misuse("as told".to_owned()))
    };
    let outcome = rig.manager.run(&rig.modules[1], pass, EngineError::shortage);
    assert!(matches!(outcome, Err(EngineError::Misuse(_))));
    assert_eq!(calls, 1);
    assert!(rig.manager.reserves().is_empty());
    rig.finish();
}

#[test]
fn a_whole_with_nothing_beside_it_is_told_at_once() {
    let whole = Shape { name: "vae", phase: None, rest: 500, stacks: Vec::new() };
    let rig = Rig::new(ROOMY, 1, Strategy::Auto, &[whole]);
    let mut calls = 0;
    let pass = || {
        calls += 1;
        Err::<(), _>(spent())
    };
    assert!(rig.manager.run(&rig.modules[0], pass, EngineError::shortage).is_err());
    assert_eq!(calls, 1);
    rig.manager.run(&rig.modules[0], || Ok::<_, EngineError>(()), EngineError::shortage).unwrap();
    rig.finish();
}

#[test]
fn a_panic_in_a_pass_that_is_tried_again_leaves_the_next_right() {
    let rig = pair(Strategy::Auto);
    let mut calls = 0;
    let pass = || {
        let _lease = rig.modules[1].lease(3)?;
        calls += 1;
        assert!(calls < 2, "inside a run");
        Err::<(), _>(spent())
    };
    let run = || rig.manager.run(&rig.modules[1], pass, EngineError::shortage);
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    rig.pass(1, 0..10).unwrap();
    rig.pass(0, 0..8).unwrap();
    rig.finish();
}

/// Whoever gives a pass up, before memory ran out or after, leaves nothing behind.
#[test]
fn a_pass_given_up_at_any_group_leaves_the_next_right() {
    for bad in [false, true] {
        for given_up in 0..10 {
            let rig = pair(Strategy::Auto);
            if bad {
                let mut left = 2;
                survive(&rig, |_| {
                    left -= 1;
                    left < 0
                })
                .0
                .unwrap();
            }
            let run = rig.begin(1).unwrap();
            rig.lease_each(1, 0..given_up).unwrap();
            let lease = rig.modules[1].lease(given_up).unwrap();
            drop(run);
            drop(lease);
            rig.pass(1, 0..10).unwrap();
            rig.pass(0, 0..8).unwrap();
            rig.finish();
        }
    }
}

#[test]
fn what_this_thread_runs_around_it_stays() {
    let beside = |name: &'static str, blocks: usize| Shape { phase: Some(0), ..even(name, blocks) };
    let rig = Rig::new(ROOMY, 1, Strategy::Auto, &[beside("text_encoder", 8), beside("transformer", 10)]);
    let around = rig.begin(0).unwrap();
    let (outcome, held) = survive(&rig, |_| false);
    assert!(matches!(outcome, Err(EngineError::OutOfMemory { .. })), "{outcome:?}");
    assert!(held.len() <= 6);
    rig.lease_each(0, 0..8).unwrap();
    around.complete().unwrap();
    rig.pass(1, 0..10).unwrap();
    rig.finish();
}

#[test]
fn another_policy_and_other_components_are_planned_with_what_was_learned() {
    let mut rig = pair(Strategy::Auto);
    let (outcome, _) = survive(&rig, |_| false);
    assert!(outcome.is_err());
    rig.manager.set_policy(policy(Strategy::BlockPin));
    assert_eq!(planned(&rig), least(&rig));
    // A component that is gone, and registered again, is another.
    rig.registrations.pop();
    rig.registrations.push(rig.manager.register("transformer", &rig.modules[1]).unwrap());
    assert!(planned(&rig) > least(&rig));
    assert!(survive(&rig, |_| false).0.is_err());
    rig.manager.clear().unwrap();
    let _again = rig.manager.register("transformer", &rig.modules[1]).unwrap();
    assert!(planned(&rig) > least(&rig));
    drop(_again);
    rig.finish();
}

#[test]
fn threads_that_run_out_of_memory_now_and_then_all_get_through() {
    let shapes = [even("a", 6), even("b", 8), even("c", 10)];
    let rig = Rig::new(20_000, 3, Strategy::Auto, &shapes);
    let survived = AtomicU32::new(0);
    thread::scope(|scope| {
        for thread in 0..6usize {
            let (rig, survived) = (&rig, &survived);
            scope.spawn(move || {
                for pass in 0..40usize {
                    let module = (thread + pass * 5) % 3;
                    let mut bad = (thread * 7 + pass * 3) % 11 < 2;
                    let one = || {
                        rig.lease_each(module, 0..6)?;
                        if std::mem::take(&mut bad) {
                            survived.fetch_add(1, SeqCst);
                            return Err(spent());
                        }
                        Ok(())
                    };
                    let outcome = rig.manager.run(&rig.modules[module], one, EngineError::shortage);
                    assert!(outcome.is_ok() || matches!(outcome, Err(EngineError::OutOfMemory { .. })), "{outcome:?}");
                }
            });
        }
    });
    assert!(survived.load(SeqCst) > 20);
    assert!(rig.device.memory().peak <= 20_000);
    rig.finish();
}
