//! Layers that several models have.

use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Linear, linear};

/// Softmax attention over `[batch, heads, tokens, width]`, its weights in f32; `mask` is added to the
/// scores. Returns `[batch, tokens, heads * width]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * scale)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
    weights.matmul(v)?.transpose(1, 2)?.flatten_from(2)
}

/// A layer norm without weights, computed in f32.
pub(crate) fn layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x32 = x.to_dtype(DType::F32)?;
    let centred = x32.broadcast_sub(&x32.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())
}

/// Two linear layers with an activation between them.
pub(crate) struct Embedder(Linear, Linear);

impl Embedder {
    pub(crate) fn new(input: usize, width: usize, (first, second): (&str, &str), vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self(linear(input, width, vb.pp(first))?, linear(width, width, vb.pp(second))?))
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.1.forward(&self.0.forward(x)?.silu()?)
    }
}

/// Width of the sinusoids of a timestep.
pub(crate) const SINUSOIDS: usize = 256;

const LONGEST_PERIOD: f64 = 10_000.0;

/// Of a value, `[1]` in f32, in this dtype: `[1, 256]`. They are computed in f32 whatever the dtype.
pub(crate) fn sinusoids(value: &Tensor, dtype: DType) -> Result<Tensor> {
    let half = SINUSOIDS / 2;
    let steps = Tensor::arange(0, half as u32, value.device())?.to_dtype(DType::F32)?;
    let frequencies = (steps * (-LONGEST_PERIOD.ln() / half as f64))?.exp()?;
    let angles = value.unsqueeze(1)?.broadcast_mul(&frequencies.unsqueeze(0)?)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], D::Minus1)?.to_dtype(dtype)
}
