//! Every call of the driver fails once, and from there on for ever: the error is told in the driver's words or the run is right,
//! nothing leaks (the fake driver looks at exit), nothing hangs, and the next run is right.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;

use common::{
    Rig, Shape, TestDevice, even,
    fake_cuda::{FakeCuda, ILLEGAL_ADDRESS, NEVER, OUT_OF_MEMORY, driver, is_told},
    on_tiers, placement, plan_of, policy,
};
use mm_engine::{Calibration, Device, EngineError, Module, Staging};
use mm_plan::{HostTier, Policy, Strategy};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;

const ROOMY: u64 = 1 << 24;
/// Small, so that slabs go through it in pieces, and its buffers are used again and again.
const STAGING: Staging = Staging { buffers: 2, bytes: 512, limit: 1 << 20 };

/// One driver, whose faults hit whoever calls: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock();
    // Whatever a test that failed left behind.
    driver().fail(NEVER, 0, 0);
    driver().capacity(1 << 30);
    driver().others(0, 0, 0);
    driver().pool(0, 0, 0);
    guard
}

/// Streams, has residents, is a whole: three components that take turns on the device.
fn rig(seed: u64) -> Rig<FakeCuda> {
    driver().seed(seed);
    let mut whole = even("vae", 0);
    whole.stacks.clear();
    let device = FakeCuda::open(0, ROOMY, STAGING).unwrap();
    let rig = Rig::on(device, ROOMY, Strategy::Auto, &[even("text_encoder", 3), even("transformer", 4), whole]);
    let plans = [(vec![false; 3], 2), (vec![true, false, false, false], 2), (vec![], 0)];
    let tiers = [HostTier::PageLocked, HostTier::Staged, HostTier::PageLocked, HostTier::Pageable];
    let placement = |module: &Arc<Module<FakeCuda>>, resident: &[bool], slots| {
        on_tiers(placement(module.description(), resident, slots), &tiers)
    };
    let placements =
        rig.modules.iter().zip(plans).map(|(module, (resident, slots))| placement(module, &resident, slots));
    rig.manager.apply_plan(plan_of(placements.collect())).unwrap();
    rig
}

/// The same, calibrated: with calls of its own, which are tried among all others.
fn calibrated_rig(seed: u64) -> Rig<FakeCuda> {
    let rig = rig(seed);
    rig.manager.calibrate(Calibration::of("test")).unwrap();
    rig
}

fn has_lost_times(rig: &Rig<FakeCuda>) -> bool {
    let report = rig.manager.calibration().unwrap_or_default();
    report.notes.iter().any(|note| note.code == "times_lost")
}

/// A request: encode, two denoising steps, decode.
fn request(rig: &Rig<FakeCuda>) -> Result<(), EngineError> {
    rig.pass(0, 0..3)?;
    rig.pass(1, 0..4)?;
    rig.pass(1, 0..4)?;
    rig.pass(2, [])
}

fn calls_of_a_request(rig: Rig<FakeCuda>) -> u64 {
    driver().fail(NEVER, 0, 0);
    request(&rig).unwrap();
    let calls = driver().calls();
    rig.finish();
    calls
}

/// Takes everything down; what could not be told earlier is no surprise after a fault.
fn finish(rig: Rig<FakeCuda>) {
    rig.device.cuda.take_error();
    rig.finish();
}

#[test]
fn the_nth_call_fails_once() {
    each_call_fails_once(rig, 1);
}

#[test]
fn the_nth_call_of_a_calibrated_run_fails_once() {
    each_call_fails_once(calibrated_rig, 7);
}

/// `step`: of so many calls one is tried.
fn each_call_fails_once(rig: fn(u64) -> Rig<FakeCuda>, step: usize) {
    let _alone = alone();
    let calls = calls_of_a_request(rig(1));
    assert!(calls > 300, "{calls}");
    let live = driver().live();
    let (mut told, mut right) = (0, 0);
    for at in (0..calls).step_by(step) {
        // Out of memory as well, at a sample of them: at every allocation it is tried below.
        let codes: &[i32] = if at % 3 == 0 { &[ILLEGAL_ADDRESS, OUT_OF_MEMORY] } else { &[ILLEGAL_ADDRESS] };
        for code in codes.iter().copied() {
            let rig = rig(at);
            driver().fail(at, code, 0);
            match request(&rig) {
                Ok(()) => right += 1,
                Err(error) if code == ILLEGAL_ADDRESS => {
                    assert!(is_told(&error), "call {at}: {error}");
                    told += 1;
                }
                Err(error) => assert!(is_memory(&error), "call {at}: {error}"),
            }
            driver().fail(NEVER, 0, 0);
            rig.device.set_frozen(false);
            rig.device.cuda.take_error();
            request(&rig).unwrap_or_else(|error| panic!("after a fault at call {at}: {error}"));
            finish(rig);
            assert_eq!(driver().live(), live, "after a fault at call {at}");
        }
    }
    assert!(told * step > 50 && right * step > 50, "{told} told, {right} right, of {calls}");
}

