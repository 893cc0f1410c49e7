//! Würstchen on a small checkpoint of random weights: diffusers' tensors, and the same bits whatever the memory.

mod common;
mod random;

use candle_core::{DType, Tensor};
use common::{options, relative_error};
use mm_diffusion::{Error, LoadOptions, Pipeline, Request, Unmanaged, Wuerstchen};
use mm_fixtures::Model;
use mm_plan::Strategy;
use random::{
    Checkpoint, golden,
    matrix::{self, bits, described_as_loaded},
};

/// The outputs of the prior's last layer are divided by each other: its weights are smaller, so that none comes near zero.
fn checkpoint() -> Checkpoint {
    let checkpoint = Checkpoint::of(Model::Wuerstchen, 2, 32);
    checkpoint.rewrite("prior_prior/diffusion_pytorch_model.safetensors", |tensors| {
        let smaller = |(name, tensor): (String, Tensor)| {
            let tensor = if name.starts_with("out.1") { (tensor / 4.0).unwrap() } else { tensor };
            (name, tensor)
        };
        tensors.into_iter().map(smaller).collect()
    });
    checkpoint
}

/// The smallest side that there is; six steps are two of the decoder.
fn request() -> Request {
    Request { width: 128, height: 128, steps: 6, ..random::request() }
}

#[test]
fn every_tensor_equals_diffusers_own() {
    let pipeline = Pipeline::load(&checkpoint().folder(), &options(DType::F32), &Unmanaged).unwrap();
    let trace = pipeline.generate(&Request { trace: true, ..request() }, |_| {}).unwrap().trace.unwrap();
    let golden = golden::tensors("wuerstchen");
    assert!(golden.len() > 6);
    let mut golden: Vec<_> = golden.into_iter().collect();
    golden.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, theirs) in golden {
        let ours = trace.tensors.get(&name).unwrap_or_else(|| panic!("no {name}"));
        if name.starts_with("input_ids") {
            assert_eq!(ours.to_vec1::<i64>().unwrap(), theirs.to_vec1::<i64>().unwrap(), "{name}");
            continue;
        }
        // Of the image the file has the first rows.
        let ours = if name == "image" { ours.narrow(0, 0, theirs.dim(0).unwrap()).unwrap() } else { ours.clone() };
        assert_eq!(ours.dims(), theirs.dims(), "{name}");
        let error = relative_error(&ours, &theirs);
        println!("{name}: {error:.1e}");
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn a_lora_under_every_strategy_and_off_again() {
    matrix::lora(&checkpoint(), "prior_prior", DType::F32, &request());
}

#[test]
fn f32_under_every_strategy_and_budget() {
    matrix::matrix_of(&checkpoint().folder(), DType::F32, &request());
}

#[test]
fn bf16_in_the_smallest_budget() {
    let checkpoint = checkpoint();
    let exact = matrix::unmanaged_of(&checkpoint.folder(), DType::F32, &request()).image;
    let whole = matrix::unmanaged_of(&checkpoint.folder(), DType::BF16, &request()).image;
    let error = relative_error(&whole, &exact);
    println!("{error:.1e}");
    assert!(error > 1e-4 && error < 0.2, "{error}");
    let budget = matrix::smallest_of(&checkpoint.folder(), DType::BF16, &request());
    let draw = |strategy| matrix::draw_of(&checkpoint.folder(), DType::BF16, budget, strategy, &request());
    let (image, plan) = draw(Strategy::GroupOffload).unwrap();
    assert!(image == bits(&whole), "other bits");
    for name in ["prior_prior", "decoder"] {
        assert!(plan.component(name).unwrap().streamed_count() > 0, "{name}");
    }
}

#[test]
fn a_description_from_headers_is_what_loading_finds() {
    described_as_loaded(&checkpoint().folder());
}

#[test]
fn passes_are_reported_and_a_seed_is_a_picture() {
    let pipeline = Pipeline::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    let draw = |request: &Request| {
        let mut seen = Vec::new();
        let image = pipeline.generate(request, |p| seen.push((p.component, p.pass, p.passes))).unwrap().image;
        assert_eq!(pipeline.passes(request), seen.len() as u64);
        (bits(&image), seen)
    };
    let request = Request { steps: 2, ..request() };
    let (image, seen) = draw(&request);
    let expected = [
        ("prior_text_encoder", 1, 2),
        ("prior_text_encoder", 2, 2),
        ("text_encoder", 1, 1),
        ("prior_prior", 1, 2),
        ("prior_prior", 2, 2),
        ("decoder", 1, 1),
        ("vqgan", 1, 1),
    ];
    assert_eq!(seen, expected);
    assert!(draw(&request).0 == image, "not the same again");
    assert!(draw(&Request { seed: 1, ..request.clone() }).0 != image);
    assert!(draw(&Request { guidance: 1.0, ..request.clone() }).0 != image);
    assert!(draw(&Request { negative: "a dog".into(), ..request }).0 != image);
}

#[test]
fn what_cannot_be_is_refused() {
    let pipeline = Wuerstchen::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    for (width, steps) in [(48, 2), (0, 2), (u32::MAX, 2), (16_512, 2), (128, 0), (128, u32::MAX)] {
        let request = Request { width, steps, ..request() };
        let error = pipeline.generate(&request, |p| panic!("{} ran", p.component)).map(|_| "an image");
        assert!(matches!(error, Err(Error::Request { .. })), "{width}, {steps}: {error:?}");
    }
    let values: [(&str, &str, serde_json::Value); 16] = [
        ("prior_prior/config.json", "c", 0.into()),
        ("prior_prior/config.json", "nhead", 5.into()),
        ("prior_prior/config.json", "depth", u64::MAX.into()),
        ("prior_prior/config.json", "c_cond", 5.into()),
        ("decoder/config.json", "c_in", 5.into()),
        ("decoder/config.json", "c_hidden", serde_json::json!([])),
        ("decoder/config.json", "blocks", serde_json::json!([1, 1, 1])),
        ("decoder/config.json", "level_config", serde_json::json!(["CT", "CTA", "CTA", "TCA"])),
        ("decoder/config.json", "nhead", serde_json::json!([-1, -1, 1, 1])),
        ("decoder/config.json", "effnet_embd", 5.into()),
        ("decoder/config.json", "clip_embd", 5.into()),
        ("decoder/config.json", "patch_size", 16.into()),
        ("vqgan/config.json", "levels", 0.into()),
        ("vqgan/config.json", "embed_dim", 5.into()),
        ("vqgan/config.json", "scale_factor", (-1).into()),
        ("scheduler/scheduler_config.json", "scaler", 0.into()),
    ];
    for (file, key, value) in values {
        let checkpoint = checkpoint();
        checkpoint.set(file, key, value);
        checkpoint.refused(&[file, key]);
    }
}
