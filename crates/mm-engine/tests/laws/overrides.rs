//! Strategies that are in force while a guard lives.

use crate::{Dut, common};
use common::{TestDevice, even, misuse, policy};
use mm_engine::Device;
use mm_plan::Strategy;
use std::panic::{AssertUnwindSafe, catch_unwind};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

fn pair(budget: u64, strategy: Strategy) -> Rig {
    Rig::new(budget, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
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

fn strategies(rig: &Rig) -> [Strategy; 2] {
    rig.manager.apply().unwrap();
    ["text_encoder", "transformer"].map(|name| rig.manager.component_strategy(name).unwrap())
}

#[test]
fn it_is_applied_at_the_first_run_and_touches_nothing_before() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    rig.pass(0, 0..8).unwrap();
    rig.pass(1, 0..10).unwrap();
    let guard = rig.manager.use_components(&["transformer"], Strategy::GroupOffload).unwrap();
    assert!(rig.modules[1].is_loaded());
    rig.pass(0, 0..8).unwrap();
    assert!(!rig.modules[1].is_loaded(), "its placement changed");
    assert!(rig.modules[0].is_loaded(), "this one's did not");
    drop(guard);
    rig.finish();
}

#[test]
fn guards_end_in_any_order_and_the_one_made_last_wins() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let rig = pair(ROOMY, Strategy::NoOffload);
        let asked = [Strategy::GroupOffload, Strategy::ModelOffload, Strategy::BlockPin];
        let mut guards: Vec<_> =
            asked.iter().map(|s| Some(rig.manager.use_components(&["transformer"], *s).unwrap())).collect();
        for ended in order {
            let last = asked.iter().zip(&guards).rev().find(|(_, guard)| guard.is_some()).unwrap().0;
            assert_eq!(strategies(&rig), [Strategy::NoOffload, *last], "{order:?}");
            rig.pass(1, 0..10).unwrap();
            guards[ended] = None;
        }
        assert_eq!(strategies(&rig), [Strategy::NoOffload; 2]);
        rig.finish();
    }
}

#[test]
fn one_for_all_and_one_for_a_few_combine() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    let few = rig.manager.use_components(&["transformer"], Strategy::GroupOffload).unwrap();
    let all = rig.manager.use_components(&[], Strategy::ModelOffload).unwrap();
    assert_eq!(strategies(&rig), [Strategy::ModelOffload; 2], "the last one is for all");
    let again = rig.manager.use_components(&["text_encoder"], Strategy::GroupOffload).unwrap();
    assert_eq!(strategies(&rig), [Strategy::GroupOffload, Strategy::ModelOffload]);
    drop(all);
    assert_eq!(strategies(&rig), [Strategy::GroupOffload; 2]);
    drop((few, again));
    rig.finish();
}

#[test]
fn any_earlier_strategy_comes_back_block_pin_and_its_count_too() {
    for before in [Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload] {
        let rig = pair(ROOMY, before);
        rig.manager.set_block_pin_count("transformer", 4);
        let plan = rig.manager.apply().unwrap();
        rig.pass(1, 0..10).unwrap();
        for during in [Strategy::ModelOffload, Strategy::GroupOffload, Strategy::NoOffload] {
            let guard = rig.manager.use_components(&["transformer"], during).unwrap();
            assert_eq!(strategies(&rig)[1], during);
            rig.pass(1, 0..10).unwrap();
            drop(guard);
            assert_eq!(rig.manager.apply().unwrap(), plan);
            rig.pass(1, 0..10).unwrap();
            assert_eq!(rig.device.memory().in_use, plan.component("transformer").unwrap().engine_bytes);
        }
        rig.finish();
    }
}

#[test]
fn an_error_inside_ends_it() {
    let rig = pair(ROOMY, Strategy::NoOffload);
    let inside = || -> Result<(), mm_engine::EngineError> {
        let _guard = rig.manager.use_components(&[], Strategy::GroupOffload)?;
        rig.pass(0, 0..8)?;
        rig.pass(0, [99])
    };
    assert!(misuse(inside()).contains("no group 99"));
    rig.device.set_frozen(false);
    assert_eq!(strategies(&rig), [Strategy::NoOffload; 2]);
    rig.finish();
}

#[test]
fn one_that_can_not_be_leaves_the_plan_before_in_force() {
    // Both fit only where they stream.
    let rig = pair(8000, Strategy::GroupOffload);
    let before = rig.manager.apply().unwrap();
    rig.pass(0, 0..8).unwrap();
    let guard = rig.manager.use_components(&[], Strategy::NoOffload).unwrap();
    assert!(matches!(rig.begin(0), Err(mm_engine::EngineError::Infeasible(_))));
    assert!(rig.manager.apply().is_err());
    assert!(rig.modules[0].is_loaded());
    assert_eq!(rig.manager.component_strategy("text_encoder"), Some(Strategy::GroupOffload));
    drop(guard);
    assert_eq!(rig.manager.apply().unwrap(), before);
    rig.finish();
}

/// A thread inside a run that asks for nothing goes on, whatever others ask for meanwhile.
#[test]
fn others_overrides_do_not_disturb_who_is_inside_a_run() {
    let mut shapes = [even("a", 8), even("b", 8)];
    shapes.iter_mut().for_each(|shape| shape.phase = Some(0));
    let rig = Rig::new(ROOMY, 1, Strategy::NoOffload, &shapes);
    let run = rig.begin(0).unwrap();
    let guard = std::thread::scope(|scope| {
        scope.spawn(|| rig.manager.use_components(&[], Strategy::GroupOffload).unwrap()).join().unwrap()
    });
    let inner = rig.begin(1).unwrap();
    assert_eq!(rig.manager.component_strategy("b"), Some(Strategy::NoOffload), "by the plan that it began under");
    inner.complete().unwrap();
    run.complete().unwrap();
    rig.begin(1).unwrap().complete().unwrap();
    assert_eq!(rig.manager.component_strategy("b"), Some(Strategy::GroupOffload));
    drop(guard);
    rig.finish();
}

/// It is the names that are meant: who takes one over takes the strategy over, and one that is gone is passed over.
#[test]
fn it_follows_the_name() {
    let mut rig = pair(ROOMY, Strategy::NoOffload);
    let guard = rig.manager.use_components(&["transformer"], Strategy::GroupOffload).unwrap();
    let (other, _rack) = rig.build(&even("other", 9));
    let taken = rig.manager.register("transformer", &other).unwrap();
    assert_eq!(strategies(&rig), [Strategy::NoOffload, Strategy::GroupOffload]);
    drop(taken);
    rig.registrations.pop();
    rig.manager.apply().unwrap();
    rig.pass(0, 0..8).unwrap();
    drop((guard, other));
    rig.finish();
}
