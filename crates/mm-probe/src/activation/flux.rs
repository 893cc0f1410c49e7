//! FLUX.1. Source: candle-transformers 0.11.1 `models/flux/model.rs`.

use super::Workload;
use super::facts::Facts;
use super::kernels::{Kernels, max};

/// Tokens of the T5 prompt.
const TEXT: f64 = 512.0;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Flux {
    dim: f64,
    head_dim: f64,
    /// Width of the feed-forward.
    inner: f64,
}

impl Flux {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        Self::original(facts).or_else(|| Self::diffusers(facts))
    }

    fn original(facts: &Facts<'_>) -> Option<Self> {
        // Relatives of other sizes in a block (Chroma, FLUX.2) have no modulation of their own in it.
        let names = facts.around("double_blocks.0.img_mod.lin.weight")?;
        let head_dim = names.side("double_blocks.0.img_attn.norm.query_norm.scale", 0);
        let (inner, dim) =
            (names.side("double_blocks.0.img_mlp.0.weight", 0)?, names.side("double_blocks.0.img_mlp.0.weight", 1)?);
        names.has("double_blocks.0.img_attn.qkv.weight").then_some(Self {
            dim,
            inner,
            head_dim: head_dim.unwrap_or(128.0),
        })
    }

    fn diffusers(facts: &Facts<'_>) -> Option<Self> {
        let names = facts.around("single_transformer_blocks.0.proj_mlp.weight")?;
        if !names.has("transformer_blocks.0.norm1.linear.weight")
            || !names.has("transformer_blocks.0.attn.add_q_proj.weight")
        {
            return None;
        }
        let head_dim = names.side("transformer_blocks.0.attn.norm_q.weight", 0);
        Some(Self {
            dim: names.side("single_transformer_blocks.0.proj_mlp.weight", 1)?,
            inner: names.side("single_transformer_blocks.0.proj_mlp.weight", 0)?,
            head_dim: head_dim.or_else(|| facts.number("attention_head_dim")).unwrap_or(128.0),
        })
    }

    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let (batch, image) = (f64::from(workload.batch), workload.patches(8));
        let tokens = image + TEXT;
        let scores = batch * (self.dim / self.head_dim) * tokens * tokens;
        // A rotation of 2×2 for each pair of a head's values.
        let positions = k.bytes(batch * tokens * 2.0 * self.head_dim);
        let n = batch * tokens * self.dim;
        positions + self.double(batch * image * self.dim, n, scores, k).max(self.single(n, scores, k))
    }

    /// Alive all along: both inputs, normed and modulated (3n); q, k and v joined (3n).
    fn double(&self, image: f64, n: f64, scores: f64, k: &Kernels) -> f64 {
        let (m, text) = (self.inner / self.dim, n - image);
        // The key is rotated (three temporaries) beside the rotated query.
        let rotate = k.bytes(10.0 * n);
        // Both rotated, v made contiguous.
        let attention = k.bytes(9.0 * n) + k.attention(n, n, scores);
        // The attention's result; of the image its sum, its norm, modulated.
        let image_mlp = k.bytes(7.0 * n + 3.0 * image) + self.mlp(image, m * image, k);
        let text_mlp = k.bytes(7.0 * n + 2.0 * image + 3.0 * text) + self.mlp(text, m * text, k);
        max([rotate, attention, image_mlp, text_mlp])
    }

    fn mlp(&self, n: f64, m: f64, k: &Kernels) -> f64 {
        let weight = self.dim * self.inner;
        k.linear(n, weight, m).max(k.bytes(2.0 * m) + k.linear(m, weight, n))
    }

    /// Alive all along: text and image, which were joined, and the input (2n); modulated (n); the first product (3n + m)
    /// and, copied out of it, q, k and v (3n), of which q and k are normed (2n).
    fn single(&self, n: f64, scores: f64, k: &Kernels) -> f64 {
        let m = n * (self.inner / self.dim);
        let first = k.bytes(3.0 * n) + k.linear(n, self.dim * (3.0 * self.dim + self.inner), 3.0 * n + m);
        // Both rotated, v made contiguous.
        let attention = k.bytes(14.0 * n + m) + k.attention(n, n, scores);
        // The attention's result, the activated rest, both joined.
        let second = k.bytes(13.0 * n + 3.0 * m) + k.linear(n + m, self.dim * (self.dim + self.inner), n);
        max([first, attention, second])
    }
}
