//! Every call of the device fails once, and from there on for ever: the error is said or the run is
//! right, nothing leaks, and the next run without faults is right.

mod common;

use common::{
    Shape, TestDevice, even, placement, plan_of, policy,
    virtual_device::{Faults, Others, VirtualDevice},
};
use mm_engine::{Device, EngineError};
use mm_plan::{Plan, Policy, Strategy};

type Rig = common::Rig<VirtualDevice>;

const ROOMY: u64 = 1 << 24;

/// Streams, has residents, is a whole: three components that take turns on the device.
fn rig(seed: u64) -> Rig {
    let mut whole = even("vae", 0);
    whole.stacks.clear();
    let rig = Rig::new(ROOMY, seed, Strategy::Auto, &[even("text_encoder", 4), even("transformer", 5), whole]);
    let plans = [(vec![false; 4], 2), (vec![true, false, true, false, false], 3), (vec![], 0)];
    let placements =
        rig.modules.iter().zip(plans).map(|(m, (resident, slots))| placement(m.description(), &resident, slots));
    rig.manager.apply_plan(plan_of(placements.collect())).unwrap();
    rig
}

/// A request: encode, two denoising steps, decode.
fn request(rig: &Rig) -> Result<(), EngineError> {
    rig.pass(0, 0..4)?;
    rig.pass(1, 0..5)?;
    rig.pass(1, 0..5)?;
    rig.pass(2, [])
}

fn calls_of_a_request() -> u64 {
    let rig = rig(1);
    request(&rig).unwrap();
    let calls = rig.device.calls();
    rig.finish();
    calls
}

#[test]
fn the_nth_call_fails_once() {
    let calls = calls_of_a_request();
    assert!(calls > 60, "{calls}");
    let mut failed = 0;
    for at in 0..calls {
        let rig = rig(at);
        rig.device.set_faults(Faults::Once(at));
        if let Err(error) = request(&rig) {
            failed += 1;
            let told = error.to_string();
            assert!(told.contains("as told") || matches!(error, EngineError::OverBudget { .. }), "call {at}: {told}");
        }
        rig.device.set_faults(Faults::None);
        request(&rig).unwrap_or_else(|error| panic!("after a fault at call {at}: {error}"));
        rig.finish();
    }
    // Foreseen copies are tried again when they are needed; what fails then, and allocations, are told.
    assert!(failed > 20 && failed < calls, "{failed} of {calls} faults were told");
}

#[test]
fn every_call_fails_from_the_nth_on() {
    for at in 0..calls_of_a_request() {
        let rig = rig(at);
        rig.device.set_faults(Faults::Forever(at));
        let first = request(&rig);
        assert!(first.is_err() || at + 40 > calls_of_a_request(), "a dead device from call {at} went unnoticed");
        rig.device.set_faults(Faults::None);
        request(&rig).unwrap_or_else(|error| panic!("after faults from call {at} on: {error}"));
        rig.finish();
    }
}

#[test]
fn a_failed_load_leaves_nothing_on_the_device() {
    let rig = rig(3);
    // Rest (1) + residents (4) + slots (6): allocations and their copies.
    for at in 0..20 {
        rig.device.set_faults(Faults::Once(at));
        if rig.begin(1).is_err() {
            assert_eq!(rig.device.memory().in_use, 0, "after a fault at call {at}");
            assert_eq!(rig.racks[1].count(), 0);
        }
        rig.device.set_faults(Faults::None);
        rig.manager.unload("transformer").unwrap();
        rig.device.check();
    }
    rig.finish();
}

#[test]
fn a_device_too_small_for_the_plan_says_so_and_nothing_is_held() {
    let rig = Rig::new(ROOMY, 1, Strategy::Auto, &[even("transformer", 3)]);
    let fits = placement(rig.modules[0].description(), &[false; 3], 2);
    let machine = fits.engine_bytes;
    rig.finish();
    let rig = Rig::new(machine - 1, 1, Strategy::Auto, &[even("transformer", 3)]);
    let error = rig.manager.apply_plan(plan_of(vec![fits])).unwrap_err();
    assert!(matches!(error, EngineError::PlanMismatch { .. }), "{error}");
    rig.finish();
}

/// The same three, planned by the engine: what runs out of memory can be planned with less.
fn planned_rig(seed: u64) -> Rig {
    let vae = Shape { stacks: Vec::new(), rest: 500, ..even("vae", 0) };
    let rig = Rig::new(ROOMY, seed, Strategy::BlockPin, &[even("text_encoder", 4), even("transformer", 5), vae]);
    let resident = [("text_encoder".to_owned(), 0), ("transformer".to_owned(), 2)].into();
    rig.manager.set_policy(Policy { resident, ..policy(Strategy::BlockPin) });
    rig
}

/// As [`request`], and what runs out of memory is tried again.
fn steady_request(rig: &Rig) -> Result<(), EngineError> {
    rig.steady_pass(0, 0..4)?;
    rig.steady_pass(1, 0..5)?;
    rig.steady_pass(1, 0..5)?;
    rig.steady_pass(2, 0..0)
}

/// Good passes until all that was given up has come back: four steps and what was idle, of at most three times the patience.
const ALL_BACK: usize = 5 * 96;

