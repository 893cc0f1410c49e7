//! The demo transformer on tch: diffusers' numbers, the same bits under every strategy and budget.
#![cfg(feature = "libtorch")]

mod common;
#[path = "../examples/transformer/mod.rs"]
#[allow(unreachable_pub, missing_docs)]
mod transformer;

use common::{bits, manager};
use mm_engine::EngineError;
use mm_plan::Strategy;
use mm_tch::{Component, Error, LoadSpec, load_unmanaged};
use std::{collections::HashMap, path::PathBuf};
use tch::{Kind, Tensor};
use transformer::{Config, Transformer};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn config() -> Config {
    let file = root().join("checkpoints/shapes/transformer/config.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn spec(kind: Kind) -> LoadSpec {
    let file = |i| format!("checkpoints/shapes/transformer/diffusion_pytorch_model-0000{i}-of-00003.safetensors");
    let files: Vec<_> = (1..=3).map(|i| root().join(file(i))).collect();
    LoadSpec { kind, ..LoadSpec::new("transformer", files) }
}

fn golden(case: usize) -> HashMap<String, Tensor> {
    let file = root().join(format!("crates/mm-diffusion/tests/golden/{case}.safetensors"));
    Tensor::read_safetensors(file).unwrap().into_iter().collect()
}

/// The raw output at t = 0.25 for the initial latents.
fn forward(component: &Component<Transformer>, golden: &HashMap<String, Tensor>) -> Result<Tensor, Error> {
    component.run(|model| model.forward(&golden["initial_latents"], 0.25, &golden["prompt_embeds"]))
}

/// norm(a - b) / norm(b), in f64.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double).flatten(0, -1), b.to_kind(Kind::Double).flatten(0, -1));
    f64::try_from((a - &b).norm() / b.norm()).unwrap()
}

#[test]
fn tensors_equal_diffusers() {
    let manager = manager(4 << 20, Strategy::Auto);
    let model = manager.load(&spec(Kind::Float), |path| Transformer::new(&config(), path)).unwrap();
    for case in 0..5 {
        let golden = golden(case);
        let error = relative_error(&forward(&model, &golden).unwrap(), &golden["transformer_out_t0.25"]);
        println!("case {case}: {error:.1e}");
        assert!(error < 1e-3, "case {case}: {error}");
    }
}

#[test]
fn every_strategy_and_budget_gives_the_unmanaged_bits() {
    let golden = golden(0);
    for kind in [Kind::Float, Kind::BFloat16] {
        let plain = load_unmanaged(&spec(kind), |path| Transformer::new(&config(), path)).unwrap();
        let expected = bits(&forward(&plain, &golden).unwrap());
        let mut tried = 0;
        for strategy in
            [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload]
        {
            // Tight (it grows with the rest and two blocks), loose, and all of it.
            for kib in [5 << 10, 8 << 10, 64 << 10] {
                let manager = manager(kib << 10, strategy);
                let model = manager.load(&spec(kind), |path| Transformer::new(&config(), path)).unwrap();
                for pass in 0..2 {
                    match forward(&model, &golden) {
                        Ok(y) => assert_eq!(bits(&y), expected, "{strategy} {kind:?} {kib} KiB pass {pass}"),
                        // These two are never demoted.
                        Err(Error::Engine(EngineError::Infeasible(_)))
                            if matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload) && kib < 64 << 10 => {}
                        Err(other) => panic!("{strategy} {kind:?} {kib} KiB: {other}"),
                    }
                    tried += usize::from(manager.plan().is_some());
                }
                if let Some(plan) = manager.plan() {
                    assert_eq!(manager.memory().peak, plan.peak.device);
                    assert!(plan.peak.device <= kib << 10);
                }
            }
        }
        assert!(tried >= 22, "most are feasible: {tried}");
    }
}
