//! `UNet2DConditionModel`: levels of residual blocks and transformers, down and up again.
//!
//! candle's own leaves SDXL's pooled prompt and sizes out, and approximates GELU, which diffusers does not; this one does what
//! diffusers does. It streams by residual block, by transformer, or block of one where they have several, and by what halves and
//! doubles the sides.

use super::{
    attention::Attention,
    config::{Config, Level},
    resnet::Resnet,
    time::{Added, Time},
};
use crate::conv::Conv;
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{GroupNorm, VarBuilder, group_norm};
use mm_candle::Blocks;

/// Residual blocks around the transformer in the middle.
const MIDDLE: usize = 2;

pub(crate) struct UNet {
    time: Time,
    conv_in: Conv,
    down: Vec<Stage>,
    middle: Stage,
    up: Vec<Stage>,
    norm: GroupNorm,
    conv_out: Conv,
    device: Device,
    dtype: DType,
}

impl UNet {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (levels, first) = (config.levels(), config.sinusoids());
        let Some((&deepest, last)) = levels.last().zip(levels.len().checked_sub(1)) else {
            candle_core::bail!("a UNet of no levels");
        };
        let time = Time::new(config, &vb)?;
        let build = Build { config, time: time.wide() };

        let conv_in = Conv::new(config.in_channels, first, 3, 1, vb.pp("conv_in"))?;
        let (mut down, mut skips, mut input) = (Vec::new(), vec![first], first);
        for (index, level) in levels.iter().enumerate() {
            let widths: Vec<_> = (0..config.layers_per_block)
                .map(|layer| (if layer == 0 { input } else { level.channels }, level.channels))
                .collect();
            let half = (index < last).then_some(("downsamplers", 2));
            skips.extend(vec![level.channels; widths.len() + usize::from(half.is_some())]);
            input = level.channels;
            let attentions = if level.attends { widths.len() } else { 0 };
            down.push(build.stage(*level, &widths, attentions, half, &vb.pp("down_blocks").pp(index))?);
        }

        let widths = [(deepest.channels, deepest.channels); MIDDLE];
        let middle = build.stage(deepest, &widths, MIDDLE - 1, None, &vb.pp("mid_block"))?;

        let mut up = Vec::new();
        for (index, level) in levels.iter().rev().enumerate() {
            let mut widths = Vec::new();
            for _ in 0..=config.layers_per_block {
                widths.push((input + skips.pop().unwrap_or(0), level.channels));
                input = level.channels;
            }
            let double = (index < last).then_some(("upsamplers", 1));
            let attentions = if level.attends { widths.len() } else { 0 };
            up.push(build.stage(*level, &widths, attentions, double, &vb.pp("up_blocks").pp(index))?);
        }
        Ok(Self {
            time,
            conv_in,
            down,
            middle,
            up,
            norm: group_norm(config.norm_num_groups, first, config.norm_eps, vb.pp("conv_norm_out"))?,
            conv_out: Conv::new(first, config.out_channels, 3, 1, vb.pp("conv_out"))?,
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// The same latents `[1, channels, height, width]` at a timestep towards each prompt of a batch: `text` is
    /// `[batch, tokens, width]`. Returns `[batch, channels, height, width]` in f32.
    pub(crate) fn forward(
        &self,
        latents: &Tensor,
        timestep: f32,
        text: &Tensor,
        added: Option<&Added>,
    ) -> Result<Tensor> {
        let (batch, device) = (text.dim(0)?, &self.device);
        let text = text.to_device(device)?.to_dtype(self.dtype)?;
        let time = self.time.forward(timestep, added, self.dtype, device)?.silu()?;
        let latents = latents.to_device(device)?.to_dtype(self.dtype)?.repeat((batch, 1, 1, 1))?;

        let mut x = self.conv_in.forward(&latents)?;
        let mut skips = vec![x.clone()];
        for stage in &self.down {
            for (index, resnet) in stage.resnets.iter().enumerate() {
                x = resnet?.forward(&x, &time)?;
                x = stage.attend(index, x, &text)?;
                skips.push(x.clone());
            }
            if let Some(half) = &stage.sampler {
                for half in half.iter() {
                    x = half?.forward(&x)?;
                }
                skips.push(x.clone());
            }
        }
        for (index, resnet) in self.middle.resnets.iter().enumerate() {
            x = resnet?.forward(&x, &time)?;
            x = self.middle.attend(index, x, &text)?;
        }
        for stage in &self.up {
            for (index, resnet) in stage.resnets.iter().enumerate() {
                let Some(skip) = skips.pop() else { candle_core::bail!("a UNet's way up is longer than its way down") };
                x = resnet?.forward(&Tensor::cat(&[&x, &skip], 1)?.contiguous()?, &time)?;
                x = stage.attend(index, x, &text)?;
            }
            if let (Some(double), Some(skip)) = (&stage.sampler, skips.last()) {
                // Not exactly twice as large where a side was odd.
                let (_, _, height, width) = skip.dims4()?;
                x = x.upsample_nearest2d(height, width)?;
                for double in double.iter() {
                    x = double?.forward(&x)?;
                }
            }
        }
        let x = self.conv_out.forward(&self.norm.forward(&x)?.silu()?)?;
        x.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    }
}

/// One level on the way down or up, or the middle.
struct Stage {
    resnets: Blocks<Resnet>,
    /// After each residual block, as far as there are any.
    attentions: Attentions,
    /// What changes the sides at the end: one, or none.
    sampler: Option<Blocks<Conv>>,
}

/// What streams of transformers.
enum Attentions {
    None,
    /// Each as a whole, where it is little more than its only block.
    Whole(Blocks<Attention>),
    /// Their blocks.
    Blocks(Vec<Attention>),
}

impl Stage {
    fn attend(&self, index: usize, x: Tensor, text: &Tensor) -> Result<Tensor> {
        match &self.attentions {
            Attentions::Whole(all) => match all.get(index) {
                Some(attention) => attention?.forward(&x, text),
                None => Ok(x),
            },
            Attentions::Blocks(all) => match all.get(index) {
                Some(attention) => attention.forward(&x, text),
                None => Ok(x),
            },
            Attentions::None => Ok(x),
        }
    }
}

/// What all stages have in common.
struct Build<'a> {
    config: &'a Config,
    time: usize,
}

impl Build<'_> {
    /// `widths` into and out of each residual block; `sampler` is its name and stride.
    fn stage(
        &self,
        level: Level,
        widths: &[(usize, usize)],
        attentions: usize,
        sampler: Option<(&str, usize)>,
        vb: &VarBuilder<'_>,
    ) -> Result<Stage> {
        let (config, channels) = (self.config, level.channels);
        let norm = (config.norm_num_groups, config.norm_eps);
        let attention = |vb: &VarBuilder<'_>| Attention::new(config, level, vb);
        let attentions = match (attentions, level.depth) {
            (0, _) => Attentions::None,
            (_, 1) => Attentions::Whole(Blocks::load(vb, "attentions", attentions, |_, vb| attention(&vb))?),
            _ => {
                let each = (0..attentions).map(|index| attention(&vb.pp("attentions").pp(index)));
                Attentions::Blocks(each.collect::<Result<_>>()?)
            }
        };
        let load =
            |(name, stride)| Blocks::load(vb, name, 1, |_, vb| Conv::new(channels, channels, 3, stride, vb.pp("conv")));
        Ok(Stage {
            resnets: Blocks::load(vb, "resnets", widths.len(), |index, vb| {
                Resnet::new(widths[index], self.time, norm, &vb)
            })?,
            attentions,
            sampler: sampler.map(load).transpose()?,
        })
    }
}
