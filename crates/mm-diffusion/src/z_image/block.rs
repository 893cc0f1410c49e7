//! One block: attention and feed-forward, modulated by the timestep where it refines noise.

use super::config::Config;
use crate::{
    layers::attention,
    projection::{Names, Projection},
    rope::Table,
};
use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, VarBuilder, linear, linear_no_bias, rms_norm};

/// Of the norms of queries and keys, in every checkpoint.
const QK_NORM_EPS: f64 = 1e-5;

/// What all blocks of a stack share in a pass.
pub(crate) struct Context<'a> {
    pub(crate) rope: &'a Table,
    /// Added to the scores; `None` where all items of the batch have the same length.
    pub(crate) mask: Option<&'a Tensor>,
    /// The timestep's embedding, `[1, width]`.
    pub(crate) timestep: &'a Tensor,
}

pub(crate) struct Block {
    attention: Attention,
    attention_norm: (RmsNorm, RmsNorm),
    feed_forward: FeedForward,
    feed_forward_norm: (RmsNorm, RmsNorm),
    modulation: Option<Linear>,
}

impl Block {
    pub(crate) fn new(config: &Config, names: Names, modulated: bool, vb: VarBuilder<'_>) -> Result<Self> {
        let norm = |name: &str| rms_norm(config.dim, config.norm_eps, vb.pp(name));
        let modulation = || linear(config.timestep_width(), 4 * config.dim, vb.pp("adaLN_modulation.0"));
        Ok(Self {
            attention: Attention::new(config, names, &vb.pp("attention"))?,
            attention_norm: (norm("attention_norm1")?, norm("attention_norm2")?),
            feed_forward: FeedForward::new(config, vb.pp("feed_forward"))?,
            feed_forward_norm: (norm("ffn_norm1")?, norm("ffn_norm2")?),
            modulation: modulated.then(modulation).transpose()?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let (before, after) = &self.attention_norm;
        let Some(modulation) = &self.modulation else {
            let x = (x + after.forward(&self.attention.forward(&before.forward(x)?, context)?)?)?;
            let (before, after) = &self.feed_forward_norm;
            return &x + after.forward(&self.feed_forward.forward(&before.forward(&x)?)?)?;
        };
        let parts = modulation.forward(context.timestep)?.unsqueeze(1)?.chunk(4, D::Minus1)?;
        let [scale_attention, gate_attention, scale_feed_forward, gate_feed_forward] = &parts[..] else {
            candle_core::bail!("modulation came in {} parts", parts.len());
        };
        let h = before.forward(x)?.broadcast_mul(&(scale_attention + 1.0)?)?;
        let h = after.forward(&self.attention.forward(&h, context)?)?;
        let x = (x + h.broadcast_mul(&gate_attention.tanh()?)?)?;
        let (before, after) = &self.feed_forward_norm;
        let h = before.forward(&x)?.broadcast_mul(&(scale_feed_forward + 1.0)?)?;
        let h = after.forward(&self.feed_forward.forward(&h)?)?;
        &x + h.broadcast_mul(&gate_feed_forward.tanh()?)?
    }
}

struct Attention {
    qkv: Projection,
    out: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
}

impl Attention {
    fn new(config: &Config, names: Names, vb: &VarBuilder<'_>) -> Result<Self> {
        let (dim, parts): (_, &[&str]) = (config.dim, names.pick(&["to_q", "to_k", "to_v"], &["qkv"]));
        let (norm_q, norm_k) = names.pick(("norm_q", "norm_k"), ("q_norm", "k_norm"));
        let norm = |name: &str| rms_norm(config.head_dim(), QK_NORM_EPS, vb.pp(name));
        let norms = || Ok::<_, candle_core::Error>((norm(norm_q)?, norm(norm_k)?));
        Ok(Self {
            qkv: Projection::load_no_bias(vb, parts, dim, &[dim; 3])?,
            out: linear_no_bias(dim, dim, vb.pp(names.pick("to_out.0", "out")))?,
            norms: config.qk_norm.then(norms).transpose()?,
            heads: config.n_heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let split = |x: Tensor| x.reshape((batch, tokens, self.heads, ()));
        let [q, k, v] = self.qkv.forward(x)?;
        let (mut q, mut k) = (split(q)?, split(k)?);
        if let Some((norm_q, norm_k)) = &self.norms {
            (q, k) = (norm_q.forward(&q)?, norm_k.forward(&k)?);
        }
        let v = split(v)?.transpose(1, 2)?.contiguous()?;
        let (q, k) = (context.rope.rotate(&q.transpose(1, 2)?)?, context.rope.rotate(&k.transpose(1, 2)?)?);
        self.out.forward(&attention(&q, &k, &v, context.mask)?)
    }
}

struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let inner = config.feed_forward_width();
        Ok(Self {
            gate: linear_no_bias(config.dim, inner, vb.pp("w1"))?,
            up: linear_no_bias(config.dim, inner, vb.pp("w3"))?,
            down: linear_no_bias(inner, config.dim, vb.pp("w2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&(self.gate.forward(x)?.silu()? * self.up.forward(x)?)?)
    }
}
