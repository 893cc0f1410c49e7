//! What running out of memory teaches, by itself: how much less, for how long, and that it never makes a plan impossible.
#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "../src/manager/admission.rs"]
mod admission;
#[path = "../src/manager/survival.rs"]
mod survival;

use mm_plan::{Activation, Basis, Component, Group, Links, Machine, Plan, Policy, Stack, Strategy};
use proptest::{prelude::*, strategy::Strategy as Values};
use survival::{MOST_PASSES, PASSES, Reserve, Survival, plan};

const ID: admission::Id = 7;

fn bytes(survival: &Survival) -> u64 {
    survival.reserves(|_| vec!["transformer".to_owned()]).iter().map(|reserve| reserve.bytes).sum()
}

/// So many good passes; how often something was taken back.
fn pass(survival: &mut Survival, passes: u32) -> usize {
    (0..passes).filter(|_| survival.passed(ID)).count()
}

#[test]
fn idle_ones_leave_first_then_the_reserve_rises_to_all_it_holds() {
    let mut survival = Survival::default();
    assert!(!survival.is_alone(ID) && !survival.raise(ID, 0, 800), "nothing ran out");
    assert!(survival.ran_out(ID) && survival.is_alone(ID));
    assert_eq!(bytes(&survival), 0);
    let mut held = 800;
    for expected in [100, 200, 400, 1200] {
        assert!(!survival.ran_out(ID), "idle ones leave once");
        assert!(survival.raise(ID, 0, held));
        assert_eq!(bytes(&survival), expected);
        held = 800u64.saturating_sub(expected);
    }
    assert!(!survival.raise(ID, 0, 800));
}

#[test]
fn a_step_is_what_was_short_where_that_is_more_but_never_more_than_it_holds() {
    for (short, step) in [(0, 100), (99, 100), (300, 300), (u64::MAX, 800)] {
        let mut survival = Survival::default();
        survival.ran_out(ID);
        survival.raise(ID, short, 800);
        assert_eq!(bytes(&survival), step, "{short} short");
    }
    // Nothing is held: each step is one all the same.
    let mut survival = Survival::default();
    survival.ran_out(ID);
    assert!((0..4).all(|_| survival.raise(ID, 0, 0)) && !survival.raise(ID, 0, 0));
}

#[test]
fn steps_are_taken_back_last_first_and_idle_ones_may_stay_at_the_end() {
    let mut survival = Survival::default();
    survival.ran_out(ID);
    survival.raise(ID, 0, 800);
    survival.raise(ID, 0, 800);
    assert_eq!(pass(&mut survival, PASSES - 1), 0);
    assert_eq!((pass(&mut survival, 1), bytes(&survival)), (1, 100));
    assert_eq!((pass(&mut survival, PASSES), bytes(&survival)), (1, 0));
    assert!(survival.is_alone(ID));
    assert_eq!(pass(&mut survival, PASSES), 1);
    assert!(!survival.is_alone(ID));
}

#[test]
fn out_of_memory_starts_the_count_of_good_passes_anew() {
    let mut survival = Survival::default();
    survival.ran_out(ID);
    survival.raise(ID, 0, 800);
    pass(&mut survival, PASSES - 1);
    survival.ran_out(ID);
    assert_eq!(pass(&mut survival, PASSES - 1), 0);
    assert_eq!(pass(&mut survival, 1), 1);
}

#[test]
fn who_runs_out_again_is_trusted_half_as_soon_and_forgiven_in_the_end() {
    let mut survival = Survival::default();
    let mut patience = PASSES;
    for _ in 0..10 {
        survival.ran_out(ID);
        survival.raise(ID, 0, 800);
        assert_eq!(pass(&mut survival, patience - 1), 0);
        assert_eq!(pass(&mut survival, 1), 1, "after {patience}");
        patience = (patience * 2).min(MOST_PASSES);
    }
    assert_eq!(patience, MOST_PASSES);
    // Idle ones stay again, then it is as if it had never been.
    pass(&mut survival, 2 * MOST_PASSES);
    survival.ran_out(ID);
    survival.raise(ID, 0, 800);
    assert_eq!(pass(&mut survival, PASSES), 1);
}

#[test]
fn what_was_of_no_use_is_taken_back_and_what_is_gone_forgotten() {
    let mut survival = Survival::default();
    survival.ran_out(ID);
    survival.raise(ID, 0, 800);
    let steps = survival.steps(ID);
    survival.raise(ID, 0, 800);
    survival.take_back(ID, steps);
    assert_eq!((survival.steps(ID), bytes(&survival)), (1, 100));
    survival.forget(ID);
    assert!(!survival.is_alone(ID) && survival.reserves(|_| vec!["a".to_owned()]).is_empty());
    survival.ran_out(ID);
    assert!(survival.reserves(|_| Vec::new()).is_empty(), "without a name it is not registered");
}

fn reserve(name: &str, bytes: u64) -> Reserve {
    Reserve { names: vec![name.to_owned()], bytes, times: 1, passes: PASSES }
}

