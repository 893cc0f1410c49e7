//! What a program forgets costs what it held, and nothing else.

use crate::{Dut, common};
use common::{TestDevice, even, placement, plan_of};
use mm_engine::EngineError;
use mm_plan::Strategy;

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

#[test]
fn a_forgotten_lease_costs_its_slot_and_nothing_else() {
    let rig = Rig::new(ROOMY, 17, Strategy::Auto, &[even("transformer", 4)]);
    rig.device.leaks_on_purpose();
    let plan = plan_of(vec![placement(rig.modules[0].description(), &[false; 4], 2)]);
    rig.manager.apply_plan(plan).unwrap();
    let run = rig.begin(0).unwrap();
    std::mem::forget(rig.modules[0].lease(1).unwrap());
    rig.lease_each(0, 0..4).unwrap();
    run.complete().unwrap();
    rig.pass(0, 0..4).unwrap();
    rig.finish();
}

#[test]
fn a_forgotten_run_is_misuse_on_its_own_thread() {
    let shapes = [even("text_encoder", 8), even("transformer", 10)];
    let rig = Rig::new(ROOMY, 1, Strategy::NoOffload, &shapes);
    rig.device.leaks_on_purpose();
    std::mem::forget(rig.begin(0).unwrap());
    match rig.begin(0) {
        Err(EngineError::Misuse(text)) => assert!(text.contains("inside its own run"), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("allowed"),
    }
    rig.pass(1, 0..10).unwrap();
}
