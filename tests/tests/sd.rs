//! Stable Diffusion 1.5, 2.1 and XL on small checkpoints of random weights: diffusers' tensors, and the same bits whatever the memory.

mod common;
mod random;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use common::{options, relative_error};
use mm_candle::{Component, LoadSpec, load_unmanaged};
use mm_diffusion::{LoadOptions, Pipeline, Request, Unmanaged};
use mm_fixtures::Model;
use mm_plan::{Infeasible, Strategy};
use random::{
    Checkpoint, golden,
    matrix::{bits, described_as_loaded, draw, lora, matrix, unmanaged},
    refused_request, request,
};

const MODELS: [Model; 3] = [Model::Sd15, Model::Sd21, Model::Sdxl];
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn checkpoint(model: Model) -> Checkpoint {
    let layers = if model == Model::Sdxl { 2 } else { 1 };
    Checkpoint::of(model, layers, 32)
}

#[test]
fn sd15_in_f32_under_every_strategy_and_budget() {
    matrix(&checkpoint(Model::Sd15).folder(), DType::F32);
}

#[test]
fn a_lora_under_every_strategy_and_off_again() {
    for (model, dtype) in [(Model::Sd15, DType::F32), (Model::Sd21, DType::BF16), (Model::Sdxl, DType::F32)] {
        lora(&checkpoint(model), "unet", dtype, &request());
    }
}

#[test]
fn sd21_in_bf16_under_every_strategy_and_budget() {
    matrix(&checkpoint(Model::Sd21).folder(), DType::BF16);
}

#[test]
fn sdxl_in_f32_under_every_strategy_and_budget() {
    matrix(&checkpoint(Model::Sdxl).folder(), DType::F32);
}

#[test]
fn a_description_from_headers_is_what_loading_finds() {
    for model in MODELS {
        described_as_loaded(&checkpoint(model).folder());
    }
}

#[test]
fn every_tensor_of_sd15_equals_diffusers_own() {
    golden::compare(&checkpoint(Model::Sd15).folder(), "sd15", DType::F32, 1e-4);
}

#[test]
fn every_tensor_of_sd21_equals_diffusers_own() {
    golden::compare(&checkpoint(Model::Sd21).folder(), "sd21", DType::F32, 1e-4);
}

#[test]
fn every_tensor_of_sdxl_equals_diffusers_own() {
    golden::compare(&checkpoint(Model::Sdxl).folder(), "sdxl", DType::F32, 1e-4);
}

/// All of a UNet but what is small: residual blocks, transformers, and what changes the sides.
#[test]
fn unets_stream() {
    for (model, stacks) in [(Model::Sd15, 22), (Model::Sd21, 22), (Model::Sdxl, 19)] {
        let checkpoint = checkpoint(model);
        let folder = checkpoint.folder();
        let Err(Infeasible::NeverFits { smallest, .. }) = draw(&folder, DType::F32, 1, Strategy::Auto) else {
            panic!("one byte can't be enough");
        };
        let (_, plan) = draw(&folder, DType::F32, smallest, Strategy::GroupOffload).unwrap();
        let unet = plan.component("unet").unwrap();
        assert_eq!(unet.stacks.len(), stacks, "{model}");
        let described = mm_diffusion::describe(&folder, &options(DType::F32)).unwrap();
        let whole = described.iter().find(|component| component.name == "unet").unwrap();
        println!("{model}: {} of {} bytes never stream", unet.rest, whole.bytes());
        assert!(unet.rest * 10 < whole.bytes(), "{model}: {} of {} bytes never stream", unet.rest, whole.bytes());
    }
}

