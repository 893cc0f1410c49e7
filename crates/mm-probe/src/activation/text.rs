//! Text encoders. They depend on the number of tokens, which their pipelines fix, not on pixels.

use super::Workload;
use super::facts::Facts;
use super::kernels::{F32, Kernels, max};
use super::z_image::f32_attention;

/// T5 for FLUX; SD3 uses half as many, but nothing in the weights tells which. UMT5 for Wan.
const T5_TOKENS: f64 = 512.0;
const CLIP_TOKENS: f64 = 77.0;
/// The longest prompt of Z-Image.
const QWEN3_TOKENS: f64 = 512.0;

/// T5's encoder and UMT5's. Source: candle-transformers 0.11.1 `models/t5.rs`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct T5 {
    dim: f64,
    /// Width of all heads together.
    heads_dim: f64,
    heads: f64,
    inner: f64,
    gated: bool,
    /// Each block has positions of its own (UMT5).
    positions_in_each: bool,
}

impl T5 {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        let forms = [
            (
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                [
                    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                    "encoder.block.0.layer.1.DenseReluDense.wi.weight",
                ],
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            (
                "enc.blk.0.attn_q.weight",
                ["enc.blk.0.ffn_gate.weight", "enc.blk.0.ffn_up.weight"],
                "enc.blk.0.attn_rel_b.weight",
                "enc.blk.1.attn_rel_b.weight",
            ),
            // UMT5 as Wan publishes it.
            (
                "blocks.0.attn.q.weight",
                ["blocks.0.ffn.gate.0.weight", "blocks.0.ffn.fc1.weight"],
                "blocks.0.pos_embedding.embedding.weight",
                "blocks.1.pos_embedding.embedding.weight",
            ),
        ];
        forms.into_iter().find_map(|(q, mlp, positions, more)| {
            let names = facts.around(q)?;
            let heads_dim = names.side(q, 0)?;
            let heads = names.side(positions, 1).or_else(|| facts.number("num_heads"));
            Some(Self {
                dim: names.side(q, 1)?,
                heads_dim,
                heads: heads.unwrap_or((heads_dim / 64.0).max(1.0)),
                inner: names.side_of(&mlp, 0)?,
                gated: names.has(mlp[0]),
                positions_in_each: names.has(more),
            })
        })
    }

    pub(super) fn name(&self) -> &'static str {
        if self.positions_in_each { "umt5" } else { "t5" }
    }

    /// Alive all along: a block's input and its norm (2n), the positions' bias for all heads.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let (batch, tokens) = (f64::from(workload.batch), T5_TOKENS);
        let (n, q, m) = (batch * tokens * self.dim, batch * tokens * self.heads_dim, batch * tokens * self.inner);
        let (bias, scores) = (self.heads * tokens * tokens, batch * self.heads * tokens * tokens);
        let weight = self.dim * self.inner;

        // q, k and v, each again with heads first; scores without and with bias, softmax; the result, that with tokens
        // first, and projected.
        let attention = k.bytes(2.0 * n + 6.0 * q + bias)
            + max([
                k.matmul(q, q, scores),
                k.bytes(3.0 * scores) + k.matmul(scores, q, q),
                k.bytes(3.0 * scores + 2.0 * q) + k.matmul(q, self.heads_dim * self.dim, n),
            ]);
        // In the first block the bias is looked up by distances: lists and a tensor of them in u32.
        let positions = k.bytes(2.0 * n + 6.0 * q + scores + bias) + 2.0 * F32 * tokens * tokens;
        let kept = if self.gated { 3.0 } else { 2.0 };
        let mlp = k.bytes(2.0 * n + bias)
            + max([k.bytes((kept - 1.0) * m) + k.matmul(n, weight, m), k.bytes(kept * m) + k.matmul(m, weight, n)]);
        max([attention, positions, mlp])
    }
}

