//! `WuerstchenDiffNeXt`: levels down and up again, each led by the prior's image.
//!
//! candle's own has one size alone, approximates GELU, and enlarges the prior's image without interpolation; this one does what
//! diffusers does.

use super::{
    bicubic::resize,
    blocks::{Attention, Block, Residual, modulate, norm, norm_last, sinusoids},
    config::Decoder as Config,
};
use crate::conv::{Conv, ConvUp};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{
    Conv2dConfig, ConvTranspose2dConfig, Linear, VarBuilder, linear,
    ops::{pixel_shuffle, pixel_unshuffle, sigmoid},
};
use mm_candle::Blocks;

const OUT_EPS: f64 = 1e-3;

pub(crate) struct Decoder {
    text: Linear,
    embedding: Conv,
    down: Vec<Stage>,
    up: Vec<Stage>,
    out: Conv,
    patch: usize,
    levels: usize,
    device: Device,
    dtype: DType,
}

/// One level on the way down or up.
struct Stage {
    /// Of the prior's image, where the level is led by it.
    image: Option<Conv>,
    pieces: Blocks<Piece>,
}

enum Piece {
    Block(Block),
    Half(Conv),
    Double(ConvUp),
}

impl Decoder {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (hidden, patch) = (&config.c_hidden, config.patch_size * config.patch_size);
        let Some(&first) = hidden.first() else { candle_core::bail!("a decoder of no levels") };
        let levels = hidden.len();
        let down = (0..levels).map(|level| stage(config, level, Way::Down, &vb));
        let up = (0..levels).rev().map(|level| stage(config, level, Way::Up, &vb));
        Ok(Self {
            text: linear(config.clip_embd, config.c_cond, vb.pp("clip_mapper"))?,
            embedding: Conv::new(config.c_in * patch, first, 1, 1, vb.pp("embedding.1"))?,
            down: down.collect::<Result<_>>()?,
            up: up.collect::<Result<_>>()?,
            out: Conv::new(first, 2 * config.c_out * patch, 1, 1, vb.pp("clf.1"))?,
            patch: config.patch_size,
            levels: config.c_r,
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// Latents `[1, channels, height, width]` at a noise level (1 noise, 0 image) towards a prompt `[1, tokens, width]` and the prior's
    /// image `[1, channels, rows, columns]`. Returns the noise, in f32.
    pub(crate) fn forward(&self, latents: &Tensor, level: f32, image: &Tensor, text: &Tensor) -> Result<Tensor> {
        let [latents, image, text] = [latents, image, text].map(|input| input.to_device(&self.device));
        let (latents, image, text) = (latents?, image?, text?.to_dtype(self.dtype)?);
        let text = norm_last(&self.text.forward(&text)?)?;
        let level = sinusoids(level, self.levels, &self.device)?.to_dtype(self.dtype)?;
        let inputs = Inputs { level: &level, image: &image, text: &text };

        let x = pixel_unshuffle(&latents.to_dtype(self.dtype)?, self.patch)?;
        let mut x = norm(&self.embedding.forward(&x)?)?;
        let mut skips = Vec::new();
        for stage in &self.down {
            x = stage.forward(x, None, &inputs)?;
            skips.push(x.clone());
        }
        // The deepest is where the way up begins.
        skips.pop();
        for (index, stage) in self.up.iter().enumerate() {
            let skip = if index == 0 { None } else { skips.pop() };
            x = stage.forward(x, skip, &inputs)?;
        }
        let out = pixel_shuffle(&self.out.forward(&norm(&x)?)?, self.patch)?.to_dtype(DType::F32)?.chunk(2, 1)?;
        let spread = ((sigmoid(&out[1])? * (1.0 - 2.0 * OUT_EPS))? + OUT_EPS)?;
        ((latents - &out[0])? / spread)?.to_device(&Device::Cpu)
    }
}

/// What all pieces are given in a pass.
struct Inputs<'a> {
    level: &'a Tensor,
    image: &'a Tensor,
    text: &'a Tensor,
}

impl Stage {
    /// `skip` is what the first piece is given beside.
    fn forward(&self, mut x: Tensor, mut skip: Option<Tensor>, inputs: &Inputs<'_>) -> Result<Tensor> {
        let mut image = None;
        for piece in self.pieces.iter() {
            x = match &*piece? {
                Piece::Block(Block::Residual(residual)) => {
                    if let (None, Some(conv)) = (&image, &self.image) {
                        let (_, _, height, width) = x.dims4()?;
                        image = Some(conv.forward(&resize(inputs.image, height, width)?.to_dtype(x.dtype())?)?);
                    }
                    match (skip.take(), &image) {
                        (Some(skip), Some(image)) => residual.forward(&x, Some(&Tensor::cat(&[&skip, image], 1)?))?,
                        (Some(skip), None) => residual.forward(&x, Some(&skip))?,
                        (None, image) => residual.forward(&x, image.as_ref())?,
                    }
                }
                Piece::Block(Block::Time(time)) => modulate(time, &x, inputs.level)?,
                Piece::Block(Block::Attention(attention)) => attention.forward(&x, inputs.text)?,
                Piece::Half(half) => half.forward(&norm(&x)?)?,
                Piece::Double(double) => double.forward(&norm(&x)?)?,
            };
        }
        Ok(x)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

fn stage(config: &Config, level: usize, way: Way, vb: &VarBuilder<'_>) -> Result<Stage> {
    let (hidden, count) = (&config.c_hidden, config.c_hidden.len());
    let (width, kinds) = (hidden[level], config.level_config[level].as_bytes());
    let blocks = config.blocks[level] * kinds.len();
    let (list, place, first) = match way {
        Way::Down => ("down_blocks", level, usize::from(level > 0)),
        Way::Up => ("up_blocks", count - 1 - level, 0),
    };
    let led = config.inject_effnet[level];
    let build = |index: usize, vb: VarBuilder<'_>| {
        if way == Way::Down && index < first {
            let half = Conv2dConfig { stride: 2, ..Default::default() };
            return Ok(Piece::Half(Conv::with(hidden[level - 1], width, 2, half, vb.pp("1"))?));
        }
        let block = index - first;
        if block == blocks {
            let double = ConvTranspose2dConfig { stride: 2, ..Default::default() };
            return Ok(Piece::Double(ConvUp::with(width, hidden[level - 1], 2, double, vb.pp("1"))?));
        }
        Ok(Piece::Block(match kinds[block % kinds.len()] {
            b'C' => {
                let from_down = way == Way::Up && level + 1 < count && block == 0;
                let skip = if from_down { width } else { 0 } + if led { config.c_cond } else { 0 };
                Block::Residual(Residual::new(width, skip, config.kernel_size, &vb)?)
            }
            b'T' => Block::Time(linear(config.c_r, 2 * width, vb.pp("mapper"))?),
            _ => Block::Attention(Attention::new(width, config.c_cond, config.heads(level), &vb)?),
        }))
    };
    let last = usize::from(way == Way::Up && level > 0);
    let mapper = if way == Way::Down { place } else { count + place };
    let image = || Conv::new(config.effnet_embd, config.c_cond, 1, 1, vb.pp("effnet_mappers").pp(mapper));
    Ok(Stage {
        image: led.then(image).transpose()?,
        pieces: Blocks::load(&vb.pp(list), &place.to_string(), first + blocks + last, build)?,
    })
}
