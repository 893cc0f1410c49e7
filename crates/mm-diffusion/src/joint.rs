//! What image and text each have in a block whose attention is over both.

use crate::{
    layers::{attention, layer_norm},
    projection::Projection,
};
use candle_core::{Module, Result, Tensor};
use candle_nn::{RmsNorm, VarBuilder};
use mm_candle::{Linear, linear};

/// Of all norms, in every checkpoint.
const NORM_EPS: f64 = 1e-6;

/// Names of one side.
pub(crate) struct SideNames {
    pub(crate) modulation: &'static str,
    pub(crate) qkv: &'static [&'static str],
    pub(crate) norms: (&'static str, &'static str),
    pub(crate) out: &'static str,
    pub(crate) feed_forward: (&'static str, &'static str),
}

/// The image, in Diffusers' names.
pub(crate) const IMAGE: SideNames = SideNames {
    modulation: "norm1.linear",
    qkv: &["attn.to_q", "attn.to_k", "attn.to_v"],
    norms: ("attn.norm_q.weight", "attn.norm_k.weight"),
    out: "attn.to_out.0",
    feed_forward: ("ff.net.0.proj", "ff.net.2"),
};

/// The text, in Diffusers' names.
pub(crate) const TEXT: SideNames = SideNames {
    modulation: "norm1_context.linear",
    qkv: &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    norms: ("attn.norm_added_q.weight", "attn.norm_added_k.weight"),
    out: "attn.to_add_out",
    feed_forward: ("ff_context.net.0.proj", "ff_context.net.2"),
};

/// How queries and keys are normalized. The two round differently, and each is what candle's own forward of a family does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    /// They aren't.
    None,
    /// By candle's kernel of several operations.
    Composed,
    /// By its kernel of one.
    Fused,
}

/// Cuts queries, keys and values into heads.
pub(crate) struct Heads {
    count: usize,
    norms: Option<(RmsNorm, RmsNorm)>,
    fused: bool,
}

impl Heads {
    /// `width` of each.
    pub(crate) fn new(
        vb: &VarBuilder<'_>,
        (q, k): (&str, &str),
        count: usize,
        width: usize,
        norm: QkNorm,
    ) -> Result<Self> {
        let load = |name: &str| Ok::<_, candle_core::Error>(RmsNorm::new(vb.get(width, name)?, NORM_EPS));
        let norms = match norm {
            QkNorm::None => None,
            QkNorm::Composed | QkNorm::Fused => Some((load(q)?, load(k)?)),
        };
        Ok(Self { count, norms, fused: norm == QkNorm::Fused })
    }

    /// `[batch, tokens, width]` each to `[batch, heads, tokens, head]`, queries and keys normalized.
    pub(crate) fn split(&self, [q, k, v]: [Tensor; 3]) -> Result<[Tensor; 3]> {
        let split = |x: Tensor, norm: Option<&RmsNorm>| {
            let (batch, tokens, _) = x.dims3()?;
            let x = x.reshape((batch, tokens, self.count, ()))?;
            match norm {
                None => x.transpose(1, 2),
                Some(norm) if self.fused => norm.forward(&x)?.transpose(1, 2),
                Some(norm) => norm.forward_diff(&x.transpose(1, 2)?),
            }
        };
        let (q_norm, k_norm) = self.norms.as_ref().map(|(q, k)| (q, k)).unzip();
        Ok([split(q, q_norm)?, split(k, k_norm)?, split(v, None)?])
    }
}

/// Attention over text, then image: `[batch, tokens, width]` of each. `turn` gives queries and keys their positions.
pub(crate) fn attend(
    text: &[Tensor; 3],
    image: &[Tensor; 3],
    turn: impl Fn(Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let both = |i: usize| Tensor::cat(&[&text[i], &image[i]], 2);
    let attended = attention(&turn(both(0)?)?, &turn(both(1)?)?, &both(2)?.contiguous()?, None)?;
    let (tokens, all) = (text[0].dim(2)?, attended.dim(1)?);
    Ok((attended.narrow(1, 0, tokens)?, attended.narrow(1, tokens, all - tokens)?))
}

/// Image or text within a block.
pub(crate) struct Side {
    pub(crate) modulation: Linear,
    qkv: Projection,
    heads: Heads,
    out: Linear,
    feed_forward: (Linear, Linear),
}

impl Side {
    /// `parts` is into how many the modulation is cut.
    pub(crate) fn new(
        vb: &VarBuilder<'_>,
        names: &SideNames,
        (heads, head): (usize, usize),
        norm: QkNorm,
        parts: usize,
    ) -> Result<Self> {
        let width = heads * head;
        let (up, down) = names.feed_forward;
        Ok(Self {
            modulation: linear(width, parts * width, vb.pp(names.modulation))?,
            qkv: Projection::load(vb, names.qkv, width, &[width; 3])?,
            heads: Heads::new(vb, names.norms, heads, head, norm)?,
            out: linear(width, width, vb.pp(names.out))?,
            feed_forward: (linear(width, 4 * width, vb.pp(up))?, linear(4 * width, width, vb.pp(down))?),
        })
    }

    /// Queries, keys and values by heads.
    pub(crate) fn qkv(&self, x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<[Tensor; 3]> {
        self.heads.split(self.qkv.forward(&modulate(x, shift, scale)?)?)
    }

    /// Adds what was attended to.
    pub(crate) fn add(&self, x: &Tensor, attended: &Tensor, gate: &Tensor) -> Result<Tensor> {
        x + gate.broadcast_mul(&self.out.forward(attended)?)?
    }

    /// Adds the feed-forward.
    pub(crate) fn feed(&self, x: &Tensor, [shift, scale, gate]: [&Tensor; 3]) -> Result<Tensor> {
        let (up, down) = &self.feed_forward;
        let h = down.forward(&up.forward(&modulate(x, shift, scale)?)?.gelu()?)?;
        x + gate.broadcast_mul(&h)?
    }
}

/// Normalized, then scaled and shifted.
pub(crate) fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    layer_norm(x, NORM_EPS)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}
