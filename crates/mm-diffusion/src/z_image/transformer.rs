//! `ZImageTransformer2DModel`: image and caption refined apart, then denoised as one sequence.

use super::{
    block::{Block, Context},
    config::Config,
};
use crate::{
    layers::{SINUSOIDS, layer_norm},
    patches::{Order, patchify, unpatchify},
    projection::Names,
    rope::{Position, Rope, Table},
    size::PATCH,
};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, VarBuilder, linear, rms_norm};
use mm_candle::Blocks;

/// Sequences are filled up to a multiple of this with tokens of their own that are attended to.
const MULTIPLE: usize = 32;

/// Width of the hidden layer above the sinusoids.
const TIMESTEP_HIDDEN: usize = 1024;

const FINAL_NORM_EPS: f64 = 1e-6;

pub(crate) struct Transformer {
    t_scale: f32,
    rope: Rope,
    timestep: (Linear, Linear),
    image: Linear,
    caption: (RmsNorm, Linear),
    image_pad: Tensor,
    caption_pad: Tensor,
    noise_refiner: Blocks<Block>,
    context_refiner: Blocks<Block>,
    layers: Blocks<Block>,
    scale: Linear,
    out: Linear,
    dtype: DType,
}

/// How many tokens fill a sequence up.
pub(crate) fn padding(tokens: usize) -> usize {
    tokens.next_multiple_of(MULTIPLE) - tokens
}

