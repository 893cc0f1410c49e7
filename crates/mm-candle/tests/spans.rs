//! Unmodified models stream by their spans, bit-identically; what spans don't tell of stays.

mod common;

use candle_core::DType;
use candle_transformers::models::{
    bert::BertModel,
    stable_diffusion::unet_2d::UNet2DConditionModel,
    t5::{T5EncoderModel, T5ForConditionalGeneration},
};
use common::{
    bits, manager,
    outsiders::{Chat, Outsider, random_checkpoint},
    spec,
};
use mm_candle::{Component, Error, LoadSpec, load_unmanaged};
use mm_engine::EngineError;
use mm_plan::{Infeasible, Strategy};
use std::path::Path;

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

fn by_spans(file: &Path, dtype: DType) -> LoadSpec {
    LoadSpec { spans: true, ..spec("model", file, dtype) }
}

fn answer<M: Outsider>(component: &Component<M>) -> Result<Vec<u32>, Error> {
    component.run(|model| model.answer()).map(|y| bits(&y))
}

/// Every strategy under three budgets, twice in a row; `least`: percent of its bytes that stream.
fn streams_as_it_computes<M: Outsider>(least: u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    random_checkpoint(&file, M::build);
    let spec = by_spans(&file, DType::F32);
    let expected = answer(&load_unmanaged(&spec, M::build).unwrap()).unwrap();

    let roomy = manager(1 << 30, Strategy::GroupOffload);
    let model = roomy.load(&spec, M::build).unwrap();
    let told = model.spans().unwrap();
    println!("{told}");
    assert!(told.whole.is_none() && !told.verified && told.groups > 1, "{told}");
    assert!(told.covered * 100 >= told.total * least, "{told}");
    let module = roomy.get_component("model").unwrap();
    assert_eq!(module.description().groups().map(|g| g.bytes()).sum::<u64>(), told.covered);
    for stack in &module.description().stacks {
        println!("  {} × {}", stack.name, stack.groups.len());
    }
    assert_eq!(answer(&model).unwrap(), expected);
    assert!(model.spans().unwrap().verified);
    let notes = module.stats().notes;
    assert_eq!(notes.first(), Some(&model.spans().unwrap().to_string()));
    drop(model);

    let smallest = smallest::<M>(&spec);
    assert!(smallest < told.total, "it runs in less than it weighs: {smallest} of {}", told.total);
    let mut streamed = 0;
    for strategy in STRATEGIES {
        for budget in [smallest, (smallest + told.total) / 2, 2 * told.total] {
            let manager = manager(budget, strategy);
            let model = manager.load(&spec, M::build).unwrap();
            for pass in 0..3 {
                match answer(&model) {
                    Ok(y) => assert_eq!(y, expected, "{strategy} {budget} pass {pass}"),
                    Err(Error::Engine(EngineError::Infeasible(_))) => break,
                    Err(other) => panic!("{strategy} {budget} pass {pass}: {other}"),
                }
                let plan = manager.plan().unwrap();
                assert_eq!(manager.memory().peak, plan.peak.device);
                assert!(plan.peak.device <= budget);
                streamed += usize::from(plan.components[0].stacks.iter().any(|s| s.resident.contains(&false)));
            }
            drop(model);
            assert_eq!(manager.memory().in_use, 0);
        }
    }
    assert!(streamed >= 6, "{streamed} passes streamed");
}

fn smallest<M: Outsider>(spec: &LoadSpec) -> u64 {
    let manager = manager(1, Strategy::Auto);
    let refused = answer(&manager.load(spec, M::build).unwrap());
    let Err(Error::Engine(EngineError::Infeasible(Infeasible::NeverFits { smallest, .. }))) = refused else {
        panic!("one byte can't be enough");
    };
    smallest
}

#[test]
fn t5() {
    streams_as_it_computes::<T5EncoderModel>(85);
}

#[test]
fn t5_with_its_decoder_and_its_embedding_as_the_head() {
    streams_as_it_computes::<T5ForConditionalGeneration>(85);
}

#[test]
fn the_stable_diffusion_unet() {
    streams_as_it_computes::<UNet2DConditionModel>(90);
}

#[test]
fn bert() {
    streams_as_it_computes::<BertModel>(85);
}

#[test]
fn llama_with_a_cache_that_it_fills() {
    streams_as_it_computes::<Chat>(85);
}
