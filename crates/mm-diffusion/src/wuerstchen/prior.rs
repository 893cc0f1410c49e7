//! `WuerstchenPrior`: equal blocks that draw what the decoder is led by.

use super::{
    blocks::{Attention, Block, Residual, modulate, norm, sinusoids},
    config::Prior as Config,
};
use crate::conv::Conv;
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder, linear, ops::leaky_relu};
use mm_candle::Blocks;

const KERNEL: usize = 3;
const SLOPE: f64 = 0.2;
const OUT_EPS: f64 = 1e-5;

pub(crate) struct Prior {
    projection: Conv,
    text: (Linear, Linear),
    blocks: Blocks<Block>,
    out: Conv,
    levels: usize,
    device: Device,
    dtype: DType,
}

impl Prior {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (width, image) = (config.c, config.c_in);
        let block = |index: usize, vb: VarBuilder<'_>| {
            Ok(match index % 3 {
                0 => Block::Residual(Residual::new(width, 0, KERNEL, &vb)?),
                1 => Block::Time(linear(config.c_r, 2 * width, vb.pp("mapper"))?),
                _ => Block::Attention(Attention::new(width, width, config.nhead, &vb)?),
            })
        };
        Ok(Self {
            projection: Conv::new(image, width, 1, 1, vb.pp("projection"))?,
            text: (
                linear(config.c_cond, width, vb.pp("cond_mapper.0"))?,
                linear(width, width, vb.pp("cond_mapper.2"))?,
            ),
            blocks: Blocks::load(&vb, "blocks", 3 * config.depth, block)?,
            out: Conv::new(width, 2 * image, 1, 1, vb.pp("out.1"))?,
            levels: config.c_r,
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// The same image `[1, channels, height, width]` at a noise level (1 noise, 0 image) towards each prompt of a batch: `text` is
    /// `[batch, tokens, width]`. Returns the noise, `[batch, channels, height, width]` in f32.
    pub(crate) fn forward(&self, image: &Tensor, level: f32, text: &Tensor) -> Result<Tensor> {
        let text = text.to_device(&self.device)?.to_dtype(self.dtype)?;
        let text = self.text.1.forward(&leaky_relu(&self.text.0.forward(&text)?, SLOPE)?)?;
        let image = image.to_device(&self.device)?.repeat((text.dim(0)?, 1, 1, 1))?;
        let level = sinusoids(level, self.levels, &self.device)?.to_dtype(self.dtype)?;
        let mut x = self.projection.forward(&image.to_dtype(self.dtype)?)?;
        for block in self.blocks.iter() {
            x = match &*block? {
                Block::Residual(residual) => residual.forward(&x, None)?,
                Block::Time(time) => modulate(time, &x, &level)?,
                Block::Attention(attention) => attention.forward(&x, &text)?,
            };
        }
        let out = self.out.forward(&norm(&x)?)?.to_dtype(DType::F32)?.chunk(2, 1)?;
        ((image - &out[0])? / ((&out[1] - 1.0)?.abs()? + OUT_EPS)?)?.to_device(&Device::Cpu)
    }
}
