//! The picture does not depend on the budget or the strategy: the same pixels, in the bytes planned.

mod common;

use candle_core::DType;
use common::{folder, golden, machine, manager, options, relative_error, request, weight_bytes};
use mm_candle::{Error as CandleError, Manager};
use mm_diffusion::{Error, Unmanaged, ZImage};
use mm_engine::EngineError;
use mm_plan::{Infeasible, Links, Machine, Plan, Policy, Rule, Strategy};

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

/// The pixels and the plan, or why there is no plan.
fn draw(dtype: DType, budget: u64, strategy: Strategy) -> Result<(Vec<u8>, Plan), Infeasible> {
    let manager = manager(budget, strategy);
    let pipeline = ZImage::load(&folder(), &options(dtype), &manager).unwrap();
    match pipeline.generate(&request(2), |_| {}) {
        Ok(image) => {
            let plan = manager.plan().unwrap();
            let memory = manager.memory();
            assert!(memory.peak <= budget, "{dtype:?} {strategy} {budget}: peak {}", memory.peak);
            assert_eq!(memory.peak, plan.peak.device, "{dtype:?} {strategy} {budget}");
            Ok((image.rgb8().unwrap(), (*plan).clone()))
        }
        Err(Error::Component { source: CandleError::Engine(EngineError::Infeasible(why)), .. }) => Err(why),
        Err(other) => panic!("{dtype:?} {strategy} {budget}: {other}"),
    }
}

fn matrix(dtype: DType) {
    let weights = weight_bytes(dtype);
    let plain = ZImage::load(&folder(), &options(dtype), &Unmanaged).unwrap();
    let expected = plain.generate(&request(2), |_| {}).unwrap().rgb8().unwrap();
    let Err(Infeasible::NeverFits { smallest, component, .. }) = draw(dtype, 1, Strategy::Auto) else {
        panic!("one byte can't be enough");
    };
    assert!(smallest * 10 <= weights * 3, "{dtype:?}: {component} needs {smallest} of {weights}");
    for budget in [2 * weights, weights * 6 / 10, weights * 3 / 10, smallest] {
        let mut feasible = 0;
        for strategy in STRATEGIES {
            match draw(dtype, budget, strategy) {
                Ok((pixels, plan)) => {
                    assert!(pixels == expected, "{dtype:?} {strategy} in {budget} of {weights} bytes: other pixels");
                    assert!(strategy == Strategy::Auto || plan.strategy == strategy);
                    feasible += 1;
                }
                Err(why) => assert!(
                    matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload) && budget < weights,
                    "{dtype:?} {strategy} in {budget}: {why}"
                ),
            }
        }
        assert!(feasible >= 3, "{dtype:?} in {budget}: {feasible}");
    }
    assert!(draw(dtype, smallest - 1, Strategy::Auto).is_err());
}

#[test]
fn f32_under_every_budget_and_strategy() {
    matrix(DType::F32);
}

#[test]
fn bf16_under_every_budget_and_strategy() {
    matrix(DType::BF16);
}

#[test]
fn every_golden_case_streams_to_diffusers_own_tensors() {
    let budget = weight_bytes(DType::F32) * 3 / 10;
    let manager = manager(budget, Strategy::Auto);
    let pipeline = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    for case in 0..5 {
        let (expected, request) = golden(case);
        let trace = pipeline.generate(&request, |_| {}).unwrap().trace.unwrap();
        for name in ["prompt_embeds", "negative_prompt_embeds", "transformer_out_t0.25", "image"] {
            let ours = trace.tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
            let error = relative_error(ours, &expected[name]);
            assert!(error < 1e-3, "case {case} {name}: {error}");
        }
        let ours = &trace.tensors["latents"];
        for step in 0..request.steps as usize {
            let error = relative_error(&ours.get(step).unwrap(), &expected["latents"].get(step).unwrap());
            assert!(error < 1e-3, "case {case} step {step}: {error}");
        }
    }
    assert_eq!(manager.memory().peak, manager.plan().unwrap().peak.device);
}

/// With a known link rule `Cost` plans. What it keeps between phases is loaded once, whatever the number of images.
#[test]
fn plans_by_predicted_time_run_exactly_and_make_the_same_pixels() {
    let weights = weight_bytes(DType::F32);
    let plain = ZImage::load(&folder(), &options(DType::F32), &Unmanaged).unwrap();
    let expected = plain.generate(&request(2), |_| {}).unwrap().rgb8().unwrap();
    let links = Some(Links { h2d: 5_000_000_000, staging: None, disk: None, copy_fixed_ns: 0 });
    let mut kept = 0;
    for share in [20, 40, 60, 90, 200] {
        let machine = Machine { links, ..machine(weights * share / 100) };
        let manager = Manager::cpu(machine, Policy::default()).unwrap();
        let pipeline = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
        for _ in 0..2 {
            let image = pipeline.generate(&request(2), |_| {}).unwrap();
            assert!(image.rgb8().unwrap() == expected, "{share} % of the weights: other pixels");
        }
        let plan = manager.plan().unwrap();
        assert_eq!((plan.rule, manager.memory().peak), (Rule::Cost, plan.peak.device), "{share} % of the weights");
        for (name, stats) in manager.stats() {
            let (placed, whole) = (plan.component(&name).unwrap(), manager.get_component(&name).unwrap());
            if placed.keep && placed.streamed_count() == 0 {
                assert_eq!(stats.copied_bytes, whole.description().bytes(), "{name} is loaded once");
                kept += 1;
            }
        }
    }
    assert!(kept > 0);
}
