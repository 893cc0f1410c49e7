//! Plans: made or given, checked, run exactly; the room they leave; what is loaded once.

use crate::{Dut, common};
use common::{even, misuse, policy};
use mm_engine::{Device, EngineError};
use mm_plan::Strategy;
use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

fn pair(budget: u64, strategy: Strategy) -> Rig {
    Rig::new(budget, 1, strategy, &[even("text_encoder", 8), even("transformer", 10)])
}

fn bytes(rig: &Rig, module: usize) -> u64 {
    rig.modules[module].description().bytes()
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
