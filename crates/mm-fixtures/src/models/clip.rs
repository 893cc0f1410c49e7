//! The text encoders of CLIP.

use super::{Part, tokenizers, transformers};
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

const POSITIONS: usize = 77;

pub(crate) struct Clip {
    heads: Heads,
    layers: usize,
    vocabulary: usize,
    activation: &'static str,
    /// Whether the pooled output is projected.
    projection: bool,
}

impl Clip {
    /// CLIP ViT-L/14.
    pub(crate) fn large(sizes: Sizes, projection: bool) -> Clip {
        let sizes = sizes.beside();
        let (heads, vocabulary) = (sizes.heads(12, 64), sizes.vocabulary(49408));
        Clip { heads, layers: 12, vocabulary, activation: "quick_gelu", projection }
    }

    /// OpenCLIP ViT-bigG/14.
    pub(crate) fn big(sizes: Sizes) -> Clip {
        let sizes = sizes.beside();
        let (heads, vocabulary) = (sizes.heads(20, 64), sizes.vocabulary(49408));
        Clip { heads, layers: 32, vocabulary, activation: "gelu", projection: true }
    }

    /// OpenCLIP ViT-H/14 without its last layer, which no pipeline runs.
    pub(crate) fn huge(sizes: Sizes) -> Clip {
        let sizes = sizes.beside();
        let (heads, vocabulary) = (sizes.heads(16, 64), sizes.vocabulary(49408));
        Clip { heads, layers: 23, vocabulary, activation: "gelu", projection: false }
    }

    /// OpenCLIP ViT-bigG/14 without its projection.
    pub(crate) fn giant(sizes: Sizes) -> Clip {
        Clip { projection: false, ..Clip::big(sizes) }
    }

    pub(crate) fn dim(&self) -> usize {
        self.heads.dim()
    }

    pub(crate) fn tokenizer(&self, name: &'static str) -> Part {
        tokenizers::clip(name, self.vocabulary)
    }

    pub(crate) fn component(&self, name: &str, dtype: Dtype) -> Component {
        transformers(name, self.config(), dtype, |b| self.tensors(b))
    }

    pub(crate) fn config(&self) -> Value {
        let class = if self.projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
        json!({
            "architectures": [class],
            "attention_dropout": 0.0,
            "bos_token_id": self.vocabulary - 2,
            "dropout": 0.0,
            "eos_token_id": self.vocabulary - 1,
            "hidden_act": self.activation,
            "hidden_size": self.dim(),
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 4 * self.dim(),
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": POSITIONS,
            "model_type": "clip_text_model",
            "num_attention_heads": self.heads.count,
            "num_hidden_layers": self.layers,
            "pad_token_id": 1,
            "projection_dim": self.dim(),
            "transformers_version": "4.43.3",
            "vocab_size": self.vocabulary
        })
    }

    pub(crate) fn tensors(&self, b: &mut Builder) {
        let dim = self.dim();
        b.at("text_model", |b| {
            b.embedding("embeddings.token_embedding", self.vocabulary, dim);
            b.embedding("embeddings.position_embedding", POSITIONS, dim);
            b.stack("encoder.layers", self.layers, |b, _| {
                for name in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                    b.at("self_attn", |b| b.linear(name, dim, dim));
                }
                b.norm("layer_norm1", dim);
                b.linear("mlp.fc1", dim, 4 * dim);
                b.linear("mlp.fc2", 4 * dim, dim);
                b.norm("layer_norm2", dim);
            });
            b.norm("final_layer_norm", dim);
        });
        if self.projection {
            b.matrix("text_projection", dim, dim);
        }
    }

    /// The names of open_clip, as in single files of 2.1 and SDXL.
    pub(crate) fn open_clip(&self, b: &mut Builder) {
        let dim = self.dim();
        b.param("positional_embedding", &[POSITIONS, dim]);
        if self.projection {
            b.param("text_projection", &[dim, dim]);
        }
        b.stray("logit_scale", &[], None);
        b.embedding("token_embedding", self.vocabulary, dim);
        b.stack("transformer.resblocks", self.layers, |b, _| {
            b.norm("ln_1", dim);
            b.param("attn.in_proj_weight", &[3 * dim, dim]);
            b.param("attn.in_proj_bias", &[3 * dim]);
            b.linear("attn.out_proj", dim, dim);
            b.norm("ln_2", dim);
            b.linear("mlp.c_fc", dim, 4 * dim);
            b.linear("mlp.c_proj", 4 * dim, dim);
        });
        b.norm("ln_final", dim);
    }

    /// What older versions of transformers saved with the embeddings.
    pub(crate) fn position_ids(b: &mut Builder) {
        b.stray("text_model.embeddings.position_ids", &[1, POSITIONS], Some(Dtype::I64));
    }
}