fn component(name: &str, rest: u64, blocks: usize, block: u64, phase: Option<u32>) -> Component {
    let stack = Stack { name: "layers".into(), groups: vec![Group::of_bytes(block); blocks] };
    let stacks = if blocks == 0 { Vec::new() } else { vec![stack] };
    Component { phase, passes: 4, ..Component::blocks(name, rest, stacks) }
}

fn engine(plan: &Plan, name: &str) -> u64 {
    let active = plan.phases.iter().filter(|phase| phase.components.iter().any(|c| c == name));
    active.map(|phase| phase.engine_bytes).max().unwrap_or(0)
}

#[test]
fn residents_become_streamed_then_slots_go_to_the_byte_that_was_reserved() {
    let machine = Machine { vram_free: Some(10_000), ..Machine::default() };
    let policy = Policy { strategy: Strategy::BlockPin, working_set: Some(0), ..Policy::default() };
    let components = [component("transformer", 100, 20, 400, None)];
    let least = 100 + 400;
    let before = plan(&machine, &components, &policy, &[]).unwrap().components[0].engine_bytes;
    for bytes in 0..before + 500 {
        let plan = plan(&machine, &components, &policy, &[reserve("transformer", bytes)]).unwrap();
        let placed = &plan.components[0];
        let wanted = before.saturating_sub(bytes).max(least);
        assert!(placed.engine_bytes <= wanted, "{bytes}: {} of {wanted}", placed.engine_bytes);
        assert!(placed.engine_bytes + 400 > wanted, "{bytes}: more than was asked for: {}", placed.engine_bytes);
        assert!(placed.slots != 1 || placed.resident_count() == 0, "{bytes}: slots went before residents");
    }
}

#[test]
fn what_is_known_of_activations_still_counts() {
    let machine = Machine { vram_free: Some(10_000), ..Machine::default() };
    let policy = Policy { strategy: Strategy::BlockPin, working_set: Some(0), ..Policy::default() };
    let mut transformer = component("transformer", 100, 30, 400, None);
    transformer.activation = Some(Activation { bytes: 4_000, basis: Basis::Measured });
    let components = [transformer];
    let before = plan(&machine, &components, &policy, &[]).unwrap();
    let after = plan(&machine, &components, &policy, &[reserve("transformer", 800)]).unwrap();
    assert!(before.components[0].engine_bytes <= 6_000);
    assert!(after.components[0].engine_bytes + 800 <= before.components[0].engine_bytes);
}

fn components() -> impl Values<Value = Vec<Component>> {
    let one = (0..2_000u64, 0..12usize, 1..900u64, proptest::option::of(0..3u32));
    proptest::collection::vec(one, 1..4).prop_map(|all| {
        let name = |i: usize| format!("c{i}");
        let all = all.into_iter().enumerate();
        all.map(|(i, (rest, blocks, block, phase))| component(&name(i), rest, blocks, block, phase)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A reserve never refuses what would be planned without it, by either rule; and while the component is active less is on the
    /// device, unless nothing could go.
    #[test]
    fn a_reserve_is_a_wish(
        components in components(),
        free in 0..12_000u64,
        strategy in 0..5usize,
        wishes in proptest::collection::vec(0..12_000u64, 1..4),
        cost in any::<bool>(),
    ) {
        let strategies =
            [Strategy::Auto, Strategy::BlockPin, Strategy::GroupOffload, Strategy::ModelOffload, Strategy::NoOffload];
        let links = cost.then_some(Links { h2d: 1_000_000, staging: None, disk: None, copy_fixed_ns: 0 });
        let machine = Machine { vram_free: Some(free), links, ram_available: 1 << 40, ram_total: 1 << 40, ..Machine::default() };
        let policy = Policy { strategy: strategies[strategy], working_set: Some(0), ..Policy::default() };
        let reserves: Vec<Reserve> =
            components.iter().zip(&wishes).map(|(component, bytes)| reserve(&component.name, *bytes)).collect();
        let base = plan(&machine, &components, &policy, &[]);
        let lowered = plan(&machine, &components, &policy, &reserves);
        match (base, lowered) {
            (Ok(base), Ok(lowered)) => {
                for reserve in &reserves {
                    prop_assert!(engine(&lowered, &reserve.names[0]) <= engine(&base, &reserve.names[0]));
                }
                // With one, and where it can be had, to the byte.
                let one = plan(&machine, &components, &policy, &reserves[..1]).unwrap();
                let all = plan(&machine, &components, &policy, &[Reserve { bytes: u64::MAX, ..reserves[0].clone() }]).unwrap();
                let name = &reserves[0].names[0];
                let wanted = engine(&base, name).saturating_sub(reserves[0].bytes).max(engine(&all, name));
                prop_assert!(engine(&one, name) <= wanted, "{} of {wanted}", engine(&one, name));
            }
            (Err(base), Err(lowered)) => prop_assert_eq!(base, lowered),
            (base, lowered) => prop_assert!(false, "{:?}, with reserves {:?}", base.is_ok(), lowered.is_ok()),
        }
    }
}