/// Out of memory is told as such where memory was asked for, else in the driver's words.
fn is_memory(error: &EngineError) -> bool {
    match error {
        EngineError::NotNow { .. } => true,
        EngineError::OutOfMemory { reason } => reason.contains("CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"),
        _ => false,
    }
}

/// A device that was lost is built anew.
#[test]
fn every_call_fails_from_the_nth_on() {
    every_call_fails_from(rig, 1);
}

#[test]
fn every_call_of_a_calibrated_run_fails_from_the_nth_on() {
    every_call_fails_from(calibrated_rig, 3);
}

fn every_call_fails_from(make: fn(u64) -> Rig<FakeCuda>, step: usize) {
    let _alone = alone();
    let calls = calls_of_a_request(make(1));
    let live = driver().live();
    for at in (0..calls).step_by(step) {
        let rig = make(at);
        driver().fail(at, ILLEGAL_ADDRESS, 1);
        match request(&rig) {
            // Times are read last, as far as the device has come: their loss is a note.
            Ok(()) => {
                let is_over = at + 40 > calls || driver().calls() <= at;
                assert!(is_over || has_lost_times(&rig), "a dead device from call {at} of {calls} went unnoticed");
            }
            Err(error) => assert!(is_told(&error), "call {at}: {error}"),
        }
        let Rig { device, manager, modules, racks, registrations } = rig;
        // Taken down while the driver still fails: what can't be known to be free is kept, and freed when it answers again.
        if at % 2 == 0 {
            drop(registrations);
            drop((manager, modules, racks));
            driver().fail(NEVER, 0, 0);
        } else {
            driver().fail(NEVER, 0, 0);
            drop(registrations);
            drop((manager, modules, racks));
        }
        drop(device);
        assert_eq!(driver().live(), live, "after a device lost at call {at}");
        if at % 8 == 0 {
            let rig = make(at);
            request(&rig).unwrap_or_else(|error| panic!("a new device after one lost at call {at}: {error}"));
            rig.finish();
        }
    }
}