/// candle's own UNet, as it is: managed whole, where two take turns in room for one, it computes the same bits; and it is
/// about as near to diffusers as its GELU is.
#[test]
fn candles_own_unet_is_managed_as_it_is() {
    let checkpoint = Checkpoint::of(Model::Sd21, 1, 32);
    let spec = LoadSpec { lazy: true, ..LoadSpec::new("unet", [checkpoint.path(UNET)]) };
    let block = |out_channels, use_cross_attn, attention_head_dim| BlockConfig {
        out_channels,
        use_cross_attn,
        attention_head_dim,
    };
    let config = UNet2DConditionModelConfig {
        blocks: vec![block(32, Some(1), 1), block(64, Some(1), 2), block(128, Some(1), 4), block(128, None, 4)],
        cross_attention_dim: 8,
        use_linear_projection: true,
        ..Default::default()
    };
    let build = |vb: VarBuilder<'_>| UNet2DConditionModel::new(vb, 4, 4, false, config.clone());
    let golden = golden::tensors("sd21");
    let draw = |unet: &Component<UNet2DConditionModel>| {
        let forward =
            |unet: &mut UNet2DConditionModel| unet.forward(&golden["initial_latents"], 250.0, &golden["prompt_embeds"]);
        unet.run(forward).unwrap()
    };
    let expected = draw(&load_unmanaged(&spec, build).unwrap());
    let error = relative_error(&expected, &golden["unet_out_t250"]);
    println!("candle's own is {error:.1e} away from diffusers");
    assert!(error > 1e-5 && error < 1e-2, "{error}");

    let bytes = mm_candle::describe(&spec, build).unwrap().0.bytes();
    for strategy in [Strategy::Auto, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload] {
        let manager = common::manager(bytes * 5 / 4, strategy);
        let (one, two) = (manager.load(&spec, build).unwrap(), LoadSpec { name: "other".into(), ..spec.clone() });
        let two = manager.load(&two, build).unwrap();
        for _ in 0..2 {
            assert!(bits(&draw(&one)) == bits(&expected) && bits(&draw(&two)) == bits(&expected), "{strategy}");
        }
        assert!(manager.memory().peak <= bytes * 5 / 4);
    }
}

#[test]
fn half_precision_draws_about_the_same() {
    for model in MODELS {
        let checkpoint = checkpoint(model);
        let exact = unmanaged(&checkpoint.folder(), DType::F32).image;
        for (dtype, least, most) in [(DType::BF16, 1e-3, 0.2), (DType::F16, 1e-4, 0.03)] {
            let error = relative_error(&unmanaged(&checkpoint.folder(), dtype).image, &exact);
            println!("{model} in {dtype:?}: {error:.1e}");
            // Too close would mean that it was computed in f32.
            assert!(error > least && error < most, "{model} in {dtype:?}: {error}");
        }
    }
}

/// The checkpoints of 1.5 and 2.1 are older than the names that attention has now.
#[test]
fn the_first_names_of_the_vae_make_the_same_image() {
    let checkpoint = checkpoint(Model::Sd15);
    let expected = bits(&unmanaged(&checkpoint.folder(), DType::F32).image);
    checkpoint.rewrite(VAE, |tensors| {
        let rename = |name: String| {
            let pairs = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
            pairs.iter().fold(name, |name, (now, then)| name.replace(&format!(".{now}."), &format!(".{then}.")))
        };
        let renamed: std::collections::HashMap<_, Tensor> = tensors.into_iter().map(|(n, t)| (rename(n), t)).collect();
        assert!(renamed.contains_key("decoder.mid_block.attentions.0.proj_attn.weight"));
        renamed
    });
    assert!(bits(&unmanaged(&checkpoint.folder(), DType::F32).image) == expected, "other bits");
}

#[test]
fn guidance_leads_away_from_the_negative_prompt() {
    for (model, encoders, denoise) in [(Model::Sd15, 1, 3), (Model::Sd21, 1, 2), (Model::Sdxl, 2, 2)] {
        let pipeline = Pipeline::load(&checkpoint(model).folder(), &LoadOptions::default(), &Unmanaged).unwrap();
        let draw = |guidance, negative: &str| {
            let request = Request { guidance, negative: negative.into(), ..request() };
            let mut passes = 0;
            let image = pipeline.generate(&request, |_| passes += 1).unwrap().image;
            assert_eq!(pipeline.passes(&request), passes, "{model}");
            (bits(&image), passes)
        };
        let (plain, few) = draw(1.0, "a dog");
        let (guided, many) = draw(4.0, "a dog");
        assert_eq!((few, many), (encoders + denoise + 1, 2 * encoders + denoise + 1), "{model}");
        assert!(plain == draw(0.0, "").0, "{model}: up to one there is no guidance");
        let (empty, passes) = draw(4.0, "");
        assert!(guided != plain && guided != empty && empty != plain, "{model}");
        // What SDXL is led away from where nothing is asked for is nothing, not an empty prompt.
        assert_eq!(passes, if model == Model::Sdxl { few } else { many }, "{model}");
    }
}

