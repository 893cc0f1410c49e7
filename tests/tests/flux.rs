//! FLUX.1 on a small checkpoint of random weights: diffusers' tensors, and the same bits whatever the memory.

mod common;
#[path = "flux/original.rs"]
mod original;
mod random;

use candle_core::{DType, Device, Tensor};
use common::{options, relative_error};
use mm_diffusion::{Flux, Folder, LoadOptions, Pipeline, Request, Unmanaged};
use mm_fixtures::Model;
use mm_plan::{Infeasible, Strategy};
use random::{
    Checkpoint, golden,
    matrix::{bits, described_as_loaded, draw, lora, matrix, unmanaged, weight_bytes},
    refused_request, request,
};

/// Two double and four single blocks.
fn checkpoint() -> Checkpoint {
    Checkpoint::of(Model::FluxDev, 2, 144)
}

#[test]
fn f32_under_every_strategy_and_budget() {
    matrix(&checkpoint().folder(), DType::F32);
}

#[test]
fn a_lora_under_every_strategy_and_off_again() {
    lora(&checkpoint(), "transformer", DType::F32, &request());
}

/// Where it is tightest; all strategies would take minutes.
#[test]
fn bf16_in_the_smallest_budget() {
    let checkpoint = checkpoint();
    let Err(Infeasible::NeverFits { smallest, .. }) = draw(&checkpoint.folder(), DType::BF16, 1, Strategy::Auto) else {
        panic!("one byte can't be enough");
    };
    let (image, _) = draw(&checkpoint.folder(), DType::BF16, smallest, Strategy::Auto).unwrap();
    assert!(image == bits(&unmanaged(&checkpoint.folder(), DType::BF16).image), "other bits");
}

#[test]
fn encoders_and_both_stacks_stream() {
    let checkpoint = checkpoint();
    let Err(Infeasible::NeverFits { smallest, .. }) = draw(&checkpoint.folder(), DType::F32, 1, Strategy::Auto) else {
        panic!("one byte can't be enough");
    };
    let (_, plan) = draw(&checkpoint.folder(), DType::F32, smallest, Strategy::GroupOffload).unwrap();
    let stacks = |name: &str| plan.component(name).unwrap().stacks.iter().map(|s| s.resident.len()).collect::<Vec<_>>();
    assert_eq!(stacks("text_encoder"), [12]);
    assert_eq!(stacks("text_encoder_2"), [24]);
    assert_eq!(stacks("transformer"), [2, 4]);
    for name in ["text_encoder", "text_encoder_2", "transformer"] {
        assert!(plan.component(name).unwrap().streamed_count() > 0, "{name}");
    }
}

#[test]
fn a_description_from_headers_is_what_loading_finds() {
    described_as_loaded(&checkpoint().folder());
}

/// The same weights under the names of Black Forest Labs' own files are the same pixels, streamed too.
#[test]
fn original_names_make_the_same_image() {
    let checkpoint = checkpoint();
    let expected = bits(&unmanaged(&checkpoint.folder(), DType::F32).image);
    checkpoint.rewrite(random::TRANSFORMER, original::named);
    assert!(bits(&unmanaged(&checkpoint.folder(), DType::F32).image) == expected, "other bits");
    let budget = weight_bytes(&checkpoint.folder(), DType::F32) / 2;
    let (image, plan) = draw(&checkpoint.folder(), DType::F32, budget, Strategy::GroupOffload).unwrap();
    assert!(image == expected, "streamed: other bits");
    let stacks: Vec<_> = plan.component("transformer").unwrap().stacks.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(stacks, ["double_blocks", "single_blocks"]);
}

#[test]
fn every_tensor_equals_diffusers_own() {
    golden::compare(&checkpoint().folder(), "flux", DType::F32, 1e-3);
}

/// Which rounds the timestep and the guidance, and so has other sinusoids than f32: without that the two are far apart.
#[test]
fn in_bf16_it_is_diffusers_in_bf16() {
    golden::compare(&checkpoint().folder(), "flux_bf16", DType::BF16, 0.03);
}

/// At a time and a guidance that bf16 has exactly: it rounds them as diffusers does, and sinusoids are far apart there.
#[test]
fn half_precision_draws_about_the_same() {
    let checkpoint = checkpoint();
    let draw = |dtype| {
        let pipeline = Flux::load(&checkpoint.folder(), &options(dtype), &Unmanaged).unwrap();
        pipeline.generate(&Request { steps: 1, guidance: 4.0, ..request() }, |_| {}).unwrap().image
    };
    let exact = draw(DType::F32);
    for (dtype, least, most) in [(DType::BF16, 1e-3, 0.1), (DType::F16, 1e-5, 0.01)] {
        let error = relative_error(&draw(dtype), &exact);
        println!("{dtype:?}: {error:.1e}");
        // Too close would mean that it was computed in f32.
        assert!(error > least && error < most, "{dtype:?}: {error}");
    }
}

