//! Unmodified models stream by their spans, bit-identically; what spans don't tell of stays.

mod common;

use candle_core::DType;
use candle_transformers::models::{
    bert::BertModel,
    qwen3::ModelForCausalLM as Qwen3,
    stable_diffusion::unet_2d::UNet2DConditionModel,
    t5::{T5EncoderModel, T5ForConditionalGeneration},
    whisper::model::Whisper,
};
use common::{
    bits, manager,
    outsiders::{Chat, Outsider, random_checkpoint},
    spec,
};
use mm_candle::{Component, Error, LoadSpec, Manager, load_unmanaged};
use mm_engine::{EngineError, ModuleStats};
use mm_plan::{Infeasible, Strategy};
use std::path::Path;
use tracing::level_filters::STATIC_MAX_LEVEL;

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

fn by_spans(file: &Path, dtype: DType) -> LoadSpec {
    LoadSpec { spans: true, ..spec("model", file, dtype) }
}

fn answer<M: Outsider>(component: &Component<M>) -> Result<Vec<u32>, Error> {
    component.run(|model| model.answer()).map(|y| bits(&y))
}

/// Without spans, because they were compiled out, the same is right as a whole; that build is
/// `cargo test --workspace --exclude mm-tch --test spans --features tracing/max_level_info`.
const COMPILED_OUT: bool = !matches!(STATIC_MAX_LEVEL.into_level(), Some(tracing::Level::TRACE));

/// Every strategy under three budgets, twice in a row; `least`: percent of its bytes that stream; `forwards` to an answer.
fn streams_as_it_computes<M: Outsider>(least: u64, forwards: u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    random_checkpoint(&file, M::build);
    let spec = by_spans(&file, DType::F32);
    let expected = answer(&load_unmanaged(&spec, M::build).unwrap()).unwrap();

    let roomy = manager(1 << 30, Strategy::GroupOffload);
    let model = roomy.load(&spec, M::build).unwrap();
    let told = model.spans().unwrap();
    println!("{told}");
    if COMPILED_OUT {
        assert!(told.whole.is_some_and(|reason| reason.contains("release_max_level_")));
        let module = roomy.get_component("model").unwrap();
        assert!(module.description().stacks.is_empty() && module.stats().notes[0].contains("release_max_level_"));
        assert_eq!(answer(&model).unwrap(), expected);
        return;
    }
    assert!(told.whole.is_none() && !told.verified && told.groups > 1, "{told}");
    assert!(told.covered * 100 >= told.total * least, "{told}");
    let module = roomy.get_component("model").unwrap();
    assert_eq!(module.description().groups().map(|g| g.bytes()).sum::<u64>(), told.covered);
    assert_eq!(answer(&model).unwrap(), expected);
    assert!(model.spans().unwrap().verified);
    let notes = module.stats().notes;
    assert_eq!(notes.first(), Some(&model.spans().unwrap().to_string()));
    drop(model);

    let smallest = smallest::<M>(&spec);
    assert!(smallest < told.total, "it runs in less than it weighs: {smallest} of {}", told.total);
    let mut streamed = 0;
    for (lazy, strategy) in [false, true].into_iter().cycle().zip(STRATEGIES) {
        let spec = LoadSpec { lazy, ..spec.clone() };
        for budget in [smallest, (smallest + told.total) / 2, 2 * told.total] {
            let manager = manager(budget, strategy);
            let model = manager.load(&spec, M::build).unwrap();
            let mut before = 0;
            for pass in 0..3 {
                match answer(&model) {
                    Ok(y) => assert_eq!(y, expected, "{strategy} {budget} pass {pass}"),
                    Err(Error::Engine(EngineError::Infeasible(_))) => break,
                    Err(other) => panic!("{strategy} {budget} pass {pass}: {other}"),
                }
                let plan = manager.plan().unwrap();
                assert_eq!(manager.memory().peak, plan.peak.device);
                assert!(plan.peak.device <= budget);
                // From the second pass on, when the order is known, a group is copied once for each forward at the most.
                let copied = module_stats(&manager).copied_bytes;
                assert!(
                    pass < 2 || copied - before <= forwards * told.covered,
                    "{strategy} {budget}: {copied} - {before}"
                );
                before = copied;
                streamed += usize::from(plan.components[0].stacks.iter().any(|s| s.resident.contains(&false)));
            }
            drop(model);
            assert_eq!(manager.memory().in_use, 0);
        }
    }
    assert!(streamed >= 6, "{streamed} passes streamed");
}

fn module_stats(manager: &Manager) -> ModuleStats {
    manager.get_component("model").unwrap().stats()
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
    streams_as_it_computes::<T5EncoderModel>(85, 1);
}

#[test]
fn t5_with_its_decoder_and_its_embedding_as_the_head() {
    streams_as_it_computes::<T5ForConditionalGeneration>(85, 1);
}

#[test]
fn the_stable_diffusion_unet() {
    streams_as_it_computes::<UNet2DConditionModel>(90, 1);
}

#[test]
fn bert() {
    streams_as_it_computes::<BertModel>(85, 1);
}

#[test]
fn llama_with_a_cache_that_it_fills() {
    streams_as_it_computes::<Chat>(85, 2);
}

#[test]
fn qwen3_whose_blocks_have_no_spans_of_their_own() {
    streams_as_it_computes::<Qwen3>(85, 1);
}

#[test]
fn whisper_which_uses_its_embedding_in_two_places() {
    streams_as_it_computes::<Whisper>(85, 1);
}
