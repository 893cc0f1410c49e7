//! The demo's LoRA: diffusers' latents and images, in three dialects, at three scales, whatever the memory.

mod common;
#[path = "flux/original.rs"]
mod flux_original;
mod random;
#[path = "sd3/original.rs"]
mod sd3_original;

use candle_core::{DType, Device, Tensor};
use common::{folder, golden_of, manager, options, relative_error, root, weight_bytes};
use mm_candle::{Error as CandleError, Lora};
use mm_diffusion::{Error, Folder, Generated, Pipeline, Request, Unmanaged, ZImage};
use mm_engine::EngineError;
use mm_fixtures::Model;
use mm_plan::{Infeasible, Strategy};
use random::{Checkpoint, matrix::bits};
use std::{collections::HashMap, path::Path};

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

/// Each file, and what its scale is multiplied by for the effect of the first: alpha is half of the last one's rank.
const DIALECTS: [(&str, f64); 3] = [("outline", 1.0), (PEFT, 1.0), ("outline-kohya-alpha4", 2.0)];

/// The first under the names that PEFT gives: its file is the same but for them, so it is made of the first one's.
const PEFT: &str = "outline-peft";

fn outline(name: &str) -> Lora {
    Lora::open(root().join(format!("checkpoints/outline/{name}.safetensors"))).unwrap()
}

fn peft(folder: &Path) -> Lora {
    let bytes = std::fs::read(root().join("checkpoints/outline/outline.safetensors")).unwrap();
    let (header, data) = bytes[8..].split_at(u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize);
    let mut header = std::str::from_utf8(header).unwrap().replace("\"transformer.", "\"base_model.model.");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let file = folder.join("adapter_model.safetensors");
    std::fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()).unwrap();
    let lora = Lora::open(file).unwrap();
    assert!(lora.layers().iter().all(|layer| !layer.starts_with("transformer.")));
    lora
}

/// What diffusers made, what it was asked for, and the scale.
fn golden(case: usize) -> (HashMap<String, Tensor>, Request, f64) {
    let (tensors, request, about) = golden_of(&format!("lora-{case}"));
    (tensors, request, about["lora_scale"].parse().unwrap())
}

fn compare(generated: &Generated, expected: &HashMap<String, Tensor>, what: &str) {
    let trace = &generated.trace.as_ref().unwrap().tensors;
    for step in 0..expected["latents"].dim(0).unwrap() {
        let error = relative_error(&trace["latents"].get(step).unwrap(), &expected["latents"].get(step).unwrap());
        assert!(error < 1e-3, "{what}, step {step}: {error}");
    }
    let error = relative_error(&trace["image"], &expected["image"]);
    assert!(error < 1e-3, "{what}, image: {error}");
}

/// One pipeline for all: each case changes the scale of a LoRA, or adds or removes one, and reloads nothing else.
///
/// Every day each strategy has each dialect once, and each dialect each case; with `MM_LORA_CASES=all` all 60 are tried.
#[test]
fn every_dialect_scale_and_strategy_is_diffusers_own() {
    let budget = weight_bytes(DType::F32) * 6 / 10;
    let folder_of_peft = tempfile::tempdir().unwrap();
    let (mut tried, mut images) = (0, HashMap::<(usize, &str), Vec<u32>>::new());
    let all = std::env::var_os("MM_LORA_CASES").is_some_and(|value| value == "all");
    for (turn, strategy) in STRATEGIES.into_iter().enumerate() {
        let ample = matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload);
        let manager = manager(if ample { 1 << 30 } else { budget }, strategy);
        let pipeline = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
        for (at, (name, factor)) in DIALECTS.into_iter().enumerate() {
            let lora = if name == PEFT { peft(folder_of_peft.path()) } else { outline(name) };
            for case in (0..4).filter(|case| all || (turn + at) % 4 == *case) {
                let (expected, request, scale) = golden(case);
                let adapted = pipeline.apply_lora(&lora, scale * factor).unwrap();
                assert_eq!(adapted.components, [("transformer", 98)]);
                assert_eq!(adapted.left, Vec::<String>::new());
                let generated = pipeline.generate(&request, |_| {}).unwrap();
                compare(&generated, &expected, &format!("{name} case {case} {strategy}"));
                assert!(manager.memory().peak <= manager.memory().budget);
                // Whatever the strategy, the same bits.
                let found = bits(&generated.image);
                assert!(
                    *images.entry((case, name)).or_insert_with(|| found.clone()) == found,
                    "{name} {case} {strategy}"
                );
                tried += 1;
            }
            assert!(pipeline.remove_lora(lora.file()).unwrap());
        }
    }
    assert_eq!(tried, if all { 60 } else { 15 });
}

fn ask() -> Request {
    Request { trace: false, steps: 2, ..golden(0).1 }
}

/// The bits of two images in a row with a LoRA and of one without it afterwards; `None`: there is no plan.
fn draw(budget: u64, strategy: Strategy, lora: &Lora) -> Result<(Vec<u32>, Vec<u32>), Infeasible> {
    let manager = manager(budget, strategy);
    let pipeline = ZImage::load(&folder(), &options(DType::BF16), &manager).unwrap();
    pipeline.apply_lora(lora, 0.8).unwrap();
    let mut images = Vec::new();
    for turn in 0..3 {
        if turn == 2 {
            pipeline.remove_lora(lora.file()).unwrap();
        }
        match pipeline.generate(&ask(), |_| {}) {
            Ok(generated) => images.push(bits(&generated.image)),
            Err(Error::Component { source: CandleError::Engine(EngineError::Infeasible(why)), .. }) => return Err(why),
            Err(other) => panic!("{strategy} {budget}: {other}"),
        }
        let (plan, memory) = (manager.plan().unwrap(), manager.memory());
        assert!(memory.peak <= budget);
        if turn < 2 {
            assert_eq!(memory.peak, plan.peak.device, "{strategy} {budget}");
        }
    }
    assert!(images[0] == images[1], "{strategy} in {budget}: the second image is another");
    Ok((images.remove(0), images.remove(1)))
}