impl Transformer {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (names, vb) = Names::find(vb, "x_embedder.weight", "all_x_embedder.2-1.weight");
        let (dim, small, patch) = (config.dim, config.timestep_width(), config.patch_values());
        let block = |modulated| move |_, vb: VarBuilder<'_>| Block::new(config, names, modulated, vb);
        let stack = |name, count, modulated| Blocks::load(&vb, name, count, block(modulated));
        // The original names leave the size of patches out.
        let last = vb.pp(names.pick("all_final_layer.2-1", "final_layer"));
        Ok(Self {
            t_scale: config.t_scale,
            rope: Rope::new(config.rope_theta, &config.axes_dims),
            timestep: (
                linear(SINUSOIDS, TIMESTEP_HIDDEN, vb.pp("t_embedder.mlp.0"))?,
                linear(TIMESTEP_HIDDEN, small, vb.pp("t_embedder.mlp.2"))?,
            ),
            image: linear(patch, dim, vb.pp(names.pick("all_x_embedder.2-1", "x_embedder")))?,
            caption: (
                rms_norm(config.cap_feat_dim, config.norm_eps, vb.pp("cap_embedder.0"))?,
                linear(config.cap_feat_dim, dim, vb.pp("cap_embedder.1"))?,
            ),
            image_pad: vb.get((1, dim), "x_pad_token")?,
            caption_pad: vb.get((1, dim), "cap_pad_token")?,
            noise_refiner: stack("noise_refiner", config.n_refiner_layers, true)?,
            context_refiner: stack("context_refiner", config.n_refiner_layers, false)?,
            layers: stack("layers", config.n_layers, true)?,
            scale: linear(small, dim, last.pp("adaLN_modulation.1"))?,
            out: linear(dim, patch, last.pp("linear"))?,
            dtype: vb.dtype(),
        })
    }

    /// The same latents `[1, channels, height, width]` at time `t` (0 noise, 1 image) towards each of
    /// the captions `[tokens, width]`, in one pass. Returns `[captions, channels, height, width]` in f32.
    ///
    /// Captions of different length are filled up to the longest and the filling is masked, so an
    /// item's result does not depend on what else is in the batch.
    pub(crate) fn forward(&self, latents: &Tensor, t: f32, captions: &[Tensor]) -> Result<Tensor> {
        let batch = captions.len();
        let (_, channels, height, width) = latents.dims4()?;
        let (rows, columns) = (height / PATCH, width / PATCH);
        let device = self.image.weight().device();
        let timestep = self.embed_timestep(t, device)?;
        let plan = Layout::new(captions, rows, columns)?;

        let tokens = patchify(&latents.to_device(device)?.to_dtype(self.dtype)?, Order::ChannelsLast)?;
        let image = self.image.forward(&tokens)?;
        let image = pad(&image, &self.image_pad, padding(rows * columns))?.unsqueeze(0)?;
        let mut image = image.repeat((batch, 1, 1))?;
        let image_rope = self.rope.table(&plan.image, device)?;
        for block in self.noise_refiner.iter() {
            image = block?.forward(&image, &Context { rope: &image_rope, mask: None, timestep: &timestep })?;
        }

        let (mut caption, caption_rope) =
            (self.embed_captions(captions, &plan)?, self.rope.table(&plan.captions, device)?);
        let mask = plan.mask(0, device)?;
        for block in self.context_refiner.iter() {
            caption =
                block?.forward(&caption, &Context { rope: &caption_rope, mask: mask.as_ref(), timestep: &timestep })?;
        }

        // The image comes first, so what fills up the shorter captions stays at the end.
        let image_tokens = image.dim(1)?;
        let mut x = Tensor::cat(&[&image, &caption], 1)?;
        let (rope, mask): (Table, _) = (image_rope.then(&caption_rope)?, plan.mask(image_tokens, device)?);
        for block in self.layers.iter() {
            x = block?.forward(&x, &Context { rope: &rope, mask: mask.as_ref(), timestep: &timestep })?;
        }

        let x = x.narrow(1, 0, rows * columns)?;
        let scale = (self.scale.forward(&timestep.silu()?)? + 1.0)?.unsqueeze(1)?;
        let x = self.out.forward(&layer_norm(&x, FINAL_NORM_EPS)?.broadcast_mul(&scale)?)?;
        unpatchify(&x, channels, rows, columns, Order::ChannelsLast)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    }

    /// `[1, width]`; the sinusoids are computed in f32 whatever the compute dtype.
    fn embed_timestep(&self, t: f32, device: &Device) -> Result<Tensor> {
        let half = SINUSOIDS / 2;
        let frequency = |i| (-(10_000f64.ln() as f32) * i as f32 / half as f32).exp();
        let angles: Vec<f32> = (0..half).map(|i| t * self.t_scale * frequency(i)).collect();
        let angles = Tensor::from_vec(angles, (1, half), device)?;
        let sinusoids = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(self.dtype)?;
        self.timestep.1.forward(&self.timestep.0.forward(&sinusoids)?.silu()?)
    }

    /// `[captions, longest, width]`.
    fn embed_captions(&self, captions: &[Tensor], layout: &Layout) -> Result<Tensor> {
        let embed = |caption: &Tensor| {
            let caption = caption.to_device(self.image.weight().device())?.to_dtype(self.dtype)?;
            let tokens = self.caption.1.forward(&self.caption.0.forward(&caption)?)?;
            let padded = pad(&tokens, &self.caption_pad, padding(caption.dim(0)?))?;
            padded.pad_with_zeros(0, 0, layout.longest - padded.dim(0)?)
        };
        Tensor::stack(&captions.iter().map(embed).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Where the tokens of each item are.
struct Layout {
    /// Tokens of each caption with its padding.
    lengths: Vec<usize>,
    longest: usize,
    captions: Vec<Vec<Position>>,
    image: Vec<Vec<Position>>,
}

impl Layout {
    fn new(captions: &[Tensor], rows: usize, columns: usize) -> Result<Self> {
        let length = |caption: &Tensor| Ok(caption.dim(0)?.next_multiple_of(MULTIPLE));
        let lengths = captions.iter().map(length).collect::<Result<Vec<usize>>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        // A caption's padding goes on counting; the image's padding, and what is masked, is at the origin.
        let caption = |&length: &usize| (1..=longest).map(|i| [if i <= length { i } else { 0 }, 0, 0]).collect();
        let image = |&length: &usize| {
            let grid = (0..rows).flat_map(|row| (0..columns).map(move |column| [length + 1, row, column]));
            grid.chain(std::iter::repeat_n([0; 3], padding(rows * columns))).collect()
        };
        let (captions, image) = (lengths.iter().map(caption).collect(), lengths.iter().map(image).collect());
        Ok(Self { lengths, longest, captions, image })
    }

    /// Hides what fills up the shorter captions; `None` where there is nothing to hide. `before`
    /// tokens that all items have come first.
    fn mask(&self, before: usize, device: &Device) -> Result<Option<Tensor>> {
        if self.lengths.iter().all(|&length| length == self.longest) {
            return Ok(None);
        }
        let tokens = before + self.longest;
        let hidden =
            |&length: &usize| (0..tokens).map(move |i| if i < before + length { 0.0 } else { f32::NEG_INFINITY });
        let values: Vec<f32> = self.lengths.iter().flat_map(hidden).collect();
        Tensor::from_vec(values, (self.lengths.len(), 1, 1, tokens), device).map(Some)
    }
}

/// Appends `count` copies of a token.
fn pad(tokens: &Tensor, token: &Tensor, count: usize) -> Result<Tensor> {
    match count {
        0 => Ok(tokens.clone()),
        _ => Tensor::cat(&[tokens, &token.repeat((count, 1))?], 0),
    }
}
