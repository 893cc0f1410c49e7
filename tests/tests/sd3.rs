//! Stable Diffusion 3.5 on a small checkpoint of random weights: diffusers' tensors, and the same bits whatever the memory.

mod common;
#[path = "sd3/original.rs"]
mod original;
mod random;

use candle_core::{DType, Tensor};
use common::{options, relative_error};
use mm_diffusion::{LoadOptions, Pipeline, Request, Unmanaged};
use mm_fixtures::Model;
use mm_plan::Strategy;
use random::{
    Checkpoint, TRANSFORMER, golden,
    matrix::{bits, described_as_loaded, draw, lora, matrix, unmanaged, weight_bytes},
    refused_request, request,
};
use std::collections::HashMap;

/// Three joint blocks.
fn checkpoint() -> Checkpoint {
    Checkpoint::of(Model::Sd35Large, 3, 72)
}

/// The first two as in MMDiT-X, with an attention of the image's own that has the other's weights.
fn checkpoint_x() -> Checkpoint {
    let checkpoint = checkpoint();
    checkpoint.set("transformer/config.json", "dual_attention_layers", vec![0, 1].into());
    checkpoint.rewrite(TRANSFORMER, |mut tensors| {
        let own = |name: &str| ["transformer_blocks.0.", "transformer_blocks.1."].iter().any(|b| name.starts_with(b));
        let mut more = HashMap::new();
        for (name, tensor) in tensors.iter().filter(|(name, _)| own(name)) {
            let (block, part) = name.split_at("transformer_blocks.0.".len());
            if ["attn.to_", "attn.norm_q", "attn.norm_k"].iter().any(|p| part.starts_with(p))
                && !part.contains("to_add")
            {
                more.insert(format!("{block}{}", part.replace("attn.", "attn2.")), tensor.clone());
            }
            if part.starts_with("norm1.linear") {
                let half = tensor.chunk(2, 0).unwrap().remove(0);
                more.insert(name.clone(), Tensor::cat(&[tensor, &half], 0).unwrap());
            }
        }
        tensors.extend(more);
        tensors
    });
    checkpoint
}

#[test]
fn f32_under_every_strategy_and_budget() {
    matrix(&checkpoint().folder(), DType::F32);
}

#[test]
fn a_lora_under_every_strategy_and_off_again() {
    lora(&checkpoint(), "transformer", DType::BF16, &request());
    lora(&checkpoint_x(), "transformer", DType::F32, &request());
}

#[test]
fn mmdit_x_in_bf16_under_every_strategy_and_budget() {
    matrix(&checkpoint_x().folder(), DType::BF16);
}

#[test]
fn a_description_from_headers_is_what_loading_finds() {
    described_as_loaded(&checkpoint_x().folder());
}

#[test]
fn every_tensor_equals_diffusers_own() {
    golden::compare(&checkpoint().folder(), "sd3", DType::F32, 1e-3);
}

#[test]
fn every_tensor_of_mmdit_x_equals_diffusers_own() {
    golden::compare(&checkpoint_x().folder(), "sd3_x", DType::F32, 1e-3);
}

#[test]
fn original_names_make_the_same_image() {
    for (checkpoint, prefix) in [(checkpoint(), ""), (checkpoint_x(), "model.diffusion_model.")] {
        let expected = bits(&unmanaged(&checkpoint.folder(), DType::F32).image);
        checkpoint.rewrite(TRANSFORMER, |tensors| original::named(prefix, tensors));
        assert!(bits(&unmanaged(&checkpoint.folder(), DType::F32).image) == expected, "other bits");
        let budget = weight_bytes(&checkpoint.folder(), DType::F32) * 9 / 10;
        let (image, plan) = draw(&checkpoint.folder(), DType::F32, budget, Strategy::GroupOffload).unwrap();
        assert!(image == expected, "streamed: other bits");
        assert_eq!(plan.component("transformer").unwrap().stacks[0].name, format!("{prefix}joint_blocks"));
    }
}

