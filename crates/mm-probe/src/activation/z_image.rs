//! Z-Image. Source: this project's `mm-diffusion/src/z_image/{transformer,block,rope}.rs` and `qwen3.rs` (attention).

use super::Workload;
use super::facts::Facts;
use super::kernels::{F32, Kernels, max};

/// Tokens of the longest caption.
const TEXT: f64 = 512.0;
/// Sequences are filled up to a multiple of this.
const MULTIPLE: f64 = 32.0;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ZImage {
    dim: f64,
    head_dim: f64,
    inner: f64,
}

impl ZImage {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        // Lumina 2 is alike but for its modulation's place.
        let names = facts.around("layers.0.adaLN_modulation.0.weight")?;
        if !names.has("noise_refiner.0.feed_forward.w1.weight") || !names.has("cap_embedder.1.weight") {
            return None;
        }
        let (mlp, norms) = (
            "layers.0.feed_forward.w1.weight",
            ["layers.0.attention.norm_q.weight", "layers.0.attention.q_norm.weight"],
        );
        let dim = names.side(mlp, 1)?;
        let head_dim = names.side_of(&norms, 0).or_else(|| Some(dim / facts.number("n_heads")?));
        Some(Self { dim, inner: names.side(mlp, 0)?, head_dim: head_dim.unwrap_or(128.0) })
    }

    /// Alive all along: the refined image and caption, which were joined, and the input (2n); tables of angles.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let batch = workload.guided_batch();
        let tokens = (workload.patches(8) / MULTIPLE).ceil() * MULTIPLE + TEXT;
        let n = batch * tokens * self.dim;
        let m = n * (self.inner / self.dim);
        let scores = batch * (self.dim / self.head_dim) * tokens * tokens;
        // Cosines and sines of the parts and of both joined.
        let tables = F32 * 2.0 * batch * tokens * self.head_dim;

        // Scaled (n), q and k before and after rotating (4n), v (n). Captions of different length are masked.
        let attention = k.bytes(8.0 * n) + f32_attention(k, n, n, scores, workload.guided);
        // The key is rotated in f32: the cast or a contiguous copy, and the result.
        let rotate = k.bytes(7.0 * n) + 2.0 * k.wide(n) + k.bytes(n);
        // Two results of the attention, their sum, scaled (4n); gate, activated, up, product (4m).
        let weight = self.dim * self.inner;
        let mlp = k.bytes(6.0 * n)
            + max([k.bytes(2.0 * m) + k.matmul(n, weight, m), k.bytes(4.0 * m) + k.matmul(m, weight, n)]);
        tables + max([attention, rotate, mlp])
    }
}

/// This project's attention, its weights in f32: scores, cast and scaled in one statement; masked; the softmax, cast
/// back; the result and a copy of it with tokens first.
pub(super) fn f32_attention(k: &Kernels, q: f64, kv: f64, scores: f64, masked: bool) -> f64 {
    let wide = k.wide(scores);
    let back = if k.cast(1.0) > 0.0 { k.bytes(scores) } else { 0.0 };
    let scale = k.matmul(q, kv, scores).max(k.bytes(scores) + k.cast(scores) + wide);
    let kept = if masked { 2.0 * wide } else { wide };
    let softmax = kept + wide + back;
    let weights = k.bytes(scores) + k.matmul(scores, kv, q).max(k.bytes(2.0 * q));
    max([scale, softmax, kept + weights])
}
