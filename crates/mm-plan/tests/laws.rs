//! The planner's laws, on generated inputs. Law 6 is in `parity.rs`.

#[path = "laws/by_hand.rs"]
mod by_hand;
#[path = "laws/cases.rs"]
mod cases;
#[path = "laws/cost_model.rs"]
mod cost_model;
#[path = "effort/mod.rs"]
mod effort;
#[path = "laws/explained.rs"]
mod explained;
#[path = "laws/explained_cost.rs"]
mod explained_cost;
#[path = "laws/generate.rs"]
mod generate;
#[path = "laws/monotone.rs"]
mod monotone;
#[path = "laws/optimal.rs"]
mod optimal;
#[path = "laws/replay.rs"]
mod replay;
#[path = "laws/schedule.rs"]
mod schedule;
#[path = "laws/twin.rs"]
mod twin;

use effort::effort;
use generate::{Case, any_case, cost_case, hostile_case};
use mm_plan::{Infeasible, Machine, Plan, Rule, Strategy, plan, simulate};
use proptest::{
    prelude::*,
    strategy::{Strategy as _, ValueTree},
    test_runner::TestRunner,
};
use std::time::{Duration, Instant};

/// About half of them are planned by each rule.
const CASES: u32 = 800;

fn run(case: &Case) -> Result<Plan, Infeasible> {
    plan(&case.machine, &case.components, &case.policy)
}

fn with_free(case: &Case, free: u64) -> Case {
    Case { machine: Machine { vram_free: Some(free), ..case.machine.clone() }, ..case.clone() }
}

/// What a plan takes of the free VRAM where it takes most: weights, slots, reserve, activations. `None`: no device.
fn need(case: &Case, plan: &Plan) -> Option<u64> {
    plan.budget?;
    let phases = plan.phases.iter();
    phases.map(|p| p.engine_bytes + p.activation.map_or(0, |a| a.bytes) + case.policy.reserve).max()
}

#[test]
fn the_generator_makes_loose_tight_and_impossible_inputs() {
    let mut runner = TestRunner::deterministic();
    let (mut loose, mut tight, mut impossible) = (0, 0, 0);
    for _ in 0..900 {
        let mut case = any_case().new_tree(&mut runner).unwrap().current();
        case.policy.rule = Some(Rule::Threshold);
        match run(&case) {
            Ok(plan) if plan.notes.iter().any(|n| n.code == "phase_over_budget") => tight += 1,
            Ok(plan) if plan.budget.is_some() && plan.peak.device > 0 => loose += 1,
            Ok(_) => {}
            Err(Infeasible::BadInput { text }) => panic!("{text}"),
            Err(_) => impossible += 1,
        }
    }
    assert!(loose >= 60 && tight >= 60 && impossible >= 60, "{loose} {tight} {impossible}");
}

/// Law 7: a plan or an error, and a schedule of the plan wherever there are times.
fn ends(case: &Case) {
    match run(case) {
        Ok(plan) => {
            assert_eq!(plan.components.len(), case.components.len());
            assert!(plan.budget.is_none_or(|free| plan.peak.device <= free));
            let schedule = simulate(&case.machine, &case.components, &plan);
            assert_eq!(plan.predicted, schedule.ok().map(|schedule| schedule.predicted()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(effort(CASES, 1_000_000)))]

    /// Where all is tried none may take a second either.
    #[test]
    fn law_7_total(case in prop_oneof![3 => hostile_case(), 1 => any_case(), 1 => cost_case()]) {
        let begin = Instant::now();
        ends(&case);
        let took = begin.elapsed();
        prop_assert!(effort(None, Some(Duration::from_secs(1))).is_none_or(|most| took < most), "{took:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn law_1_fits(case in any_case()) {
        if let Ok(plan) = run(&case) {
            replay::fits(&case, &plan);
        }
    }

    #[test]
    fn law_1_the_smallest_budget_works_and_one_byte_less_does_not(case in any_case()) {
        let (Err(Infeasible::NeverFits { smallest, need, have, .. }) | Err(Infeasible::NotNow { smallest, need, have, .. })) =
            run(&case)
        else {
            return Ok(());
        };
        prop_assert_eq!(need, smallest);
        let total = case.machine.vram_total.or(case.machine.vram_free).unwrap();
        prop_assert_eq!(matches!(run(&case), Err(Infeasible::NotNow { .. })), smallest <= total);
        prop_assert!(have == total.max(case.machine.vram_free.unwrap()) || Some(have) == case.machine.vram_free);
        let enough = with_free(&case, smallest);
        let plan = run(&enough).unwrap();
        replay::fits(&enough, &plan);
        prop_assert!(run(&with_free(&case, smallest - 1)).is_err());
    }

    /// A budget that ends on the last byte of a plan, and one that lacks it.
    #[test]
    fn law_1_to_the_byte(case in any_case()) {
        let Some(need) = run(&case).ok().and_then(|plan| need(&case, &plan)) else { return Ok(()) };
        for free in [need, need.saturating_sub(1)] {
            let case = with_free(&case, free);
            if let Ok(plan) = run(&case) {
                replay::fits(&case, &plan);
                replay::complete(&case, &plan);
            }
        }
    }

    #[test]
    fn law_1_what_was_asked_for_by_name_stays_whole(case in any_case()) {
        if let Ok(plan) = run(&case) {
            for planned in plan.components.iter().filter(|c| c.same_as.is_none()) {
                let asked = *case.policy.strategies.get(&planned.name).unwrap_or(&case.policy.strategy);
                if asked != Strategy::Auto {
                    prop_assert_eq!(planned.strategy, asked);
                }
                if matches!(asked, Strategy::NoOffload | Strategy::ModelOffload) {
                    prop_assert_eq!(planned.streamed_count(), 0);
                }
            }
        }
    }

    #[test]
    fn law_2_complete(case in any_case()) {
        if let Ok(plan) = run(&case) {
            replay::complete(&case, &plan);
        }
    }

    #[test]
    fn law_3_stable(case in any_case(), seed in any::<u64>()) {
        let mut shuffled = case.clone();
        let mut state = seed;
        for last in (1..shuffled.components.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.components.swap(last, (state >> 33) as usize % (last + 1));
        }
        let (one, other) = (run(&case), run(&shuffled));
        prop_assert_eq!(format!("{one:?}"), format!("{other:?}"));
        #[cfg(feature = "serde")]
        if let (Ok(one), Ok(other)) = (one, other) {
            prop_assert_eq!(serde_json::to_vec(&one).unwrap(), serde_json::to_vec(&other).unwrap());
        }
    }


    #[test]
    fn law_8_explained(case in any_case()) {
        if let Ok(plan) = run(&case) {
            explained::explained(&case, &plan);
        }
    }
}
