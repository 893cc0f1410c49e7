//! Wan 2.1: blocks with self attention and cross attention to the text.

use super::{Pipeline, diffusers, scheduler, t5::T5, tokenizers, wan_vae::WanVae};
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

const CHANNELS: usize = 16;
/// Two by two patches of one frame.
const PATCH: usize = 4 * CHANNELS;
const TIME: usize = 256;

struct Wan {
    heads: Heads,
    dim: usize,
    inner: usize,
    layers: usize,
    text: usize,
}

pub(crate) fn build(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let umt5 = T5::umt5_xxl(sizes.beside());
    let heads = sizes.heads(40, 128);
    // 13824 of 5120.
    let inner = (heads.dim() * 27 / 10).next_multiple_of(8);
    let model = Wan { heads, dim: heads.dim(), inner, layers: sizes.layers(40), text: umt5.dim() };
    if single {
        return (vec![diffusers("transformer", model.config(), Dtype::F32, |b| model.original(b))], None);
    }
    let unipc = json!({
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": "0.33.0.dev0",
        "flow_shift": 3.0,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": true
    });
    let pipeline = Pipeline {
        class: "WanPipeline",
        parts: vec![scheduler("UniPCMultistepScheduler", unipc), tokenizers::t5("tokenizer")],
        extra: json!({}),
    };
    let components = vec![
        umt5.component("text_encoder", Dtype::BF16),
        diffusers("transformer", model.config(), Dtype::F32, |b| model.tensors(b)),
        WanVae::new(sizes).component(Dtype::F32),
    ];
    (components, Some(pipeline))
}

impl Wan {
    fn config(&self) -> Value {
        json!({
            "_class_name": "WanTransformer3DModel",
            "_diffusers_version": "0.33.0.dev0",
            "added_kv_proj_dim": null,
            "attention_head_dim": self.heads.size,
            "cross_attn_norm": true,
            "eps": 1e-6,
            "ffn_dim": self.inner,
            "freq_dim": TIME,
            "image_dim": null,
            "in_channels": CHANNELS,
            "num_attention_heads": self.heads.count,
            "num_layers": self.layers,
            "out_channels": CHANNELS,
            "patch_size": [1, 2, 2],
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 1024,
            "text_dim": self.text
        })
    }

    fn tensors(&self, b: &mut Builder) {
        let dim = self.dim;
        b.param("scale_shift_table", &[1, 2, dim]);
        b.conv("patch_embedding", CHANNELS, dim, &[1, 2, 2]);
        b.at("condition_embedder", |b| {
            b.linear("time_embedder.linear_1", TIME, dim);
            b.linear("time_embedder.linear_2", dim, dim);
            b.linear("time_proj", dim, 6 * dim);
            b.linear("text_embedder.linear_1", self.text, dim);
            b.linear("text_embedder.linear_2", dim, dim);
        });
        b.stack("blocks", self.layers, |b, _| {
            b.param("scale_shift_table", &[1, 6, dim]);
            for attention in ["attn1", "attn2"] {
                b.at(attention, |b| {
                    for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                        b.linear(name, dim, dim);
                    }
                    b.rms("norm_q", dim);
                    b.rms("norm_k", dim);
                });
            }
            b.norm("norm2", dim);
            b.linear("ffn.net.0.proj", dim, self.inner);
            b.linear("ffn.net.2", self.inner, dim);
        });
        b.linear("proj_out", dim, PATCH);
    }

    /// The names of the original repository.
    fn original(&self, b: &mut Builder) {
        let dim = self.dim;
        b.conv("patch_embedding", CHANNELS, dim, &[1, 2, 2]);
        b.linear("text_embedding.0", self.text, dim);
        b.linear("text_embedding.2", dim, dim);
        b.linear("time_embedding.0", TIME, dim);
        b.linear("time_embedding.2", dim, dim);
        b.linear("time_projection.1", dim, 6 * dim);
        b.stack("blocks", self.layers, |b, _| {
            b.param("modulation", &[1, 6, dim]);
            for attention in ["self_attn", "cross_attn"] {
                b.at(attention, |b| {
                    for name in ["q", "k", "v", "o"] {
                        b.linear(name, dim, dim);
                    }
                    b.rms("norm_q", dim);
                    b.rms("norm_k", dim);
                });
            }
            b.norm("norm3", dim);
            b.linear("ffn.0", dim, self.inner);
            b.linear("ffn.2", self.inner, dim);
        });
        b.param("head.modulation", &[1, 2, dim]);
        b.linear("head.head", dim, PATCH);
    }
}