#[test]
fn a_budget_changes_no_bit_and_off_is_as_it_was() {
    let lora = outline("outline-kohya-alpha4");
    let plain = ZImage::load(&folder(), &options(DType::BF16), &Unmanaged).unwrap();
    let image = || bits(&plain.generate(&ask(), |_| {}).unwrap().image);
    let original = image();
    plain.apply_lora(&lora, 0.8).unwrap();
    let adapted = image();
    plain.remove_lora(lora.file()).unwrap();
    assert!(image() == original && adapted != original);
    let Err(Infeasible::NeverFits { smallest, .. }) = draw(1, Strategy::Auto, &lora) else {
        panic!("one byte can't be enough");
    };
    let weights = weight_bytes(DType::BF16);
    for budget in [2 * weights, (smallest + weights) / 2, smallest] {
        let mut feasible = 0;
        for strategy in STRATEGIES {
            match draw(budget, strategy, &lora) {
                Ok((with, without)) => {
                    assert!(with == adapted, "{strategy} in {budget}: other bits");
                    assert!(without == original, "{strategy} in {budget}: other bits without it");
                    feasible += 1;
                }
                Err(why) => assert!(
                    matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload) && budget < 2 * weights,
                    "{strategy} in {budget}: {why}"
                ),
            }
        }
        assert!(feasible >= 3, "in {budget}: {feasible}");
    }
}

/// A component of two pipelines has a LoRA in both.
#[test]
fn what_is_shared_changes_for_all() {
    let manager = manager(1 << 30, Strategy::Auto);
    let first = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    let named = mm_diffusion::LoadOptions { name: Some("b".into()), ..options(DType::F32) };
    let second = ZImage::load(&folder(), &named, &manager).unwrap();
    let before = bits(&second.generate(&ask(), |_| {}).unwrap().image);
    let lora = outline("outline");
    first.apply_lora(&lora, 1.0).unwrap();
    let with = bits(&second.generate(&ask(), |_| {}).unwrap().image);
    assert!(with != before && with == bits(&first.generate(&ask(), |_| {}).unwrap().image));
    assert!(second.remove_lora(lora.file()).unwrap());
    assert!(bits(&first.generate(&ask(), |_| {}).unwrap().image) == before);
}

/// A LoRA for every layer of a transformer, under Diffusers' names.
fn write(file: &Path, checkpoint: &Checkpoint) -> Lora {
    let weights = candle_core::safetensors::load(checkpoint.path(random::TRANSFORMER), &Device::Cpu).unwrap();
    let mut tensors = HashMap::new();
    for (name, weight) in weights.iter().filter(|(name, weight)| name.ends_with(".weight") && weight.rank() == 2) {
        let layer = name.trim_end_matches(".weight");
        let (outputs, inputs) = weight.dims2().unwrap();
        let mut put = |part: &str, shape: (usize, usize), seed: usize| {
            let values = (0..shape.0 * shape.1).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 5000.0 - 0.2);
            let factor = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap();
            tensors.insert(format!("transformer.{layer}.{part}.weight"), factor);
        };
        let seed = name.bytes().map(usize::from).sum();
        put("lora_A", (2, inputs), seed);
        put("lora_B", (outputs, 2), seed + 1);
    }
    candle_core::safetensors::save(&tensors, file).unwrap();
    Lora::open(file).unwrap()
}

/// Weights under their makers' names, which keep as one what Diffusers' keep apart, take the same LoRA.
fn fits_original_names(
    checkpoint: &Checkpoint,
    rename: impl FnOnce(HashMap<String, Tensor>) -> HashMap<String, Tensor>,
) {
    let lora = write(&checkpoint.path("lora.safetensors"), checkpoint);
    let image = |folder: &Folder, scale: f64| {
        let pipeline = Pipeline::load(folder, &options(DType::F32), &Unmanaged).unwrap();
        let adapted = pipeline.apply_lora(&lora, scale).unwrap();
        assert_eq!(adapted.left, Vec::<String>::new());
        pipeline.generate(&random::request(), |_| {}).unwrap().image
    };
    let (without, expected) = (image(&checkpoint.folder(), 0.0), image(&checkpoint.folder(), 1.0));
    checkpoint.rewrite(random::TRANSFORMER, rename);
    let found = image(&checkpoint.folder(), 1.0);
    let (effect, error) = (relative_error(&without, &expected), relative_error(&found, &expected));
    assert!(effect > 1e-2 && error < effect / 1000.0, "effect {effect}, error {error}");
}

#[test]
fn flux_in_original_names_takes_one_in_diffusers_names() {
    fits_original_names(&Checkpoint::of(Model::FluxDev, 2, 144), flux_original::named);
}

#[test]
fn sd3_in_original_names_takes_one_in_diffusers_names() {
    fits_original_names(&Checkpoint::of(Model::Sd35Large, 3, 72), |from| sd3_original::named("", from));
}
