//! A transformer over the places of a level, which attend to each other and to the text.

use super::config::{Config, Level};
use crate::conv::Conv;
use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{GroupNorm, LayerNorm, Linear, VarBuilder, group_norm, layer_norm, linear, linear_no_bias};
use mm_candle::Blocks;

/// Of all norms here, in every checkpoint.
const GROUP_EPS: f64 = 1e-6;
const LAYER_EPS: f64 = 1e-5;

pub(crate) struct Attention {
    norm: GroupNorm,
    projections: Projections,
    blocks: Blocks<Block>,
}

/// Into the blocks and out of them: the same numbers as convolutions of one place or as layers.
enum Projections {
    Convs(Conv, Conv),
    Layers(Linear, Linear),
}

impl Attention {
    pub(crate) fn new(config: &Config, level: Level, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = level.channels;
        let conv = |name: &str| Conv::new(width, width, 1, 1, vb.pp(name));
        let layer = |name: &str| linear(width, width, vb.pp(name));
        Ok(Self {
            norm: group_norm(config.norm_num_groups, width, GROUP_EPS, vb.pp("norm"))?,
            projections: match config.use_linear_projection {
                true => Projections::Layers(layer("proj_in")?, layer("proj_out")?),
                false => Projections::Convs(conv("proj_in")?, conv("proj_out")?),
            },
            blocks: Blocks::load(vb, "transformer_blocks", level.depth, |_, vb| Block::new(config, level, &vb))?,
        })
    }

    /// `[batch, channels, height, width]`; the text is `[batch, tokens, width]`.
    pub(crate) fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let places = |x: Tensor| x.permute((0, 2, 3, 1))?.reshape((batch, height * width, channels));
        let image = |x: Tensor| x.reshape((batch, height, width, channels))?.permute((0, 3, 1, 2));
        let normed = self.norm.forward(x)?;
        let mut h = match &self.projections {
            Projections::Convs(into, _) => places(into.forward(&normed)?)?,
            Projections::Layers(into, _) => into.forward(&places(normed)?)?,
        };
        for block in self.blocks.iter() {
            h = block?.forward(&h, text)?;
        }
        let h = match &self.projections {
            Projections::Convs(_, out) => out.forward(&image(h)?)?,
            Projections::Layers(_, out) => image(out.forward(&h)?)?,
        };
        h + x
    }
}

/// Attention to each other, to the text, and a gated feed-forward.
struct Block {
    norms: [LayerNorm; 3],
    places: Heads,
    text: Heads,
    gate: Linear,
    down: Linear,
    approximate_gelu: bool,
}

impl Block {
    fn new(config: &Config, level: Level, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, inner) = (level.channels, 4 * level.channels);
        let norm = |name: &str| layer_norm(width, LAYER_EPS, vb.pp(name));
        Ok(Self {
            norms: [norm("norm1")?, norm("norm2")?, norm("norm3")?],
            places: Heads::new((width, width), level.heads, &vb.pp("attn1"))?,
            text: Heads::new((width, config.cross_attention_dim), level.heads, &vb.pp("attn2"))?,
            gate: linear(width, 2 * inner, vb.pp("ff.net.0.proj"))?,
            down: linear(inner, width, vb.pp("ff.net.2"))?,
            approximate_gelu: config.approximate_gelu,
        })
    }

    fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.norms;
        let h = first.forward(x)?;
        let x = (self.places.forward(&h, &h)? + x)?;
        let x = (self.text.forward(&second.forward(&x)?, text)? + &x)?;
        let both = self.gate.forward(&third.forward(&x)?)?;
        let inner = both.dim(D::Minus1)? / 2;
        let gate = both.narrow(D::Minus1, inner, inner)?;
        let gate = if self.approximate_gelu { gate.gelu()? } else { gate.gelu_erf()? };
        self.down.forward(&(both.narrow(D::Minus1, 0, inner)? * gate)?)? + x
    }
}

/// Attention in f32, as candle's own computes it: keys are scaled.
struct Heads {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    count: usize,
}

impl Heads {
    fn new((width, context): (usize, usize), count: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            q: linear_no_bias(width, width, vb.pp("to_q"))?,
            k: linear_no_bias(context, width, vb.pp("to_k"))?,
            v: linear_no_bias(context, width, vb.pp("to_v"))?,
            out: linear(width, width, vb.pp("to_out.0"))?,
            count,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (batch, places, width) = x.dims3()?;
        let split = |x: Tensor| {
            let tokens = x.dim(1)?;
            let heads = x.reshape((batch, tokens, self.count, ()))?.transpose(1, 2)?;
            heads.reshape((batch * self.count, tokens, ()))?.to_dtype(DType::F32)
        };
        let q = split(self.q.forward(x)?)?;
        let (k, v) = (split(self.k.forward(context)?)?, split(self.v.forward(context)?)?);
        let scale = 1.0 / ((width / self.count) as f64).sqrt();
        let weights = candle_nn::ops::softmax_last_dim(&q.matmul(&(k.t()? * scale)?)?)?;
        let attended = weights.matmul(&v)?.to_dtype(x.dtype())?;
        let heads = attended.reshape((batch, self.count, places, ()))?.transpose(1, 2)?;
        self.out.forward(&heads.reshape((batch, places, width))?)
    }
}
