//! The two kinds of blocks: image and text apart with attention over both, and both as one sequence.

use super::{
    config::Config,
    weights::{Names, Projection, modulation},
};
use crate::{
    layers::{attention, layer_norm},
    rope::Table,
};
use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, VarBuilder, linear};

/// Of all norms, in every checkpoint.
pub(crate) const NORM_EPS: f64 = 1e-6;

/// What all blocks share in a pass.
pub(crate) struct Context<'a> {
    pub(crate) rope: &'a Table,
    /// Timestep, guidance and pooled prompt, `[1, width]`, activated.
    pub(crate) conditioning: &'a Tensor,
}

/// Names of one side of a double block.
struct SideNames {
    modulation: &'static str,
    qkv: &'static [&'static str],
    norms: (&'static str, &'static str),
    out: &'static str,
    feed_forward: (&'static str, &'static str),
}

const IMAGE: SideNames = SideNames {
    modulation: "norm1.linear",
    qkv: &["attn.to_q", "attn.to_k", "attn.to_v"],
    norms: ("attn.norm_q.weight", "attn.norm_k.weight"),
    out: "attn.to_out.0",
    feed_forward: ("ff.net.0.proj", "ff.net.2"),
};

const TEXT: SideNames = SideNames {
    modulation: "norm1_context.linear",
    qkv: &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    norms: ("attn.norm_added_q.weight", "attn.norm_added_k.weight"),
    out: "attn.to_add_out",
    feed_forward: ("ff_context.net.0.proj", "ff_context.net.2"),
};

const ORIGINAL_IMAGE: SideNames = SideNames {
    modulation: "img_mod.lin",
    qkv: &["img_attn.qkv"],
    norms: ("img_attn.norm.query_norm.scale", "img_attn.norm.key_norm.scale"),
    out: "img_attn.proj",
    feed_forward: ("img_mlp.0", "img_mlp.2"),
};

const ORIGINAL_TEXT: SideNames = SideNames {
    modulation: "txt_mod.lin",
    qkv: &["txt_attn.qkv"],
    norms: ("txt_attn.norm.query_norm.scale", "txt_attn.norm.key_norm.scale"),
    out: "txt_attn.proj",
    feed_forward: ("txt_mlp.0", "txt_mlp.2"),
};

/// Norms of queries and keys.
struct Norms {
    q: RmsNorm,
    k: RmsNorm,
    heads: usize,
}

impl Norms {
    fn new(config: &Config, names: (&str, &str), vb: &VarBuilder<'_>) -> Result<Self> {
        let norm =
            |name: &str| Ok::<_, candle_core::Error>(RmsNorm::new(vb.get(config.attention_head_dim, name)?, NORM_EPS));
        Ok(Self { q: norm(names.0)?, k: norm(names.1)?, heads: config.num_attention_heads })
    }

    /// `[batch, tokens, width]` each to `[batch, heads, tokens, head]`, queries and keys normalized.
    fn split(&self, [q, k, v]: [Tensor; 3]) -> Result<[Tensor; 3]> {
        let split = |x: Tensor| {
            let (batch, tokens, _) = x.dims3()?;
            x.reshape((batch, tokens, self.heads, ()))?.transpose(1, 2)
        };
        // One kernel whatever the layout: the fused one rounds differently.
        Ok([self.q.forward_diff(&split(q)?)?, self.k.forward_diff(&split(k)?)?, split(v)?])
    }
}

/// Image or text within a double block.
struct Side {
    modulation: Linear,
    qkv: Projection,
    norms: Norms,
    out: Linear,
    feed_forward: (Linear, Linear),
}

impl Side {
    fn new(config: &Config, names: &SideNames, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = config.width();
        let (up, down) = names.feed_forward;
        Ok(Self {
            modulation: linear(width, 6 * width, vb.pp(names.modulation))?,
            qkv: Projection::load(vb, names.qkv, width, &[width; 3])?,
            norms: Norms::new(config, names.norms, vb)?,
            out: linear(width, width, vb.pp(names.out))?,
            feed_forward: (linear(width, 4 * width, vb.pp(up))?, linear(4 * width, width, vb.pp(down))?),
        })
    }

