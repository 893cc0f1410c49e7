//! Wan 2.1 and 2.2's transformer. candle has none: derived from Diffusers' `transformer_wan.py` in the manner of the
//! other families, but without scores. At a video's tens of thousands of tokens they would take hundreds of gigabytes;
//! whoever runs this model has attention that does not keep them.

use super::Workload;
use super::facts::Facts;
use super::kernels::{F32, Kernels, max};

/// Frames of a video where none are asked for.
pub(super) const FRAMES: u32 = 81;
/// Frames along a latent's time.
const TIME: f64 = 4.0;
/// Tokens of the prompt.
const TEXT: f64 = 512.0;
/// Latent channels of the VAE that makes 16 pixels one latent.
const SMALL_LATENTS: f64 = 48.0;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wan {
    dim: f64,
    inner: f64,
    /// Pixels along a latent's side.
    pixels: u32,
}

impl Wan {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        let forms = [
            ("blocks.0.self_attn.q.weight", "blocks.0.cross_attn.q.weight", "blocks.0.ffn.0.weight"),
            ("blocks.0.attn1.to_q.weight", "blocks.0.attn2.to_q.weight", "blocks.0.ffn.net.0.proj.weight"),
        ];
        forms.into_iter().find_map(|(attention, cross, mlp)| {
            let names = facts.around(attention)?;
            if !names.has(cross) || !names.has("patch_embedding.weight") {
                return None;
            }
            let channels = names.shape("patch_embedding.weight").filter(|shape| shape.len() == 5).map(|shape| shape[1]);
            let channels = channels.map(|channels| channels as f64).or_else(|| facts.number("in_channels"));
            let pixels = if channels == Some(SMALL_LATENTS) { 16 } else { 8 };
            Some(Self { dim: names.side(mlp, 1)?, inner: names.side(mlp, 0)?, pixels })
        })
    }

    /// Alive all along: a block's input (n) and angles in f64.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let frames = f64::from(if workload.frames == 0 { FRAMES } else { workload.frames });
        let tokens = (((frames - 1.0) / TIME).floor() + 1.0) * workload.patches(self.pixels);
        let batch = f64::from(workload.batch);
        let (n, text) = (batch * tokens * self.dim, batch * TEXT * self.dim);
        let (m, weight) = (n * (self.inner / self.dim), self.dim * self.inner);
        let angles = 2.0 * F32 * tokens * self.dim.min(128.0);

        // Modulated in f32 and cast back.
        let norm = k.bytes(n) + k.slow_norm(n, true) + 2.0 * k.wide(n);
        // Modulated; q, k and v, q and k before and after rotating, which is done in f64 for one of them; the result.
        let attention = k.bytes(8.0 * n) + (3.0 * 8.0 * n).max(k.linear(n, self.dim * self.dim, n));
        // Sums of both attentions, modulated; hidden without and with bias, or activated.
        let mlp = k.bytes(4.0 * n) + k.linear(n, weight, m).max(k.bytes(2.0 * m) + k.linear(m, weight, n));
        angles + k.bytes(3.0 * text) + max([norm, attention, mlp])
    }
}
