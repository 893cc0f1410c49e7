//! Stable Diffusion 1.5 and 2.1: the folder in f32, the single file in f16.

use super::{Pipeline, clip::Clip, component, diffusers, scheduler, unet::Unet, vae::Vae};
use crate::{Component, sizes::Sizes};
use safetensors::Dtype;
use serde_json::{Value, json};

const SCALING: f64 = 0.18215;

/// With CLIP-L, and PNDM.
pub(crate) fn one(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let clip = Clip::large(sizes, false);
    let (unet, vae) = (Unet::one(sizes, clip.dim(), true), Vae::four(sizes, SCALING, 512));
    build(&clip, &unet, &vae, single, "PNDMScheduler", "epsilon")
}

/// With OpenCLIP ViT-H, and DDIM: its UNet predicts velocities.
pub(crate) fn two(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let clip = Clip::huge(sizes);
    let (unet, vae) = (Unet::one(sizes, clip.dim(), false), Vae::four(sizes, SCALING, 768));
    build(&clip, &unet, &vae, single, "DDIMScheduler", "v_prediction")
}

fn build(
    clip: &Clip,
    unet: &Unet,
    vae: &Vae,
    single: bool,
    class: &'static str,
    prediction: &str,
) -> (Vec<Component>, Option<Pipeline>) {
    if single {
        return (all_in_one(clip, unet, vae), None);
    }
    let sampler = json!({
        "_class_name": class,
        "_diffusers_version": "0.8.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null
    });
    let pipeline = Pipeline {
        class: "StableDiffusionPipeline",
        parts: vec![scheduler(class, sampler), clip.tokenizer("tokenizer")],
        extra: json!({}),
    };
    let components = vec![
        clip.component("text_encoder", Dtype::F32),
        diffusers("unet", unet.config(), Dtype::F32, |b| unet.tensors(b)),
        vae.component(Dtype::F32),
    ];
    (components, Some(pipeline))
}

fn all_in_one(clip: &Clip, unet: &Unet, vae: &Vae) -> Vec<Component> {
    let config: Value = clip.config();
    let class = config["architectures"][0].as_str().unwrap_or_default().to_owned();
    let is_open = config["hidden_act"] == "gelu";
    vec![
        component("text_encoder", class, true, config, Dtype::F16, |b| match is_open {
            true => b.at("cond_stage_model.model", |b| clip.open_clip(b)),
            false => b.at("cond_stage_model.transformer", |b| {
                Clip::position_ids(b);
                clip.tensors(b);
            }),
        }),
        diffusers("unet", unet.config(), Dtype::F16, |b| {
            b.at("model.diffusion_model", |b| unet.original(b));
            b.stray("alphas_cumprod", &[1000], Some(Dtype::F32));
        }),
        diffusers("vae", vae.config(), Dtype::F16, |b| b.at("first_stage_model", |b| vae.original(b))),
    ]
}
