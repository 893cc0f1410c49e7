//! Stable Diffusion XL: the folder in f32, the single file in f16.

use super::{Pipeline, clip::Clip, component, diffusers, scheduler, unet::Unet, vae::Vae};
use crate::{Component, builder::Builder, sizes::Sizes};
use safetensors::Dtype;
use serde_json::json;

const STEPS: usize = 1000;

pub(crate) fn build(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let (clip_l, clip_g) = (Clip::large(sizes, false), Clip::big(sizes));
    let unet = Unet::xl(sizes, clip_l.dim() + clip_g.dim(), clip_g.dim());
    let vae = Vae::four(sizes, 0.13025, 1024);
    if single {
        return (all_in_one(&clip_l, &clip_g, &unet, &vae), None);
    }
    let euler = json!({
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": STEPS,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading"
    });
    let pipeline = Pipeline {
        class: "StableDiffusionXLPipeline",
        parts: vec![
            scheduler("EulerDiscreteScheduler", euler),
            clip_l.tokenizer("tokenizer"),
            clip_g.tokenizer("tokenizer_2"),
        ],
        extra: json!({ "force_zeros_for_empty_prompt": true }),
    };
    let components = vec![
        clip_l.component("text_encoder", Dtype::F32),
        clip_g.component("text_encoder_2", Dtype::F32),
        diffusers("unet", unet.config(), Dtype::F32, |b| unet.tensors(b)),
        vae.component(Dtype::F32),
    ];
    (components, Some(pipeline))
}

fn all_in_one(clip_l: &Clip, clip_g: &Clip, unet: &Unet, vae: &Vae) -> Vec<Component> {
    let encoder = |name: &str, clip: &Clip, build: &dyn Fn(&mut Builder)| {
        let config = clip.config();
        let class = config["architectures"][0].as_str().unwrap_or_default().to_owned();
        component(name, class, true, config, Dtype::F16, build)
    };
    vec![
        encoder("text_encoder", clip_l, &|b| {
            b.at("conditioner.embedders.0.transformer", |b| {
                Clip::position_ids(b);
                clip_l.tensors(b);
            });
        }),
        encoder("text_encoder_2", clip_g, &|b| {
            b.at("conditioner.embedders.1.model", |b| clip_g.open_clip(b));
        }),
        diffusers("unet", unet.config(), Dtype::F16, |b| {
            b.at("model.diffusion_model", |b| unet.original(b));
            // Schedules that trainers leave in the file.
            b.stray("alphas_cumprod", &[STEPS], Some(Dtype::F32));
            b.stray("denoiser.sigmas", &[STEPS], Some(Dtype::F32));
        }),
        diffusers("vae", vae.config(), Dtype::F16, |b| b.at("first_stage_model", |b| vae.original(b))),
    ]
}
