//! Z-Image: one stream of text and image through equal layers, with refiners of each before it.

use super::{Pipeline, diffusers, qwen3::Qwen3, scheduler, tokenizer, vae::Vae};
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Two by two patches of 16 channels.
const PATCH: usize = 64;
const REFINERS: usize = 2;

struct ZImage {
    heads: Heads,
    dim: usize,
    layers: usize,
    captions: usize,
    single: bool,
}

pub(crate) fn build(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let qwen = Qwen3::new(sizes.beside());
    let heads = sizes.heads(30, 128);
    let model = ZImage { heads, dim: heads.dim(), layers: sizes.layers(30), captions: qwen.dim(), single };
    if single {
        return (vec![diffusers("transformer", model.config(), Dtype::BF16, |b| model.tensors(b))], None);
    }
    let flow = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.36.0.dev0",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": false
    });
    let pipeline = Pipeline {
        class: "ZImagePipeline",
        parts: vec![
            scheduler("FlowMatchEulerDiscreteScheduler", flow),
            tokenizer("tokenizer", "Qwen2Tokenizer", 131_072, vec![("vocab.json", json!({ "!": 0 }))]),
        ],
        extra: json!({}),
    };
    // The pipeline loads it without the output layer, though its own configuration names the class that has one.
    let encoder = Component { class: "Qwen3Model".into(), ..qwen.component("text_encoder", Dtype::BF16) };
    let components = vec![
        encoder,
        diffusers("transformer", model.config(), Dtype::F32, |b| model.tensors(b)),
        Vae::sixteen(sizes).component(Dtype::BF16),
    ];
    (components, Some(pipeline))
}

impl ZImage {
    fn config(&self) -> Value {
        json!({
            "_class_name": "ZImageTransformer2DModel",
            "_diffusers_version": "0.36.0.dev0",
            "all_f_patch_size": [1],
            "all_patch_size": [2],
            "axes_dims": self.heads.axes([32, 48, 48]),
            "axes_lens": [1536, 512, 512],
            "cap_feat_dim": self.captions,
            "dim": self.dim,
            "in_channels": 16,
            "n_heads": self.heads.count,
            "n_kv_heads": self.heads.count,
            "n_layers": self.layers,
            "n_refiner_layers": REFINERS,
            "norm_eps": 1e-5,
            "qk_norm": true,
            "rope_theta": 256.0,
            "t_scale": 1000.0
        })
    }

    /// The single file has the original names: queries, keys and values in one, no patch sizes.
    fn tensors(&self, b: &mut Builder) {
        let (dim, conditioning) = (self.dim, self.dim.min(256));
        let patch = |name: &str| if self.single { name.to_owned() } else { format!("all_{name}.2-1") };
        b.param("x_pad_token", &[1, dim]);
        b.param("cap_pad_token", &[1, dim]);
        b.linear(&patch("x_embedder"), PATCH, dim);
        b.at(&patch("final_layer"), |b| {
            b.linear("linear", dim, PATCH);
            b.linear("adaLN_modulation.1", conditioning, dim);
        });
        b.stack("noise_refiner", REFINERS, |b, _| self.layer(b, true));
        b.stack("context_refiner", REFINERS, |b, _| self.layer(b, false));
        b.linear("t_embedder.mlp.0", 256, 1024);
        b.linear("t_embedder.mlp.2", 1024, conditioning);
        b.rms("cap_embedder.0", self.captions);
        b.linear("cap_embedder.1", self.captions, dim);
        b.stack("layers", self.layers, |b, _| self.layer(b, true));
        if self.single {
            b.stray("norm_final.weight", &[dim], None);
        }
    }

    fn layer(&self, b: &mut Builder, modulated: bool) {
        let dim = self.dim;
        // As the model's code rounds it.
        let inner = (dim as f64 / 3.0 * 8.0) as usize;
        b.at("attention", |b| {
            if self.single {
                b.rms("q_norm", self.heads.size);
                b.rms("k_norm", self.heads.size);
                b.matrix("qkv", dim, 3 * dim);
                b.matrix("out", dim, dim);
            } else {
                b.rms("norm_q", self.heads.size);
                b.rms("norm_k", self.heads.size);
                for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                    b.matrix(name, dim, dim);
                }
            }
        });
        b.matrix("feed_forward.w1", dim, inner);
        b.matrix("feed_forward.w2", inner, dim);
        b.matrix("feed_forward.w3", dim, inner);
        for name in ["attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2"] {
            b.rms(name, dim);
        }
        if modulated {
            b.linear("adaLN_modulation.0", dim.min(256), 4 * dim);
        }
    }
}
