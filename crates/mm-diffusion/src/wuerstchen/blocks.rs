//! What the prior and the decoder are made of.

use crate::{
    conv::Conv,
    layers::{attention, layer_norm},
};
use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::{Conv2dConfig, Linear, VarBuilder, linear};

/// Of all norms.
const NORM_EPS: f64 = 1e-6;
const RESPONSE_EPS: f64 = 1e-6;
const LONGEST_PERIOD: f64 = 10_000.0;

/// A layer norm over the channels of `[batch, channels, height, width]`.
pub(crate) fn norm(x: &Tensor) -> Result<Tensor> {
    layer_norm(&x.permute((0, 2, 3, 1))?, NORM_EPS)?.permute((0, 3, 1, 2))?.contiguous()
}

/// The same over the last dimension.
pub(crate) fn norm_last(x: &Tensor) -> Result<Tensor> {
    layer_norm(x, NORM_EPS)
}

/// Of a noise level between 0 and 1, `[1, width]` in f32.
pub(crate) fn sinusoids(level: f32, width: usize, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let step = -LONGEST_PERIOD.ln() / (half as f64 - 1.0).max(1.0);
    let frequencies = (Tensor::arange(0, half as u32, device)?.to_dtype(DType::F32)? * step)?.exp()?;
    let angles = (frequencies * f64::from(level * LONGEST_PERIOD as f32))?.unsqueeze(0)?;
    Tensor::cat(&[angles.sin()?, angles.cos()?], 1)?.pad_with_zeros(1, 0, width % 2)
}

/// One of the blocks that repeat.
pub(crate) enum Block {
    Residual(Residual),
    Time(Linear),
    Attention(Attention),
}

/// Each channel on its own, then all together with what comes from elsewhere.
pub(crate) struct Residual {
    depthwise: Conv,
    up: Linear,
    response: (Tensor, Tensor),
    down: Linear,
}

impl Residual {
    /// `skip`: channels that come from elsewhere.
    pub(crate) fn new(channels: usize, skip: usize, kernel: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let config = Conv2dConfig { padding: kernel / 2, groups: channels, ..Default::default() };
        let (inner, layers) = (4 * channels, vb.pp("channelwise"));
        let response = |name: &str| layers.pp("2").get((1, 1, 1, inner), name);
        Ok(Self {
            depthwise: Conv::with(channels, channels, kernel, config, vb.pp("depthwise"))?,
            up: linear(channels + skip, inner, layers.pp("0"))?,
            response: (response("gamma")?, response("beta")?),
            down: linear(inner, channels, layers.pp("4"))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, skip: Option<&Tensor>) -> Result<Tensor> {
        let h = norm(&self.depthwise.forward(x)?)?;
        let h = match skip {
            Some(skip) => Tensor::cat(&[&h, skip], 1)?,
            None => h,
        };
        let h = self.up.forward(&h.permute((0, 2, 3, 1))?.contiguous()?)?.gelu_erf()?;
        let h = self.down.forward(&self.respond(&h)?)?;
        h.permute((0, 3, 1, 2))? + x
    }

    /// Channels that say more than others say still more; in f32, as squares are summed.
    fn respond(&self, x: &Tensor) -> Result<Tensor> {
        let x32 = x.to_dtype(DType::F32)?;
        let strength = x32.sqr()?.sum_keepdim((1, 2))?.sqrt()?;
        let strength = strength.broadcast_div(&(strength.mean_keepdim(D::Minus1)? + RESPONSE_EPS)?)?;
        let scaled = x32.broadcast_mul(&strength)?.to_dtype(x.dtype())?;
        scaled.broadcast_mul(&self.response.0)?.broadcast_add(&self.response.1)? + x
    }
}

/// The level scales and shifts channels: `[batch, channels, height, width]` and `[1, width]`.
pub(crate) fn modulate(layer: &Linear, x: &Tensor, level: &Tensor) -> Result<Tensor> {
    let both = layer.forward(level)?.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?.chunk(2, 1)?;
    x.broadcast_mul(&(&both[0] + 1.0)?)?.broadcast_add(&both[1])
}

/// Places attend to each other and to the text.
pub(crate) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    text: Linear,
    heads: usize,
}

impl Attention {
    pub(crate) fn new(channels: usize, text: usize, heads: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let layer = |name: &str| linear(channels, channels, vb.pp("attention").pp(name));
        Ok(Self {
            q: layer("to_q")?,
            k: layer("to_k")?,
            v: layer("to_v")?,
            out: layer("to_out.0")?,
            text: linear(text, channels, vb.pp("kv_mapper.1"))?,
            heads,
        })
    }

    /// `text` is `[batch, tokens, width]`.
    pub(crate) fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let places = norm(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let all = Tensor::cat(&[&places, &self.text.forward(&text.silu()?)?], 1)?;
        let split = |x: Tensor| {
            let tokens = x.dim(1)?;
            x.reshape((batch, tokens, self.heads, ()))?.transpose(1, 2)?.contiguous()
        };
        let q = split(self.q.forward(&places)?)?;
        let (k, v) = (split(self.k.forward(&all)?)?, split(self.v.forward(&all)?)?);
        let out = self.out.forward(&attention(&q, &k, &v, None)?)?;
        out.transpose(1, 2)?.reshape((batch, channels, height, width))? + x
    }
}