/// Qwen3, all layers but the last. Source: this project's `mm-diffusion/src/qwen3.rs`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Qwen3 {
    dim: f64,
    heads_dim: f64,
    kv_dim: f64,
    head_dim: f64,
    inner: f64,
}

impl Qwen3 {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        let forms = [
            [
                "layers.0.self_attn.q_norm.weight",
                "layers.0.self_attn.q_proj.weight",
                "layers.0.self_attn.k_proj.weight",
                "layers.0.mlp.gate_proj.weight",
                "layers.0.pre_feedforward_layernorm.weight",
            ],
            [
                "blk.0.attn_q_norm.weight",
                "blk.0.attn_q.weight",
                "blk.0.attn_k.weight",
                "blk.0.ffn_gate.weight",
                "blk.0.post_ffw_norm.weight",
            ],
        ];
        forms.into_iter().find_map(|[norm, q, k, gate, gemma]| {
            let names = facts.around(norm)?;
            if names.has(gemma) || facts.class_has("Gemma") {
                return None;
            }
            Some(Self {
                dim: names.side(gate, 1)?,
                heads_dim: names.side(q, 0)?,
                kv_dim: names.side(k, 0)?,
                head_dim: names.side(norm, 0)?,
                inner: names.side(gate, 0)?,
            })
        })
    }

    /// Alive all along: a layer's input (n), tables of angles and the causal mask.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let (batch, tokens) = (f64::from(workload.batch), QWEN3_TOKENS);
        let rows = batch * tokens;
        let (n, q, kv, m) = (rows * self.dim, rows * self.heads_dim, rows * self.kv_dim, rows * self.inner);
        let scores = batch * (self.heads_dim / self.head_dim) * tokens * tokens;
        let tables = F32 * tokens * (tokens + self.head_dim);
        let weight = self.dim * self.inner;

        // The norm; q and k normed, then rotated; v; k and v repeated for all heads.
        let attention = k.bytes(2.0 * n + 4.0 * q + 2.0 * kv) + f32_attention(k, q, q, scores, true);
        // The attention's sum and its norm; gate, activated, up, product.
        let mlp = k.bytes(3.0 * n)
            + max([k.bytes(2.0 * m) + k.matmul(n, weight, m), k.bytes(4.0 * m), k.bytes(m) + k.matmul(m, weight, n)]);
        tables + attention.max(mlp)
    }
}

/// CLIP's text model. Source: candle-transformers 0.11.1 `models/stable_diffusion/clip.rs`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clip {
    dim: f64,
    heads: f64,
    inner: f64,
}

impl Clip {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        let forms = [
            ("text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.encoder.layers.0.mlp.fc1.weight"),
            ("transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight"),
        ];
        forms.into_iter().find_map(|(attention, mlp)| {
            let names = facts.around(attention)?;
            let dim = names.side(mlp, 1)?;
            let heads = facts.number("num_attention_heads").unwrap_or((dim / 64.0).max(1.0));
            Some(Self { dim, heads, inner: names.side(mlp, 0)? })
        })
    }

    /// Alive all along: the embeddings, a layer's input and its norm (3n).
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let (batch, tokens) = (f64::from(workload.batch), CLIP_TOKENS);
        let (n, m) = (batch * tokens * self.dim, batch * tokens * self.inner);
        let scores = batch * self.heads * tokens * tokens;
        let weight = self.dim * self.inner;

        // q scaled, then q, k and v in f32; scores, masked, and in the softmax centred, exponentials, result.
        let attention = k.bytes(4.0 * n) + 3.0 * k.wide(n) + 5.0 * k.wide(scores) + F32 * tokens * tokens;
        // The attention's sum; hidden, activated, and between them, where it is the quick GELU, two more.
        let mlp = k.bytes(4.0 * n)
            + max([k.linear(n, weight, m), k.bytes(4.0 * m), k.bytes(2.0 * m) + k.linear(m, weight, n)]);
        attention.max(mlp)
    }
}
