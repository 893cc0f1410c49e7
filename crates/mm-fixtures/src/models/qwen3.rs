//! Qwen3.

use super::transformers;
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Query heads that share one key and value head.
const SHARED: usize = 4;

pub(crate) struct Qwen3 {
    dim: usize,
    key_heads: Heads,
    inner: usize,
    layers: usize,
    vocabulary: usize,
}

impl Qwen3 {
    /// Qwen3-4B.
    pub(crate) fn new(sizes: Sizes) -> Qwen3 {
        let (layers, vocabulary) = (sizes.layers(36), sizes.vocabulary(151_936));
        let sizes = sizes.alone(2560);
        // Heads are wider than the model in this one, so they don't follow from `--dim` itself.
        let (dim, key_heads) = (sizes.dim().unwrap_or(sizes.other(2560)), sizes.beside().heads(8, 128));
        Qwen3 { dim, key_heads, inner: sizes.other(9728), layers, vocabulary }
    }

    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    pub(crate) fn component(&self, name: &str, dtype: Dtype) -> Component {
        transformers(name, self.config(), dtype, |b| self.tensors(b))
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.vocabulary - 2,
            "eos_token_id": self.vocabulary - 1,
            "head_dim": self.key_heads.size,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": 40960,
            "max_window_layers": self.layers,
            "model_type": "qwen3",
            "num_attention_heads": SHARED * self.key_heads.count,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_heads.count,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": 1_000_000,
            "sliding_window": null,
            "tie_word_embeddings": true,
            "transformers_version": "4.51.0",
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocabulary
        })
    }

    /// The output layer is tied to the embeddings and not stored.
    fn tensors(&self, b: &mut Builder) {
        let (dim, keys, queries) = (self.dim, self.key_heads.dim(), SHARED * self.key_heads.dim());
        b.at("model", |b| {
            b.embedding("embed_tokens", self.vocabulary, dim);
            b.stack("layers", self.layers, |b, _| {
                b.at("self_attn", |b| {
                    b.matrix("q_proj", dim, queries);
                    b.matrix("k_proj", dim, keys);
                    b.matrix("v_proj", dim, keys);
                    b.matrix("o_proj", queries, dim);
                    b.rms("q_norm", self.key_heads.size);
                    b.rms("k_norm", self.key_heads.size);
                });
                b.matrix("mlp.gate_proj", dim, self.inner);
                b.matrix("mlp.up_proj", dim, self.inner);
                b.matrix("mlp.down_proj", self.inner, dim);
                b.rms("input_layernorm", dim);
                b.rms("post_attention_layernorm", dim);
            });
            b.rms("norm", dim);
        });
    }
}