#[test]
fn half_precision_draws_about_the_same() {
    let checkpoint = checkpoint();
    let exact = unmanaged(&checkpoint.folder(), DType::F32).image;
    for (dtype, least, most) in [(DType::BF16, 1e-3, 0.1), (DType::F16, 1e-5, 0.01)] {
        let error = relative_error(&unmanaged(&checkpoint.folder(), dtype).image, &exact);
        println!("{dtype:?}: {error:.1e}");
        // Too close would mean that it was computed in f32.
        assert!(error > least && error < most, "{dtype:?}: {error}");
    }
}

/// T5 is larger than all else, and many checkpoints are without.
#[test]
fn without_t5_its_tokens_are_zeros() {
    let checkpoint = checkpoint();
    let with = bits(&unmanaged(&checkpoint.folder(), DType::F32).image);
    checkpoint.set("model_index.json", "text_encoder_3", serde_json::json!([null, null]));
    checkpoint.set("model_index.json", "tokenizer_3", serde_json::json!([null, null]));
    std::fs::remove_dir_all(checkpoint.path("text_encoder_3")).unwrap();
    let pipeline = Pipeline::load(&checkpoint.folder(), &options(DType::F32), &Unmanaged).unwrap();
    let trace = pipeline.generate(&Request { trace: true, ..request() }, |_| {}).unwrap().trace.unwrap();
    let t5 = trace.tensors["prompt_embeds"].narrow(1, 77, 256).unwrap();
    assert_eq!(t5.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    assert!(bits(&trace.tensors["image"]) != with);
}

#[test]
fn guidance_leads_away_from_the_negative_prompt() {
    let pipeline = Pipeline::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    let draw = |guidance, negative: &str| {
        let request = Request { guidance, negative: negative.into(), ..request() };
        let mut passes = 0;
        let image = pipeline.generate(&request, |_| passes += 1).unwrap().image;
        assert_eq!(pipeline.passes(&request), passes);
        (bits(&image), passes)
    };
    let (plain, few) = draw(1.0, "a dog");
    let (guided, many) = draw(4.0, "a dog");
    assert_eq!((few, many), (3 + 2 + 1, 6 + 2 + 1));
    assert!(plain == draw(0.0, "").0, "up to one there is no guidance");
    assert!(guided != plain && guided != draw(4.0, "").0);
}

#[test]
fn requests_that_cannot_be_fulfilled_are_refused() {
    let pipeline = Pipeline::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    let refused = |change: &dyn Fn(&mut Request)| refused_request(&pipeline, change);
    assert_eq!(refused(&|r| r.width = 40), "width = 40: expected a multiple of 16 pixels");
    let large = "height = 3088: the model has positions for at most 3072 pixels";
    assert_eq!(refused(&|r| r.height = 3088), large);
    assert_eq!(refused(&|r| r.guidance = -1.0), "guidance = -1: expected zero (off) or a positive number");
    assert_eq!(refused(&|r| r.steps = 0), "steps = 0: expected 1 to 1000");
}

#[test]
fn broken_checkpoints_are_named() {
    let values: [(&str, &str, serde_json::Value); 11] = [
        ("transformer/config.json", "patch_size", 1.into()),
        ("transformer/config.json", "num_layers", 0.into()),
        ("transformer/config.json", "pos_embed_max_size", u64::MAX.into()),
        ("transformer/config.json", "qk_norm", "layer_norm".into()),
        ("transformer/config.json", "caption_projection_dim", 5.into()),
        ("transformer/config.json", "pooled_projection_dim", 5.into()),
        ("transformer/config.json", "joint_attention_dim", 5.into()),
        ("transformer/config.json", "in_channels", 5.into()),
        ("text_encoder_2/config.json", "hidden_act", "relu".into()),
        ("text_encoder_2/config.json", "num_hidden_layers", 1.into()),
        ("model_index.json", "text_encoder", vec!["transformers", "CLIPTextModel"].into()),
    ];
    for (file, key, value) in values {
        let checkpoint = checkpoint();
        checkpoint.set(file, key, value);
        checkpoint.refused(&[file, key]);
    }
    // Blocks without what the configuration says they have, or with more.
    let one = checkpoint();
    one.set("transformer/config.json", "dual_attention_layers", vec![1].into());
    one.refused(&["transformer: ", "transformer_blocks.1.norm1.linear.weight"]);
}
