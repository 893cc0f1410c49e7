//! Stable Diffusion 3 and 3.5: MMDiT. Source: candle-transformers 0.11.1 `models/mmdit/{model,blocks,projections}.rs`.

use super::Workload;
use super::facts::Facts;
use super::kernels::{Kernels, max};

/// 77 tokens of CLIP and 256 of T5.
const TEXT: f64 = 333.0;

/// Values of a head, in every checkpoint.
const HEAD: f64 = 64.0;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sd3 {
    dim: f64,
    head_dim: f64,
    inner: f64,
    /// Blocks have a second attention over the image alone (3.5 medium).
    dual: bool,
}

impl Sd3 {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        if let Some(names) = facts.around("joint_blocks.0.x_block.attn.qkv.weight") {
            let mlp = "joint_blocks.0.x_block.mlp.fc1.weight";
            return Some(Self {
                dim: names.side(mlp, 1)?,
                inner: names.side(mlp, 0)?,
                head_dim: names.side("joint_blocks.0.x_block.attn.ln_q.weight", 0).unwrap_or(HEAD),
                dual: names.has("joint_blocks.0.x_block.attn2.qkv.weight"),
            });
        }
        let names = facts.around("transformer_blocks.0.attn.add_q_proj.weight")?;
        if !names.has("pos_embed.proj.weight") {
            return None;
        }
        let (mlp, head_dim) = ("transformer_blocks.0.ff.net.0.proj.weight", "transformer_blocks.0.attn.norm_q.weight");
        Some(Self {
            dim: names.side(mlp, 1)?,
            inner: names.side(mlp, 0)?,
            head_dim: names.side(head_dim, 0).or_else(|| facts.number("attention_head_dim")).unwrap_or(HEAD),
            dual: names.has("transformer_blocks.0.attn2.to_q.weight"),
        })
    }

    /// Alive all along: what went into the first block and into this one (2n); of each stream q and k, and v inside the
    /// product it was cut from (5n), with a second attention those of the image again.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let (batch, patches) = (workload.guided_batch(), workload.patches(8));
        let tokens = patches + TEXT;
        let heads = self.dim / self.head_dim;
        let (n, image, text) = (batch * tokens * self.dim, batch * patches * self.dim, batch * TEXT * self.dim);
        let base = 7.0 * n + if self.dual { 5.0 * image } else { 0.0 };

        // The image's q, k and v: normed, modulated, the product with its bias; q and k before and after their norm.
        let project = k.bytes(2.0 * n + 5.0 * text + 2.0 * image)
            + max([
                k.linear(image, 3.0 * self.dim * self.dim, 3.0 * image),
                k.bytes(7.0 * image),
                k.bytes(5.0 * image) + k.slow_norm(image, true),
            ]);
        // q, k and v joined, then with heads first (6n).
        let joint = k.bytes(base + 6.0 * n) + k.attention(n, n, batch * heads * tokens * tokens);
        // The joint attention's result; q, k and v with heads first.
        let own = k.bytes(base + n + 3.0 * image) + k.attention(image, image, batch * heads * patches * patches);
        // The results; the text's block done; the image's attention, its sum (twice if dual), norm and modulated.
        let m = image * (self.inner / self.dim);
        let weight = self.dim * self.inner;
        let extra = if self.dual { 3.0 * image } else { 0.0 };
        let mlp = k.bytes(base + n + text + 4.0 * image + extra)
            + k.linear(image, weight, m).max(k.bytes(2.0 * m) + k.linear(m, weight, image));
        // Modulated beside a norm whose weights are a tensor of ones as large as its input.
        let norm = k.bytes(base + n + text + 3.0 * image + extra) + k.slow_norm(image, true);
        max([project, joint, if self.dual { own } else { 0.0 }, mlp, norm])
    }
}