#[test]
fn a_device_that_fails_while_it_is_opened_leaves_nothing() {
    let _alone = alone();
    // Whoever is first initializes the driver.
    drop(FakeCuda::open(0, ROOMY, STAGING).unwrap());
    driver().fail(NEVER, 0, 0);
    let device = FakeCuda::open(0, ROOMY, STAGING).unwrap();
    let calls = driver().calls();
    drop(device);
    let live = driver().live();
    let mut failed = 0;
    for at in 0..calls {
        for code in [ILLEGAL_ADDRESS, OUT_OF_MEMORY] {
            driver().fail(at, code, 0);
            match FakeCuda::open(0, ROOMY, STAGING) {
                Ok(device) => drop(device),
                Err(error) => {
                    failed += 1;
                    let is_lock = matches!(error, EngineError::PageLock { .. });
                    assert!(is_told(&error) || is_memory(&error) || is_lock, "call {at}: {error}");
                }
            }
            driver().fail(NEVER, 0, 0);
            assert_eq!(driver().live(), live, "after a fault at call {at} of opening");
        }
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn out_of_memory_at_every_allocation_is_told_and_nothing_is_held() {
    let _alone = alone();
    let rig = rig(5);
    let planned = rig.manager.plan().unwrap().component("transformer").unwrap().engine_bytes;
    let mut refused = 0;
    // A card that is fuller than the budget says, by ever less.
    for capacity in (0..=planned).step_by(64) {
        driver().capacity(capacity);
        match rig.begin(1) {
            Ok(run) => {
                assert_eq!(capacity, planned, "a plan of {planned} bytes ran in {capacity}");
                rig.lease_each(1, 0..4).unwrap();
                run.complete().unwrap();
            }
            Err(error) => {
                refused += 1;
                let is_right = matches!(error, EngineError::NotNow { free, need } if free < need && free <= capacity);
                assert!(is_right, "{error}");
                assert_eq!((rig.device.memory().in_use, driver().device_bytes()), (0, 0));
            }
        }
    }
    assert_eq!(refused, planned.div_ceil(64));
    driver().capacity(1 << 30);
    request(&rig).unwrap();
    rig.finish();
}

#[test]
fn what_is_over_the_budget_is_refused_before_the_driver_is_asked() {
    let _alone = alone();
    let rig = Rig::on(FakeCuda::open(1, ROOMY, STAGING).unwrap(), ROOMY, Strategy::Auto, &[even("transformer", 3)]);
    rig.manager.set_policy(policy(Strategy::GroupOffload));
    let calls = driver().calls();
    for bytes in [ROOMY + 4, u64::MAX - 3] {
        let error = rig.device.allocate(mm_plan::DType::F32, bytes).err().unwrap();
        assert!(matches!(error, EngineError::OverBudget { need, .. } if need == bytes), "{error}");
    }
    assert_eq!(driver().calls(), calls);
    rig.finish();
}

/// The same three, planned by the engine: what runs out of memory can be planned with less.
fn planned_rig(seed: u64) -> Rig<FakeCuda> {
    driver().seed(seed);
    let vae = Shape { stacks: Vec::new(), rest: 500, ..even("vae", 0) };
    let device = FakeCuda::open(0, ROOMY, STAGING).unwrap();
    let rig = Rig::on(device, ROOMY, Strategy::BlockPin, &[even("text_encoder", 3), even("transformer", 4), vae]);
    let resident = [("text_encoder".to_owned(), 0), ("transformer".to_owned(), 2)].into();
    rig.manager.set_policy(Policy { resident, ..policy(Strategy::BlockPin) });
    rig
}

/// As [`request`], and what runs out of memory is tried again.
fn steady_request(rig: &Rig<FakeCuda>) -> Result<(), EngineError> {
    rig.steady_pass(0, 0..3)?;
    rig.steady_pass(1, 0..4)?;
    rig.steady_pass(1, 0..4)?;
    rig.steady_pass(2, 0..0)
}

/// In whichever call: of an allocation, of a copy, of an event, of a wait.
#[test]
fn out_of_memory_at_every_call_is_survived_or_told() {
    let _alone = alone();
    let rig = planned_rig(1);
    driver().fail(NEVER, 0, 0);
    steady_request(&rig).unwrap();
    let calls = driver().calls();
    rig.finish();
    let live = driver().live();
    let (mut told, mut right) = ([0; 2], [0; 2]);
    for at in 0..calls {
        for forever in [0, 1] {
            let rig = planned_rig(at);
            driver().fail(at, OUT_OF_MEMORY, forever);
            match steady_request(&rig) {
                Ok(()) => right[forever as usize] += 1,
                Err(error) => {
                    assert!(is_memory(&error), "call {at}: {error}");
                    told[forever as usize] += 1;
                }
            }
            driver().fail(NEVER, 0, 0);
            rig.device.set_frozen(false);
            // Memory that could not be given back is, from here on.
            rig.device.cuda.take_error();
            steady_request(&rig).unwrap_or_else(|error| panic!("after no memory from call {at} on: {error}"));
            finish(rig);
            assert_eq!(driver().live(), live, "after no memory from call {at} on");
        }
    }
    assert!(
        told[0] * 20 < right[0] && told[1] > right[1],
        "once, for ever: {told:?} told, {right:?} right, of {calls}"
    );
}

/// Whatever others take of the card, from whenever on and for however long: as long as the least fits, each request is right.
#[test]
fn others_take_memory_in_the_middle_and_give_it_back() {
    let _alone = alone();
    let rig = planned_rig(1);
    let peak = rig.manager.apply().unwrap().peak.device;
    driver().others(0, 0, 0);
    steady_request(&rig).unwrap();
    let allocations = driver().asked();
    let least = |module: usize| {
        let component = rig.modules[module].description();
        component.rest + component.groups().map(mm_plan::Group::bytes).max().unwrap_or(0)
    };
    let least = (0..3).map(least).max().unwrap();
    rig.finish();
    driver().capacity(ROOMY);
    let mut demoted = 0;
    for after in 0..allocations {
        for left in (least..peak).step_by(512) {
            for count in [1, 9, u64::MAX] {
                let rig = planned_rig(left + after);
                let before = rig.manager.apply().unwrap();
                driver().others(after, count, ROOMY - left);
                for _ in 0..2 {
                    steady_request(&rig)
                        .unwrap_or_else(|error| panic!("{left} left from allocation {after} on: {error}"));
                }
                demoted += u32::from(*rig.manager.apply().unwrap() != *before);
                driver().others(0, 0, 0);
                steady_request(&rig).unwrap();
                rig.finish();
            }
        }
    }
    assert!(demoted > 50, "{demoted}");
}

/// What is short is asked of the driver, and more than a step would be: one is enough, and gives up no more than a group beyond it.
#[test]
fn one_step_gives_up_what_is_short() {
    let _alone = alone();
    let rig = planned_rig(1);
    let planned = rig.manager.apply().unwrap().component("transformer").unwrap().engine_bytes;
    let group = rig.modules[1].description().groups().next().unwrap().bytes();
    driver().capacity(planned / 2);
    rig.steady_pass(1, 0..4).unwrap();
    let held = rig.device.memory().in_use;
    assert!(held <= planned / 2 && held + group > planned / 2, "{held} of {planned}");
    assert_eq!(rig.manager.reserves()[0].numbers["times"], 1);
    driver().capacity(1 << 30);
    rig.finish();
}

/// What a pool holds and nobody uses is given up before anything is demoted, and said where it is not.
#[test]
fn pools_give_up_what_nobody_uses() {
    let _alone = alone();
    let rig = planned_rig(1);
    let planned = rig.manager.apply().unwrap();
    let own = planned.component("transformer").unwrap().engine_bytes;
    driver().capacity(own + 1_000);
    driver().pool(1_500, 300, 200);
    rig.steady_pass(1, 0..4).unwrap();
    assert_eq!(rig.device.memory().in_use, own, "nothing was demoted");
    driver().pool(1_000, 300, 200);
    let released = rig.manager.unload("transformer").unwrap();
    assert_eq!((released.bytes, released.kept), (own, 0));
    assert_eq!((released.pooled, released.free), (Some(200), Some(own + 1_000 - 500)));
    driver().pool(0, 0, 0);
    driver().capacity(1 << 30);
    rig.finish();
}

/// A driver that doesn't say that nothing uses it any more: it stays in the account, is told, and is freed as soon as it does.
#[test]
fn what_can_not_be_given_back_is_told() {
    let _alone = alone();
    let rig = planned_rig(1);
    rig.steady_pass(1, 0..4).unwrap();
    let held = rig.device.memory().in_use;
    driver().fail(0, ILLEGAL_ADDRESS, 1);
    let released = rig.manager.unload("transformer").unwrap();
    assert_eq!((released.bytes, released.kept, released.pooled, released.free), (0, held, None, None));
    assert_eq!(rig.device.memory().in_use, held);
    driver().fail(NEVER, 0, 0);
    rig.device.cuda.take_error();
    rig.steady_pass(0, 0..3).unwrap();
    let released = rig.manager.unload("text_encoder").unwrap();
    assert!(released.bytes > 0 && released.kept == 0);
    assert_eq!((rig.device.memory().in_use, driver().device_bytes()), (0, 0));
    rig.finish();
}

/// On a device that is lost each call says so, in a few calls of the driver; nobody waits.
#[test]
fn on_a_lost_device_each_run_says_so_at_once() {
    let _alone = alone();
    drop(FakeCuda::open(0, ROOMY, STAGING).unwrap());
    let live = driver().live();
    let rig = planned_rig(3);
    steady_request(&rig).unwrap();
    driver().fail(0, ILLEGAL_ADDRESS, 1);
    for module in [0, 1, 2, 1, 0] {
        let before = driver().calls();
        let groups = rig.modules[module].description().groups().count();
        let error = rig.steady_pass(module, 0..groups).unwrap_err();
        rig.device.set_frozen(false);
        assert!(is_told(&error), "{error}");
        assert!(driver().calls() - before < 200, "{} calls", driver().calls() - before);
    }
    assert!(rig.manager.reserves().is_empty(), "a lost device is no shortage");
    let Rig { device, manager, modules, racks, registrations } = rig;
    drop(registrations);
    drop((manager, modules, racks));
    driver().fail(NEVER, 0, 0);
    drop(device);
    assert_eq!(driver().live(), live);
    let rig = planned_rig(3);
    steady_request(&rig).unwrap();
    rig.finish();
}
