//! FLUX.1: double blocks that keep text and image apart, then single blocks of both.

use super::{Pipeline, clip::Clip, diffusers, scheduler, t5::T5, tokenizers, vae::Vae};
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Two by two patches of 16 channels.
const PATCH: usize = 64;
const TIME: usize = 256;

struct Flux {
    heads: Heads,
    dim: usize,
    double: usize,
    single: usize,
    text: usize,
    pooled: usize,
}

/// `gguf`: the transformer and T5 lie in such files.
pub(crate) fn build(sizes: Sizes, single: bool, gguf: bool) -> (Vec<Component>, Option<Pipeline>) {
    let (clip, t5) = (Clip::large(sizes, false), T5::xxl(sizes.beside()));
    let (heads, double) = (sizes.heads(24, 128), sizes.layers(19));
    let model = Flux { heads, dim: heads.dim(), double, single: 2 * double, text: t5.dim(), pooled: clip.dim() };
    if single {
        return (vec![diffusers("transformer", model.config(), Dtype::BF16, |b| model.original(b))], None);
    }
    let flow = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.30.0.dev0",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": true
    });
    let pipeline = Pipeline {
        class: "FluxPipeline",
        parts: vec![
            scheduler("FlowMatchEulerDiscreteScheduler", flow),
            clip.tokenizer("tokenizer"),
            tokenizers::t5("tokenizer_2"),
        ],
        extra: json!({}),
    };
    let components = vec![
        clip.component("text_encoder", Dtype::BF16),
        if gguf { t5.gguf("text_encoder_2") } else { t5.component("text_encoder_2", Dtype::BF16) },
        if gguf { transformer_in_gguf(&model) } else { transformer(&model) },
        Vae::sixteen(sizes).component(Dtype::BF16),
    ];
    (components, Some(pipeline))
}

fn transformer(model: &Flux) -> Component {
    diffusers("transformer", model.config(), Dtype::BF16, |b| model.tensors(b))
}

/// Under the original names, which converters keep.
fn transformer_in_gguf(model: &Flux) -> Component {
    let original = diffusers("transformer", model.config(), Dtype::BF16, |b| model.original(b));
    Component { gguf: true, ..original }
}

impl Flux {
    fn config(&self) -> Value {
        json!({
            "_class_name": "FluxTransformer2DModel",
            "_diffusers_version": "0.30.0.dev0",
            "attention_head_dim": self.heads.size,
            "axes_dims_rope": self.heads.axes([16, 56, 56]),
            "guidance_embeds": true,
            "in_channels": PATCH,
            "joint_attention_dim": self.text,
            "num_attention_heads": self.heads.count,
            "num_layers": self.double,
            "num_single_layers": self.single,
            "patch_size": 1,
            "pooled_projection_dim": self.pooled
        })
    }

    fn tensors(&self, b: &mut Builder) {
        let (dim, head) = (self.dim, self.heads.size);
        b.at("time_text_embed", |b| {
            for (name, input) in [("timestep", TIME), ("guidance", TIME), ("text", self.pooled)] {
                b.linear(&format!("{name}_embedder.linear_1"), input, dim);
                b.linear(&format!("{name}_embedder.linear_2"), dim, dim);
            }
        });
        b.linear("context_embedder", self.text, dim);
        b.linear("x_embedder", PATCH, dim);
        b.stack("transformer_blocks", self.double, |b, _| {
            b.linear("norm1.linear", dim, 6 * dim);
            b.linear("norm1_context.linear", dim, 6 * dim);
            b.at("attn", |b| {
                for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
                    b.rms(name, head);
                }
                let image = ["to_q", "to_k", "to_v", "to_out.0"];
                for name in image.into_iter().chain(["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]) {
                    b.linear(name, dim, dim);
                }
            });
            for name in ["ff", "ff_context"] {
                b.linear(&format!("{name}.net.0.proj"), dim, 4 * dim);
                b.linear(&format!("{name}.net.2"), 4 * dim, dim);
            }
        });
        b.stack("single_transformer_blocks", self.single, |b, _| {
            b.linear("norm.linear", dim, 3 * dim);
            b.linear("proj_mlp", dim, 4 * dim);
            b.linear("proj_out", 5 * dim, dim);
            b.at("attn", |b| {
                b.rms("norm_q", head);
                b.rms("norm_k", head);
                for name in ["to_q", "to_k", "to_v"] {
                    b.linear(name, dim, dim);
                }
            });
        });
        b.linear("norm_out.linear", dim, 2 * dim);
        b.linear("proj_out", dim, PATCH);
    }

    /// The names of the original repository.
    fn original(&self, b: &mut Builder) {
        let (dim, head) = (self.dim, self.heads.size);
        let norms = |b: &mut Builder, path: &str| {
            for name in ["query_norm", "key_norm"] {
                b.tensor(&format!("{path}.{name}.scale"), &[head], crate::Init::Ones);
            }
        };
        b.linear("img_in", PATCH, dim);
        for (name, input) in [("time_in", TIME), ("vector_in", self.pooled), ("guidance_in", TIME)] {
            b.linear(&format!("{name}.in_layer"), input, dim);
            b.linear(&format!("{name}.out_layer"), dim, dim);
        }
        b.linear("txt_in", self.text, dim);
        b.stack("double_blocks", self.double, |b, _| {
            for stream in ["img", "txt"] {
                b.linear(&format!("{stream}_mod.lin"), dim, 6 * dim);
                b.linear(&format!("{stream}_attn.qkv"), dim, 3 * dim);
                norms(b, &format!("{stream}_attn.norm"));
                b.linear(&format!("{stream}_attn.proj"), dim, dim);
                b.linear(&format!("{stream}_mlp.0"), dim, 4 * dim);
                b.linear(&format!("{stream}_mlp.2"), 4 * dim, dim);
            }
        });
        b.stack("single_blocks", self.single, |b, _| {
            b.linear("linear1", dim, 7 * dim);
            b.linear("linear2", 5 * dim, dim);
            norms(b, "norm");
            b.linear("modulation.lin", dim, 3 * dim);
        });
        b.linear("final_layer.linear", dim, PATCH);
        b.linear("final_layer.adaLN_modulation.1", dim, 2 * dim);
    }
}
