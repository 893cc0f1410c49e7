//! The half of `PaellaVQModel` that makes images.

use super::{blocks::norm_last, config::Vq as Config};
use crate::conv::{Conv, ConvUp};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{
    Conv2dConfig, ConvTranspose2dConfig, Linear, VarBuilder, linear,
    ops::{pixel_shuffle, replication_pad2d},
};
use mm_candle::Blocks;

pub(crate) struct Vq {
    pieces: Blocks<Piece>,
    out: Conv,
    patch: usize,
    device: Device,
}

enum Piece {
    First(Conv),
    Mix(Mix),
    Double(ConvUp),
}

impl Vq {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let plan = plan(config);
        let out = config.out_channels * config.up_down_scale_factor * config.up_down_scale_factor;
        let double = ConvTranspose2dConfig { stride: 2, padding: 1, ..Default::default() };
        let piece = |index: usize, vb: VarBuilder<'_>| {
            Ok(match plan[index] {
                Kind::First(width) => Piece::First(Conv::new(config.latent_channels, width, 1, 1, vb.pp("0"))?),
                Kind::Mix(width) => Piece::Mix(Mix::new(width, &vb)?),
                Kind::Double(from, to) => Piece::Double(ConvUp::with(from, to, 4, double, vb)?),
            })
        };
        Ok(Self {
            pieces: Blocks::load(&vb, "up_blocks", plan.len(), piece)?,
            out: Conv::new(config.width(0), out, 1, 1, vb.pp("out_block.0"))?,
            patch: config.up_down_scale_factor,
            device: vb.device().clone(),
        })
    }

    /// Latents `[1, channels, height, width]`, scaled, to an image `[1, 3, height, width]` in f32 on the host.
    pub(crate) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = latents.to_device(&self.device)?;
        for piece in self.pieces.iter() {
            x = match &*piece? {
                Piece::First(conv) => conv.forward(&x)?,
                Piece::Mix(mix) => mix.forward(&x)?,
                Piece::Double(double) => double.forward(&x)?,
            };
        }
        pixel_shuffle(&self.out.forward(&x)?, self.patch)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    First(usize),
    Mix(usize),
    Double(usize, usize),
}

/// From the deepest level out.
fn plan(config: &Config) -> Vec<Kind> {
    let deepest = config.levels - 1;
    let mut plan = vec![Kind::First(config.width(deepest))];
    for level in (0..config.levels).rev() {
        let width = config.width(level);
        let blocks = if level == deepest { config.bottleneck_blocks } else { 1 };
        plan.extend(vec![Kind::Mix(width); blocks]);
        if level > 0 {
            plan.push(Kind::Double(width, config.width(level - 1)));
        }
    }
    plan
}

/// A residual block of which six learned numbers say how much counts.
struct Mix {
    depthwise: Conv,
    up: Linear,
    down: Linear,
    numbers: Tensor,
}

impl Mix {
    fn new(width: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let config = Conv2dConfig { groups: width, ..Default::default() };
        Ok(Self {
            depthwise: Conv::with(width, width, 3, config, vb.pp("depthwise.1"))?,
            up: linear(width, 4 * width, vb.pp("channelwise.0"))?,
            down: linear(4 * width, width, vb.pp("channelwise.2"))?,
            numbers: vb.get(6, "gammas")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let number = |index: usize| self.numbers.narrow(0, index, 1);
        let normed = |x: &Tensor, index: usize| {
            let x = norm_last(&x.permute((0, 2, 3, 1))?)?;
            x.broadcast_mul(&(number(index)? + 1.0)?)?.broadcast_add(&number(index + 1)?)
        };
        let h = replication_pad2d(&normed(x, 0)?.permute((0, 3, 1, 2))?.contiguous()?, 1)?;
        let x = (x + self.depthwise.forward(&h)?.broadcast_mul(&number(2)?)?)?;
        let h = self.down.forward(&self.up.forward(&normed(&x, 3)?.contiguous()?)?.gelu_erf()?)?;
        &x + h.permute((0, 3, 1, 2))?.broadcast_mul(&number(5)?)?
    }
}
