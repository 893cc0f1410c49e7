//! Every call of the device fails once, and from there on for ever: the error is said or the run is
//! right, nothing leaks, and the next run without faults is right.

mod common;

use common::{
    TestDevice, even, placement, plan_of,
    virtual_device::{Faults, VirtualDevice},
};
use mm_engine::{Device, EngineError};
use mm_plan::Strategy;

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