#[test]
fn guidance_is_an_input_of_dev_and_nothing_to_schnell() {
    let checkpoint = checkpoint();
    let both = |folder: &Folder| {
        let pipeline = Flux::load(folder, &LoadOptions::default(), &Unmanaged).unwrap();
        [1.0, 6.0].map(|guidance| bits(&pipeline.generate(&Request { guidance, ..request() }, |_| {}).unwrap().image))
    };
    let [weak, strong] = both(&checkpoint.folder());
    assert!(weak != strong);
    checkpoint.set("transformer/config.json", "guidance_embeds", false.into());
    checkpoint.set("scheduler/scheduler_config.json", "use_dynamic_shifting", false.into());
    let [weak, strong] = both(&checkpoint.folder());
    assert!(weak == strong);
}

#[test]
fn passes_are_reported() {
    let pipeline = Pipeline::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    let mut seen = Vec::new();
    pipeline.generate(&request(), |p| seen.push((p.component, p.pass, p.passes))).unwrap();
    let expected =
        [("text_encoder", 1, 1), ("text_encoder_2", 1, 1), ("transformer", 1, 2), ("transformer", 2, 2), ("vae", 1, 1)];
    assert_eq!(seen, expected);
    assert_eq!(pipeline.passes(&request()), expected.len() as u64);
}

#[test]
fn requests_that_cannot_be_fulfilled_are_refused() {
    let pipeline = Pipeline::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    let refused = |change: &dyn Fn(&mut Request)| refused_request(&pipeline, change);
    assert_eq!(refused(&|r| r.width = 40), "width = 40: expected a multiple of 16 pixels");
    assert_eq!(refused(&|r| r.height = 0), "height = 0: expected a multiple of 16 pixels");
    assert_eq!(refused(&|r| r.width = u32::MAX - 15), "width = 4294967280: expected at most 16384 pixels");
    assert_eq!(refused(&|r| r.guidance = f64::NAN), "guidance = NaN: expected zero (off) or a positive number");
    assert_eq!(refused(&|r| r.steps = 0), "steps = 0: expected 1 to 1000");
    let negative = refused(&|r| r.negative = "blurry".into());
    assert_eq!(negative, "negative = \"blurry\": FLUX.1 can't be led away from a prompt: leave it empty");
    let latents = Tensor::zeros((1, 16, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let message = refused(&|r| r.initial_latents = Some(latents.clone()));
    assert_eq!(message, "initial_latents = [1, 16, 4, 4]: expected the shape [1, 16, 4, 6]");
}

/// However long or odd: what is too long is cut off, what is unknown is one token.
#[test]
fn any_prompt_is_drawn() {
    let pipeline = Flux::load(&checkpoint().folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    for prompt in ["", " ", "ä🙂\u{0}", &"a cat ".repeat(500)] {
        let request = Request { prompt: prompt.to_owned(), steps: 1, ..request() };
        let image = pipeline.generate(&request, |_| {}).unwrap().image;
        assert!(image.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| (0.0..=1.0).contains(x)));
    }
}

#[test]
fn broken_checkpoints_are_named() {
    let values: [(&str, &str, serde_json::Value); 15] = [
        ("transformer/config.json", "patch_size", 2.into()),
        ("transformer/config.json", "axes_dims_rope", vec![8, 8].into()),
        ("transformer/config.json", "num_layers", u64::MAX.into()),
        ("transformer/config.json", "num_attention_heads", 0.into()),
        ("transformer/config.json", "pooled_projection_dim", 5.into()),
        ("transformer/config.json", "joint_attention_dim", 5.into()),
        ("transformer/config.json", "in_channels", 5.into()),
        ("transformer/config.json", "out_channels", 5.into()),
        ("text_encoder/config.json", "hidden_act", "relu".into()),
        ("text_encoder/config.json", "num_attention_heads", 7.into()),
        ("text_encoder/config.json", "max_position_embeddings", 0.into()),
        ("text_encoder_2/config.json", "feed_forward_proj", "relu".into()),
        ("text_encoder_2/config.json", "relative_attention_num_buckets", 0.into()),
        ("text_encoder_2/config.json", "relative_attention_max_distance", 1.into()),
        ("model_index.json", "text_encoder_2", vec!["transformers", "UMT5EncoderModel"].into()),
    ];
    for (file, key, value) in values {
        let checkpoint = checkpoint();
        checkpoint.set(file, key, value);
        checkpoint.refused(&[file, key]);
    }
    for file in [
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer.json",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
    ] {
        let checkpoint = checkpoint();
        std::fs::remove_file(checkpoint.path(file)).unwrap();
        let named = if file == "tokenizer/vocab.json" { "tokenizer/tokenizer.json" } else { file };
        checkpoint.refused(&[named, "is missing"]);
    }
    let one = checkpoint();
    std::fs::write(one.path("tokenizer/merges.txt"), "#version: 0.2\nx y z\n").unwrap();
    one.refused(&["tokenizer/vocab.json"]);
    let other = checkpoint();
    other.set("tokenizer_2/special_tokens_map.json", "pad_token", "<none>".into());
    other.refused(&["tokenizer_2/tokenizer.json", "<none>"]);
}