/// Everything is as if memory had never been short.
fn comes_back(rig: &Rig, before: &Plan) {
    for _ in 0..ALL_BACK {
        rig.pass(0, 0..4).unwrap();
        rig.pass(1, 0..5).unwrap();
        rig.pass(2, []).unwrap();
    }
    assert!(rig.manager.reserves().is_empty());
    assert_eq!(*rig.manager.apply().unwrap(), *before);
}

#[test]
fn no_memory_at_any_allocation_once_twice_and_for_ever() {
    let rig = planned_rig(1);
    rig.device.set_others(Others::default());
    steady_request(&rig).unwrap();
    let allocations = rig.device.asked();
    rig.finish();
    assert!(allocations > 10, "{allocations}");
    let (mut survived, mut told) = ([0; 3], [0; 3]);
    for after in 0..allocations {
        for (which, count) in [1, 2, u64::MAX].into_iter().enumerate() {
            let rig = planned_rig(after);
            let before = rig.manager.apply().unwrap();
            rig.device.set_others(Others { after, count, bytes: u64::MAX });
            match steady_request(&rig) {
                Ok(()) => survived[which] += 1,
                Err(EngineError::NotNow { need, free: 0 }) if need > 0 => {
                    told[which] += 1;
                    // Nobody is half there: who was on the device whole still is, and nobody else.
                    let held = rig.modules.iter().filter(|module| module.is_loaded());
                    assert!(held.count() <= 1, "after no memory at allocation {after}");
                }
                Err(error) => panic!("no memory at allocation {after}, {count} times: {error}"),
            }
            rig.device.set_others(Others::default());
            steady_request(&rig).unwrap_or_else(|error| panic!("after no memory at allocation {after}: {error}"));
            if after % 7 == 0 {
                comes_back(&rig, &before);
            }
            rig.finish();
        }
    }
    // Once may be a moment; then a whole with nothing beside it has nothing to give up.
    assert_eq!(told[..2], [0, 1], "{survived:?} survived, {told:?} told");
    assert!(survived[2] == 0, "{survived:?} survived, {told:?} told");
}

/// Whatever others take, from whenever on and for however long: as long as the least fits, each request is right.
#[test]
fn others_take_memory_in_the_middle_and_give_it_back() {
    let rig = planned_rig(1);
    let peak = rig.manager.apply().unwrap().peak.device;
    steady_request(&rig).unwrap();
    rig.device.set_others(Others::default());
    steady_request(&rig).unwrap();
    let allocations = rig.device.asked();
    let least = |module: usize| {
        let component = rig.modules[module].description();
        component.rest + component.groups().map(mm_plan::Group::bytes).max().unwrap_or(0)
    };
    let least = (0..3).map(least).max().unwrap();
    rig.finish();
    assert!(least < peak / 2);
    let mut demoted = 0;
    for after in 0..allocations {
        for left in (least..peak).step_by(256) {
            for count in [1, 9, u64::MAX] {
                let rig = planned_rig(left + after);
                let before = rig.manager.apply().unwrap();
                steady_request(&rig).unwrap();
                rig.device.set_others(Others { after, count, bytes: ROOMY - left });
                for _ in 0..2 {
                    steady_request(&rig)
                        .unwrap_or_else(|error| panic!("{left} left from allocation {after} on: {error}"));
                }
                demoted += u32::from(*rig.manager.apply().unwrap() != *before);
                rig.device.set_others(Others::default());
                steady_request(&rig).unwrap();
                if (after, left) == (allocations / 2, least) {
                    comes_back(&rig, &before);
                }
                rig.finish();
            }
        }
    }
    assert!(demoted > 100, "{demoted}");
}

/// A byte less than the least is an error that says how many are free, however often it is asked for, and no more than that.
#[test]
fn less_than_the_least_is_told() {
    let rig = planned_rig(1);
    let transformer = rig.modules[1].description();
    let least = transformer.rest + transformer.groups().map(mm_plan::Group::bytes).max().unwrap();
    for _ in 0..3 {
        rig.device.set_others(Others { after: 0, count: u64::MAX, bytes: ROOMY - least + 1 });
        match rig.steady_pass(1, 0..5) {
            Err(EngineError::NotNow { need, free }) => assert!(need > free && free < least),
            other => panic!("{other:?}"),
        }
        assert_eq!(rig.device.memory().in_use, 0);
    }
    rig.device.set_others(Others { after: 0, count: u64::MAX, bytes: ROOMY - least });
    rig.steady_pass(1, 0..5).unwrap();
    rig.finish();
}

/// Inside a run whose component would have to change too nothing smaller can be put in force: that is noticed at once.
#[test]
fn inside_a_run_that_is_in_the_way_it_is_told_at_once() {
    let beside = |name: &'static str, blocks: usize| Shape { phase: Some(0), ..even(name, blocks) };
    let rig = Rig::new(ROOMY, 1, Strategy::Auto, &[beside("text_encoder", 8), beside("transformer", 8)]);
    let around = rig.begin(0).unwrap();
    rig.device.set_others(Others { after: 0, count: u64::MAX, bytes: u64::MAX });
    assert!(matches!(rig.steady_pass(1, 0..8), Err(EngineError::NotNow { .. })));
    let tried = rig.device.asked();
    assert!(tried <= 3, "{tried} times");
    rig.device.set_others(Others::default());
    rig.lease_each(0, 0..8).unwrap();
    around.complete().unwrap();
    rig.steady_pass(1, 0..8).unwrap();
    rig.finish();
}
