//! Passes: right bytes in every lease, the plan's bytes exactly, nothing allocated on the way.

use crate::{Dut, common};
use common::{Shape, TestDevice, even, on_tiers, placement, plan_of};
use mm_engine::{Device, EngineError};
use mm_plan::Strategy;
use std::panic::{AssertUnwindSafe, catch_unwind};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 24;

/// Two stacks whose blocks differ in size and in dtypes.
fn mixed() -> Shape {
    let stacks = vec![vec![(100, 70), (300, 0), (0, 500)], vec![(64, 64), (1, 900), (700, 1)]];
    Shape { name: "transformer", phase: None, rest: 77, stacks }
}

/// A rig whose one component has these residents and slots.
fn rig(shape: Shape, resident: &[bool], slots: u32, seed: u64) -> Rig {
    let rig = Rig::new(ROOMY, seed, Strategy::Auto, &[shape]);
    let plan = placement(rig.modules[0].description(), resident, slots);
    let plan = plan_of(vec![on_tiers(plan, rig.device.host_tiers())]);
    rig.manager.apply_plan(plan).unwrap();
    rig
}

fn streamed(blocks: usize, slots: u32, seed: u64) -> Rig {
    rig(even("transformer", blocks), &vec![false; blocks], slots, seed)
}

fn is_misuse(error: &EngineError) -> bool {
    matches!(error, EngineError::Misuse(_))
}

#[test]
fn every_plan_streams_the_right_bytes_in_exactly_its_own_bytes() {
    for residents in 0..64u32 {
        for slots in 1..=4 {
            let resident: Vec<bool> = (0..6).map(|g| residents >> g & 1 == 1).collect();
            let rig = rig(mixed(), &resident, slots, u64::from(residents * 4 + slots));
            let planned = rig.manager.plan().unwrap().components[0].engine_bytes;
            for pass in 0..3 {
                rig.pass(0, 0..6).unwrap();
                assert_eq!(rig.device.memory().in_use, planned, "after pass {pass} of {resident:?} with {slots} slots");
            }
            assert_eq!(rig.device.memory().peak, planned);
            rig.finish();
        }
    }
}

#[test]
fn nothing_is_allocated_after_loading() {
    let rig = streamed(5, 2, 1);
    rig.pass(0, 0..5).unwrap();
    let allocations = rig.device.memory().allocations;
    assert!(allocations > 0);
    for _ in 0..10 {
        rig.pass(0, 0..5).unwrap();
    }
    assert_eq!(rig.device.memory().allocations, allocations);
    rig.finish();
}

#[test]
fn copies_are_in_flight_together_and_the_next_pass_starts_before_this_one_ends() {
    let rig = streamed(6, 3, 7);
    rig.pass(0, 0..6).unwrap();
    rig.device.take_started();
    let run = rig.begin(0).unwrap();
    rig.lease_each(0, 0..5).unwrap();
    let lease = rig.modules[0].lease(5).unwrap();
    // While the last group computes, the first two of the next pass are on their way or there.
    let started = rig.device.take_started();
    let last: Vec<&str> = started.iter().rev().take(4).map(String::as_str).collect();
    assert!(last.iter().all(|name| matches!(*name, "transformer.stack0.0" | "transformer.stack0.1")), "{started:?}");
    drop(lease);
    run.complete().unwrap();
    assert!(rig.device.most_in_flight() > 1);
    rig.finish();
}

#[test]
fn the_order_is_learned_so_a_later_pass_copies_each_group_once() {
    for order in [vec![5, 4, 3, 2, 1, 0], vec![0, 1, 2, 3, 4], vec![2, 0, 5, 3]] {
        let rig = streamed(6, 2, 3);
        for _ in 0..3 {
            rig.pass(0, order.clone()).unwrap();
        }
        rig.device.take_started();
        rig.pass(0, order.clone()).unwrap();
        // Two slabs a group; nothing beside the groups asked for is copied.
        assert_eq!(rig.device.take_started().len(), 2 * order.len(), "{order:?}");
        rig.finish();
    }
}

#[test]
fn a_group_nobody_leases_is_dropped_when_another_is_asked_for() {
    let rig = streamed(4, 1, 5);
    // One slot: group 0 was foreseen at load, and is never asked for.
    for _ in 0..3 {
        rig.pass(0, [3]).unwrap();
        rig.pass(0, [1, 2]).unwrap();
    }
    rig.finish();
}

#[test]
fn more_leases_than_slots_are_refused_at_once() {
    let rig = streamed(5, 2, 9);
    let run = rig.begin(0).unwrap();
    let module = &rig.modules[0];
    let held = [module.lease(0).unwrap(), module.lease(1).unwrap()];
    let error = module.lease(2).err().unwrap();
    assert!(is_misuse(&error) && error.to_string().contains("2 slots"), "{error}");
    assert!(rig.racks[0].holds(Some(0)) && rig.racks[0].holds(Some(1)));
    drop(held);
    rig.lease_each(0, 0..5).unwrap();
    run.complete().unwrap();
    rig.finish();
}

#[test]
fn one_group_may_be_leased_twice() {
    let rig = streamed(3, 1, 9);
    let run = rig.begin(0).unwrap();
    let first = rig.modules[0].lease(1).unwrap();
    let second = rig.modules[0].lease(1).unwrap();
    drop(first);
    assert!(rig.racks[0].holds(Some(1)));
    drop(second);
    assert!(!rig.racks[0].holds(Some(1)));
    rig.lease_each(0, 0..3).unwrap();
    run.complete().unwrap();
    rig.finish();
}

#[test]
fn a_lease_needs_a_run_and_a_group_that_exists() {
    let rig = streamed(3, 2, 9);
    assert!(is_misuse(&rig.modules[0].lease(0).err().unwrap()));
    let run = rig.begin(0).unwrap();
    for group in [3, usize::MAX] {
        assert!(is_misuse(&rig.modules[0].lease(group).err().unwrap()));
    }
    run.complete().unwrap();
    assert!(is_misuse(&rig.modules[0].lease(0).err().unwrap()));
    rig.finish();
}

#[test]
fn a_panic_inside_a_run_leaves_the_next_run_right() {
    let rig = streamed(5, 2, 11);
    rig.pass(0, 0..5).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _run = rig.begin(0).unwrap();
        let _lease = rig.modules[0].lease(2).unwrap();
        panic!("inside a run");
    }));
    assert!(panicked.is_err());
    rig.pass(0, 0..5).unwrap();
    rig.finish();
}

#[test]
fn a_lease_that_outlives_its_placement_touches_no_later_one() {
    let rig = streamed(4, 2, 13);
    let run = rig.begin(0).unwrap();
    let stale = rig.modules[0].lease(1).unwrap();
    run.complete().unwrap();
    rig.manager.unload("transformer").unwrap();
    let run = rig.begin(0).unwrap();
    let fresh = rig.modules[0].lease(1).unwrap();
    drop(stale);
    assert!(rig.racks[0].holds(Some(1)), "the old lease took the weights of the new one away");
    drop(fresh);
    run.complete().unwrap();
    rig.finish();
}