    fn qkv(&self, x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<[Tensor; 3]> {
        self.norms.split(self.qkv.forward(&modulate(x, shift, scale)?)?)
    }

    /// What follows attention.
    fn finish(&self, x: &Tensor, attended: &Tensor, rest: [&Tensor; 4]) -> Result<Tensor> {
        let [gate_attention, shift, scale, gate] = rest;
        let x = (x + gate_attention.broadcast_mul(&self.out.forward(attended)?)?)?;
        let (up, down) = &self.feed_forward;
        let h = down.forward(&up.forward(&modulate(&x, shift, scale)?)?.gelu()?)?;
        &x + gate.broadcast_mul(&h)?
    }
}

/// A block of the first stack.
pub(crate) struct DoubleBlock {
    image: Side,
    text: Side,
}

impl DoubleBlock {
    pub(crate) fn new(config: &Config, names: Names, vb: &VarBuilder<'_>) -> Result<Self> {
        let (image, text) = names.pick((&IMAGE, &TEXT), (&ORIGINAL_IMAGE, &ORIGINAL_TEXT));
        Ok(Self { image: Side::new(config, image, vb)?, text: Side::new(config, text, vb)? })
    }

    pub(crate) fn forward(&self, image: &Tensor, text: &Tensor, context: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let [i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2] =
            &modulation(&self.image.modulation, context.conditioning)?;
        let [t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2] =
            &modulation(&self.text.modulation, context.conditioning)?;
        let [iq, ik, iv] = &self.image.qkv(image, i_shift, i_scale)?;
        let [tq, tk, tv] = &self.text.qkv(text, t_shift, t_scale)?;
        let both = |text: &Tensor, image: &Tensor| Tensor::cat(&[text, image], 2);
        let attended = attend([both(tq, iq)?, both(tk, ik)?, both(tv, iv)?], context.rope)?;
        let (tokens, all) = (text.dim(1)?, attended.dim(1)?);
        let (for_text, for_image) = (attended.narrow(1, 0, tokens)?, attended.narrow(1, tokens, all - tokens)?);
        Ok((
            self.image.finish(image, &for_image, [i_gate, i_shift2, i_scale2, i_gate2])?,
            self.text.finish(text, &for_text, [t_gate, t_shift2, t_scale2, t_gate2])?,
        ))
    }
}

/// A block of the second stack: attention and feed-forward side by side.
pub(crate) struct SingleBlock {
    modulation: Linear,
    qkv_and_up: Projection,
    norms: Norms,
    out: Linear,
}

impl SingleBlock {
    pub(crate) fn new(config: &Config, names: Names, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = config.width();
        let parts: &[&str] = names.pick(&["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], &["linear1"]);
        let norms =
            names.pick(("attn.norm_q.weight", "attn.norm_k.weight"), ("norm.query_norm.scale", "norm.key_norm.scale"));
        Ok(Self {
            modulation: linear(width, 3 * width, vb.pp(names.pick("norm.linear", "modulation.lin")))?,
            qkv_and_up: Projection::load(vb, parts, width, &[width, width, width, 4 * width])?,
            norms: Norms::new(config, norms, vb)?,
            out: linear(5 * width, width, vb.pp(names.pick("proj_out", "linear2")))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let [shift, scale, gate] = &modulation(&self.modulation, context.conditioning)?;
        let [q, k, v, up] = self.qkv_and_up.forward(&modulate(x, shift, scale)?)?;
        let attended = attend(self.norms.split([q, k, v])?, context.rope)?;
        let h = self.out.forward(&Tensor::cat(&[attended, up.gelu()?], D::Minus1)?)?;
        x + gate.broadcast_mul(&h)?
    }
}

/// Normalized, then scaled and shifted.
pub(crate) fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    layer_norm(x, NORM_EPS)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

fn attend([q, k, v]: [Tensor; 3], rope: &Table) -> Result<Tensor> {
    attention(&rope.rotate(&q)?, &rope.rotate(&k)?, &v.contiguous()?, None)
}
