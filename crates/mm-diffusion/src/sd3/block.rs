//! A block: image and text apart with attention over both, and in MMDiT-X a second one over the image alone.

use super::config::Config;
use crate::{
    joint::{Heads, IMAGE, Side, SideNames, TEXT, attend, modulate},
    layers::attention,
    projection::{Names, Projection, modulation},
};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Linear, linear};

const ORIGINAL_IMAGE: SideNames = SideNames {
    modulation: "x_block.adaLN_modulation.1",
    qkv: &["x_block.attn.qkv"],
    norms: ("x_block.attn.ln_q.weight", "x_block.attn.ln_k.weight"),
    out: "x_block.attn.proj",
    feed_forward: ("x_block.mlp.fc1", "x_block.mlp.fc2"),
};

const ORIGINAL_TEXT: SideNames = SideNames {
    modulation: "context_block.adaLN_modulation.1",
    qkv: &["context_block.attn.qkv"],
    norms: ("context_block.attn.ln_q.weight", "context_block.attn.ln_k.weight"),
    out: "context_block.attn.proj",
    feed_forward: ("context_block.mlp.fc1", "context_block.mlp.fc2"),
};

/// One entry of the stack.
pub(crate) struct Block {
    image: Side,
    own: Option<OwnAttention>,
    text: Text,
}

/// The text goes on, but for the last block, where it is only attended to.
enum Text {
    On(Side),
    Last(LastText),
}

/// What a block is given and gives on; no text after the last.
pub(crate) struct Streams {
    pub(crate) image: Tensor,
    pub(crate) text: Option<Tensor>,
}

impl Block {
    pub(crate) fn new(config: &Config, names: Names, index: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (image, text) = names.pick((&IMAGE, &TEXT), (&ORIGINAL_IMAGE, &ORIGINAL_TEXT));
        let own = config.dual_attention_layers.contains(&index);
        let side = |names, parts| Side::new(vb, names, config.heads(), config.qk_norm(), parts);
        Ok(Self {
            image: side(image, if own { 9 } else { 6 })?,
            own: own.then(|| OwnAttention::new(config, names, vb)).transpose()?,
            text: match index + 1 == config.num_layers {
                true => Text::Last(LastText::new(config, names, text, vb)?),
                false => Text::On(side(text, 6)?),
            },
        })
    }

    /// `conditioning` is activated, `[batch, width]`.
    pub(crate) fn forward(&self, image: &Tensor, text: &Tensor, conditioning: &Tensor) -> Result<Streams> {
        let (shift, scale, gate, feed, own) = match &self.own {
            None => {
                let [shift, scale, gate, shift2, scale2, gate2] = modulation(&self.image.modulation, conditioning)?;
                (shift, scale, gate, [shift2, scale2, gate2], None)
            }
            Some(own) => {
                let [shift, scale, gate, shift2, scale2, gate2, own_shift, own_scale, own_gate] =
                    modulation(&self.image.modulation, conditioning)?;
                let attended = own.forward(image, &own_shift, &own_scale)?;
                (shift, scale, gate, [shift2, scale2, gate2], Some((attended, own_gate)))
            }
        };
        let image_qkv = self.image.qkv(image, &shift, &scale)?;
        let (for_image, text) = match &self.text {
            Text::On(side) => {
                let [shift, scale, gate, shift2, scale2, gate2] = &modulation(&side.modulation, conditioning)?;
                let text_qkv = side.qkv(text, shift, scale)?;
                let (for_text, for_image) = attend(&text_qkv, &image_qkv, |x| x.contiguous())?;
                let text = side.add(text, &for_text, gate)?;
                (for_image, Some(side.feed(&text, [shift2, scale2, gate2])?))
            }
            Text::Last(last) => (attend(&last.qkv(text, conditioning)?, &image_qkv, |x| x.contiguous())?.1, None),
        };
        let mut image = self.image.add(image, &for_image, &gate)?;
        if let Some((attended, gate)) = own {
            image = (image + gate.broadcast_mul(&attended)?)?;
        }
        let [shift, scale, gate] = &feed;
        Ok(Streams { image: self.image.feed(&image, [shift, scale, gate])?, text })
    }
}

/// The image's attention to itself.
struct OwnAttention {
    qkv: Projection,
    heads: Heads,
    out: Linear,
}

impl OwnAttention {
    fn new(config: &Config, names: Names, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, (heads, head)) = (config.width(), config.heads());
        let parts: &[&str] = names.pick(&["attn2.to_q", "attn2.to_k", "attn2.to_v"], &["x_block.attn2.qkv"]);
        let norms = names.pick(
            ("attn2.norm_q.weight", "attn2.norm_k.weight"),
            ("x_block.attn2.ln_q.weight", "x_block.attn2.ln_k.weight"),
        );
        Ok(Self {
            qkv: Projection::load(vb, parts, width, &[width; 3])?,
            heads: Heads::new(vb, norms, heads, head, config.qk_norm())?,
            out: linear(width, width, vb.pp(names.pick("attn2.to_out.0", "x_block.attn2.proj")))?,
        })
    }

    fn forward(&self, x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let [q, k, v] = self.heads.split(self.qkv.forward(&modulate(x, shift, scale)?)?)?;
        self.out.forward(&attention(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, None)?)
    }
}

/// The text of the last block. Its queries and keys are normalized too, which candle's own forward leaves out.
struct LastText {
    modulation: Linear,
    /// Whether the modulation has its shift before its scale.
    shift_first: bool,
    qkv: Projection,
    heads: Heads,
}

impl LastText {
    fn new(config: &Config, names: Names, of: &SideNames, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, (heads, head)) = (config.width(), config.heads());
        Ok(Self {
            modulation: linear(width, 2 * width, vb.pp(of.modulation))?,
            shift_first: names == Names::Original,
            qkv: Projection::load(vb, of.qkv, width, &[width; 3])?,
            heads: Heads::new(vb, of.norms, heads, head, config.qk_norm())?,
        })
    }

    fn qkv(&self, x: &Tensor, conditioning: &Tensor) -> Result<[Tensor; 3]> {
        let [first, second] = modulation(&self.modulation, conditioning)?;
        let (shift, scale) = if self.shift_first { (first, second) } else { (second, first) };
        self.heads.split(self.qkv.forward(&modulate(x, &shift, &scale)?)?)
    }
}
