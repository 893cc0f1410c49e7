//! The encoders of T5 and UMT5.

use super::transformers;
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

const BUCKETS: usize = 32;

/// Names of transformers', and of llama.cpp.
const LLAMA_CPP: [(&str, &str); 10] = [
    ("shared.", "token_embd."),
    ("encoder.final_layer_norm", "enc.output_norm"),
    ("encoder.block", "enc.blk"),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("layer.0.SelfAttention.", "attn_"),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.1.layer_norm", "ffn_norm"),
    ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"),
    ("layer.1.DenseReluDense.wo", "ffn_down"),
];

pub(crate) struct T5 {
    dim: usize,
    heads: Heads,
    inner: usize,
    layers: usize,
    vocabulary: usize,
    /// UMT5: every block has position biases of its own.
    umt5: bool,
}

impl T5 {
    /// T5 v1.1 XXL.
    pub(crate) fn xxl(sizes: Sizes) -> T5 {
        T5::new(sizes, 32128, false)
    }

    pub(crate) fn umt5_xxl(sizes: Sizes) -> T5 {
        T5::new(sizes, 256_384, true)
    }

    fn new(sizes: Sizes, vocabulary: usize, umt5: bool) -> T5 {
        let sizes = sizes.alone(4096);
        let heads = sizes.heads(64, 64);
        let (inner, layers, vocabulary) = (sizes.other(10240), sizes.layers(24), sizes.vocabulary(vocabulary));
        T5 { dim: heads.dim(), heads, inner, layers, vocabulary, umt5 }
    }

    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    pub(crate) fn component(&self, name: &str, dtype: Dtype) -> Component {
        transformers(name, self.config(), dtype, |b| self.tensors(b))
    }

    /// In a GGUF file, as llama.cpp names its tensors.
    pub(crate) fn gguf(&self, name: &str) -> Component {
        let mut component = Component { gguf: true, ..self.component(name, Dtype::BF16) };
        for tensor in &mut component.tensors {
            tensor.name = LLAMA_CPP
                .iter()
                .fold(std::mem::take(&mut tensor.name), |name, (ours, theirs)| name.replace(ours, theirs));
            if let Some((stack, _)) = &mut tensor.block {
                *stack = "enc.blk".to_owned();
            }
        }
        component
    }

    pub(crate) fn config(&self) -> Value {
        let (class, kind) = if self.umt5 { ("UMT5EncoderModel", "umt5") } else { ("T5EncoderModel", "t5") };
        json!({
            "architectures": [class],
            "classifier_dropout": 0.0,
            "d_ff": self.inner,
            "d_kv": self.heads.size,
            "d_model": self.dim,
            "decoder_start_token_id": 0,
            "dense_act_fn": "gelu_new",
            "dropout_rate": 0.1,
            "eos_token_id": 1,
            "feed_forward_proj": "gated-gelu",
            "initializer_factor": 1.0,
            "is_encoder_decoder": true,
            "is_gated_act": true,
            "layer_norm_epsilon": 1e-6,
            "model_type": kind,
            "num_decoder_layers": self.layers,
            "num_heads": self.heads.count,
            "num_layers": self.layers,
            "output_past": true,
            "pad_token_id": 0,
            "relative_attention_max_distance": 128,
            "relative_attention_num_buckets": BUCKETS,
            "tie_word_embeddings": false,
            "transformers_version": "4.43.3",
            "use_cache": true,
            "vocab_size": self.vocabulary
        })
    }

    pub(crate) fn tensors(&self, b: &mut Builder) {
        let (dim, attention) = (self.dim, self.heads.dim());
        b.embedding("shared", self.vocabulary, dim);
        b.stack("encoder.block", self.layers, |b, index| {
            b.at("layer.0", |b| {
                for name in ["q", "k", "v"] {
                    b.at("SelfAttention", |b| b.matrix(name, dim, attention));
                }
                b.matrix("SelfAttention.o", attention, dim);
                if self.umt5 || index == 0 {
                    b.embedding("SelfAttention.relative_attention_bias", BUCKETS, self.heads.count);
                }
                b.rms("layer_norm", dim);
            });
            b.at("layer.1", |b| {
                b.matrix("DenseReluDense.wi_0", dim, self.inner);
                b.matrix("DenseReluDense.wi_1", dim, self.inner);
                b.matrix("DenseReluDense.wo", self.inner, dim);
                b.rms("layer_norm", dim);
            });
        });
        b.rms("encoder.final_layer_norm", dim);
    }

    /// The copy of the embeddings that single files hold; the model ties them to `shared`.
    pub(crate) fn tied_embeddings(&self, b: &mut Builder) {
        b.stray("encoder.embed_tokens.weight", &[self.vocabulary, self.dim], None);
    }
}