/// Any number of latents, odd ones too.
#[test]
fn any_multiple_of_eight_is_drawn() {
    let pipeline = Pipeline::load(&checkpoint(Model::Sd15).folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    for (width, height) in [(8, 8), (40, 24), (72, 16)] {
        let request = Request { width, height, ..request() };
        let image = pipeline.generate(&request, |_| {}).unwrap().image;
        assert_eq!(image.dims(), [height as usize, width as usize, 3]);
        let values = image.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|x| (0.0..=1.0).contains(x)));
    }
}

#[test]
fn requests_that_cannot_be_fulfilled_are_refused() {
    let pipeline = Pipeline::load(&checkpoint(Model::Sd15).folder(), &LoadOptions::default(), &Unmanaged).unwrap();
    let refused = |change: &dyn Fn(&mut Request)| refused_request(&pipeline, change);
    assert_eq!(refused(&|r| r.width = 44), "width = 44: expected a multiple of 8 pixels");
    assert_eq!(refused(&|r| r.height = 0), "height = 0: expected a multiple of 8 pixels");
    assert_eq!(refused(&|r| r.guidance = -1.0), "guidance = -1: expected zero (off) or a positive number");
    assert_eq!(refused(&|r| r.steps = 0), "steps = 0: expected 1 to 999");
    assert_eq!(refused(&|r| r.steps = 1000), "steps = 1000: expected 1 to 999");
}

#[test]
fn broken_checkpoints_are_named() {
    let unet = "unet/config.json";
    let sampler = "scheduler/scheduler_config.json";
    let values: [(Model, &str, &str, serde_json::Value); 24] = [
        (Model::Sd15, unet, "in_channels", 9.into()),
        (Model::Sd15, unet, "out_channels", 8.into()),
        (Model::Sd15, unet, "cross_attention_dim", 5.into()),
        (Model::Sd15, unet, "norm_num_groups", 0.into()),
        (Model::Sd15, unet, "norm_eps", (-1).into()),
        (Model::Sd15, unet, "block_out_channels", serde_json::json!([])),
        (Model::Sd15, unet, "block_out_channels", serde_json::json!([32, 64, 128, u64::MAX])),
        (Model::Sd15, unet, "layers_per_block", 0.into()),
        (Model::Sd15, unet, "attention_head_dim", 0.into()),
        (Model::Sd15, unet, "attention_head_dim", serde_json::json!([1, 2])),
        (Model::Sd15, unet, "transformer_layers_per_block", 0.into()),
        (Model::Sd15, unet, "down_block_types", vec!["DownBlock2D"; 3].into()),
        (Model::Sd15, unet, "up_block_types", vec!["UpBlock2D"; 4].into()),
        (Model::Sd15, unet, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn".into()),
        (Model::Sd15, unet, "class_embed_type", "timestep".into()),
        (Model::Sd15, unet, "addition_embed_type", "text".into()),
        (Model::Sdxl, unet, "addition_embed_type", serde_json::Value::Null),
        (Model::Sdxl, unet, "addition_time_embed_dim", 0.into()),
        (Model::Sdxl, unet, "projection_class_embeddings_input_dim", 100_000.into()),
        (Model::Sd15, sampler, "skip_prk_steps", false.into()),
        (Model::Sd15, sampler, "beta_start", 2.into()),
        (Model::Sd15, sampler, "num_train_timesteps", 0.into()),
        (Model::Sd21, sampler, "thresholding", true.into()),
        (Model::Sdxl, sampler, "use_karras_sigmas", true.into()),
    ];
    for (model, file, key, value) in values {
        let checkpoint = checkpoint(model);
        checkpoint.set(file, key, value);
        checkpoint.refused(&[file, key]);
    }
    let unknown = checkpoint(Model::Sd15);
    unknown.set("model_index.json", "scheduler", serde_json::json!(["diffusers", "UniPCMultistepScheduler"]));
    unknown.refused(&["model_index.json", "UniPC", "DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler"]);
    let missing = checkpoint(Model::Sdxl);
    missing.rewrite("unet/diffusion_pytorch_model.safetensors", |mut tensors| {
        tensors.remove("add_embedding.linear_1.weight");
        tensors
    });
    missing.refused(&["unet: ", "add_embedding.linear_1.weight"]);
}
