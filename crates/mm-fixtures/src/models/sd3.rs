//! Stable Diffusion 3.5: joint blocks of text and image; the last one drops the text.

use super::{Pipeline, clip::Clip, component, diffusers, scheduler, t5::T5, tokenizers, vae::Vae};
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

const CHANNELS: usize = 16;
/// Two by two patches.
const PATCH: usize = 4 * CHANNELS;
/// Patches along one side of the position table.
const POSITIONS: usize = 192;

struct Sd3 {
    heads: Heads,
    dim: usize,
    layers: usize,
    text: usize,
    pooled: usize,
}

pub(crate) fn build(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let (clip_l, clip_g, t5) = (Clip::large(sizes, true), Clip::big(sizes), T5::xxl(sizes.beside()));
    let (heads, vae) = (sizes.heads(38, 64), Vae::sixteen(sizes));
    let pooled = clip_l.dim() + clip_g.dim();
    let model = Sd3 { heads, dim: heads.dim(), layers: sizes.layers(38), text: t5.dim(), pooled };
    if single {
        return (all_in_one(&model, &clip_l, &clip_g, &t5, &vae), None);
    }
    let flow = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.31.0.dev0",
        "num_train_timesteps": 1000,
        "shift": 3.0
    });
    let pipeline = Pipeline {
        class: "StableDiffusion3Pipeline",
        parts: vec![
            scheduler("FlowMatchEulerDiscreteScheduler", flow),
            clip_l.tokenizer("tokenizer"),
            clip_g.tokenizer("tokenizer_2"),
            tokenizers::t5("tokenizer_3"),
        ],
        extra: json!({}),
    };
    let components = vec![
        clip_l.component("text_encoder", Dtype::F16),
        clip_g.component("text_encoder_2", Dtype::F16),
        t5.component("text_encoder_3", Dtype::F16),
        diffusers("transformer", model.config(), Dtype::BF16, |b| model.tensors(b)),
        vae.component(Dtype::BF16),
    ];
    (components, Some(pipeline))
}

/// Everything in one file, as the single files with text encoders have it.
fn all_in_one(model: &Sd3, clip_l: &Clip, clip_g: &Clip, t5: &T5, vae: &Vae) -> Vec<Component> {
    let encoder = |name: &str, prefix: &str, config: Value, build: &dyn Fn(&mut Builder)| {
        let class = config["architectures"][0].as_str().unwrap_or_default().to_owned();
        component(name, class, true, config, Dtype::F16, |b| {
            b.at(prefix, |b| {
                b.at("transformer", build);
                b.stray("logit_scale", &[], Some(Dtype::F32));
            });
        })
    };
    vec![
        encoder("text_encoder", "text_encoders.clip_l", clip_l.config(), &|b| clip_l.tensors(b)),
        encoder("text_encoder_2", "text_encoders.clip_g", clip_g.config(), &|b| clip_g.tensors(b)),
        encoder("text_encoder_3", "text_encoders.t5xxl", t5.config(), &|b| {
            t5.tensors(b);
            t5.tied_embeddings(b);
        }),
        diffusers("transformer", model.config(), Dtype::BF16, |b| {
            b.at("model.diffusion_model", |b| model.original(b));
        }),
        diffusers("vae", vae.config(), Dtype::BF16, |b| b.at("first_stage_model", |b| vae.original(b))),
    ]
}

impl Sd3 {
    fn config(&self) -> Value {
        json!({
            "_class_name": "SD3Transformer2DModel",
            "_diffusers_version": "0.31.0.dev0",
            "attention_head_dim": self.heads.size,
            "caption_projection_dim": self.dim,
            "in_channels": CHANNELS,
            "joint_attention_dim": self.text,
            "num_attention_heads": self.heads.count,
            "num_layers": self.layers,
            "out_channels": CHANNELS,
            "patch_size": 2,
            "pooled_projection_dim": self.pooled,
            "pos_embed_max_size": POSITIONS,
            "qk_norm": "rms_norm",
            "sample_size": 128
        })
    }

    fn tensors(&self, b: &mut Builder) {
        let (dim, head) = (self.dim, self.heads.size);
        b.param("pos_embed.pos_embed", &[1, POSITIONS * POSITIONS, dim]);
        b.conv("pos_embed.proj", CHANNELS, dim, &[2, 2]);
        for (name, input) in [("timestep", 256), ("text", self.pooled)] {
            b.linear(&format!("time_text_embed.{name}_embedder.linear_1"), input, dim);
            b.linear(&format!("time_text_embed.{name}_embedder.linear_2"), dim, dim);
        }
        b.linear("context_embedder", self.text, dim);
        b.stack("transformer_blocks", self.layers, |b, index| {
            let last = index + 1 == self.layers;
            b.linear("norm1.linear", dim, 6 * dim);
            b.linear("norm1_context.linear", dim, if last { 2 } else { 6 } * dim);
            b.at("attn", |b| {
                for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
                    b.rms(name, head);
                }
                for name in ["to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0"] {
                    b.linear(name, dim, dim);
                }
                if !last {
                    b.linear("to_add_out", dim, dim);
                }
            });
            for name in if last { &["ff"][..] } else { &["ff", "ff_context"] } {
                b.linear(&format!("{name}.net.0.proj"), dim, 4 * dim);
                b.linear(&format!("{name}.net.2"), 4 * dim, dim);
            }
        });
        b.linear("norm_out.linear", dim, 2 * dim);
        b.linear("proj_out", dim, PATCH);
    }

    /// The names of the original repository.
    fn original(&self, b: &mut Builder) {
        let (dim, head) = (self.dim, self.heads.size);
        b.param("pos_embed", &[1, POSITIONS * POSITIONS, dim]);
        b.conv("x_embedder.proj", CHANNELS, dim, &[2, 2]);
        for (name, input) in [("t_embedder", 256), ("y_embedder", self.pooled)] {
            b.linear(&format!("{name}.mlp.0"), input, dim);
            b.linear(&format!("{name}.mlp.2"), dim, dim);
        }
        b.linear("context_embedder", self.text, dim);
        b.stack("joint_blocks", self.layers, |b, index| {
            for stream in ["context_block", "x_block"] {
                let short = stream == "context_block" && index + 1 == self.layers;
                b.at(stream, |b| {
                    b.linear("attn.qkv", dim, 3 * dim);
                    b.rms("attn.ln_q", head);
                    b.rms("attn.ln_k", head);
                    b.linear("adaLN_modulation.1", dim, if short { 2 } else { 6 } * dim);
                    if !short {
                        b.linear("attn.proj", dim, dim);
                        b.linear("mlp.fc1", dim, 4 * dim);
                        b.linear("mlp.fc2", 4 * dim, dim);
                    }
                });
            }
        });
        b.linear("final_layer.linear", dim, PATCH);
        b.linear("final_layer.adaLN_modulation.1", dim, 2 * dim);
    }
}
