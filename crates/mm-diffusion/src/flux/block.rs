//! The two kinds of blocks: image and text apart with attention over both, and both as one sequence.

use super::config::Config;
use crate::{
    joint::{Heads, IMAGE, QkNorm, Side, SideNames, TEXT, attend, modulate},
    layers::attention,
    projection::{Names, Projection, modulation},
    rope::Table,
};
use candle_core::{D, Module, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Linear, linear};

/// What all blocks share in a pass.
pub(crate) struct Context<'a> {
    pub(crate) rope: &'a Table,
    /// Timestep, guidance and pooled prompt, `[1, width]`, activated.
    pub(crate) conditioning: &'a Tensor,
}

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

/// A block of the first stack.
pub(crate) struct DoubleBlock {
    image: Side,
    text: Side,
}

impl DoubleBlock {
    pub(crate) fn new(config: &Config, names: Names, vb: &VarBuilder<'_>) -> Result<Self> {
        let side = |names| Side::new(vb, names, config.heads(), QkNorm::Composed, 6);
        let (image, text) = names.pick((&IMAGE, &TEXT), (&ORIGINAL_IMAGE, &ORIGINAL_TEXT));
        Ok(Self { image: side(image)?, text: side(text)? })
    }

    pub(crate) fn forward(&self, image: &Tensor, text: &Tensor, context: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let [i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2] =
            &modulation(&self.image.modulation, context.conditioning)?;
        let [t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2] =
            &modulation(&self.text.modulation, context.conditioning)?;
        let image_qkv = self.image.qkv(image, i_shift, i_scale)?;
        let text_qkv = self.text.qkv(text, t_shift, t_scale)?;
        let (for_text, for_image) = attend(&text_qkv, &image_qkv, |x| context.rope.rotate(&x))?;
        let image = self.image.add(image, &for_image, i_gate)?;
        let text = self.text.add(text, &for_text, t_gate)?;
        Ok((
            self.image.feed(&image, [i_shift2, i_scale2, i_gate2])?,
            self.text.feed(&text, [t_shift2, t_scale2, t_gate2])?,
        ))
    }
}

/// A block of the second stack: attention and feed-forward side by side.
pub(crate) struct SingleBlock {
    modulation: Linear,
    qkv_and_up: Projection,
    heads: Heads,
    out: Linear,
}

impl SingleBlock {
    pub(crate) fn new(config: &Config, names: Names, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, (heads, head)) = (config.width(), config.heads());
        let parts: &[&str] = names.pick(&["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], &["linear1"]);
        let norms =
            names.pick(("attn.norm_q.weight", "attn.norm_k.weight"), ("norm.query_norm.scale", "norm.key_norm.scale"));
        Ok(Self {
            modulation: linear(width, 3 * width, vb.pp(names.pick("norm.linear", "modulation.lin")))?,
            qkv_and_up: Projection::load(vb, parts, width, &[width, width, width, 4 * width])?,
            heads: Heads::new(vb, norms, heads, head, QkNorm::Composed)?,
            out: linear(5 * width, width, vb.pp(names.pick("proj_out", "linear2")))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let [shift, scale, gate] = &modulation(&self.modulation, context.conditioning)?;
        let [q, k, v, up] = self.qkv_and_up.forward(&modulate(x, shift, scale)?)?;
        let [q, k, v] = self.heads.split([q, k, v])?;
        let attended = attention(&context.rope.rotate(&q)?, &context.rope.rotate(&k)?, &v.contiguous()?, None)?;
        let h = self.out.forward(&Tensor::cat(&[attended, up.gelu()?], D::Minus1)?)?;
        x + gate.broadcast_mul(&h)?
    }
}
