//! `SD3Transformer2DModel`: one stack of joint blocks.

use super::{
    block::{Block, Streams},
    config::Config,
};
use crate::{
    joint::modulate,
    layers::{Embedder, SINUSOIDS, sinusoids},
    patches::{Order, patchify, unpatchify},
    projection::{Names, modulation},
    size::PATCH,
};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, VarBuilder, conv2d};
use mm_candle::{Blocks, Linear, linear};

pub(crate) struct Transformer {
    patch: Patch,
    /// `[1, places, width]`: a square, of which the middle is taken.
    positions: Tensor,
    side: usize,
    text: Linear,
    timestep: Embedder,
    pooled: Embedder,
    blocks: Blocks<Block>,
    modulation: Linear,
    /// Whether the last modulation has its shift before its scale.
    shift_first: bool,
    out: Linear,
    dtype: DType,
}

impl Transformer {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let ((names, vb), width, side) = (
            Names::find(vb, "x_embedder.proj.weight", "pos_embed.proj.weight"),
            config.width(),
            config.pos_embed_max_size,
        );
        let layers = names.pick(("linear_1", "linear_2"), ("mlp.0", "mlp.2"));
        let embedder =
            |input, diffusers, original| Embedder::new(input, width, layers, &vb.pp(names.pick(diffusers, original)));
        let last = |output, diffusers, original| linear(width, output, vb.pp(names.pick(diffusers, original)));
        Ok(Self {
            patch: Patch::new(config, &vb.pp(names.pick("pos_embed.proj", "x_embedder.proj")))?,
            positions: vb.get((1, side * side, width), names.pick("pos_embed.pos_embed", "pos_embed"))?,
            side,
            text: linear(config.joint_attention_dim, width, vb.pp("context_embedder"))?,
            timestep: embedder(SINUSOIDS, "time_text_embed.timestep_embedder", "t_embedder")?,
            pooled: embedder(config.pooled_projection_dim, "time_text_embed.text_embedder", "y_embedder")?,
            blocks: Blocks::load(
                &vb,
                names.pick("transformer_blocks", "joint_blocks"),
                config.num_layers,
                |index, vb| Block::new(config, names, index, &vb),
            )?,
            modulation: last(2 * width, "norm_out.linear", "final_layer.adaLN_modulation.1")?,
            shift_first: names == Names::Original,
            out: last(config.in_channels * PATCH * PATCH, "proj_out", "final_layer.linear")?,
            dtype: vb.dtype(),
        })
    }

    /// The same latents `[1, channels, height, width]` at a timestep (1000 noise, 0 image) towards each prompt of a batch:
    /// `text` is `[batch, tokens, width]`, `pooled` `[batch, width]`. Returns `[batch, channels, height, width]` in f32.
    pub(crate) fn forward(&self, latents: &Tensor, timestep: f32, text: &Tensor, pooled: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = latents.dims4()?;
        let (rows, columns) = (height / PATCH, width / PATCH);
        let (batch, device) = (text.dim(0)?, self.text.device());
        let [latents, text, pooled] = [latents, text, pooled].map(|input| input.to_device(device));
        let (latents, text, pooled) = (latents?, text?, pooled?);
        let image = self.patch.forward(&latents.to_dtype(self.dtype)?)?;
        let mut image = (image + self.middle(rows, columns)?)?.repeat((batch, 1, 1))?;
        let mut text = self.text.forward(&text.to_dtype(self.dtype)?)?;
        let timestep = self.timestep.forward(&sinusoids(&Tensor::new(&[timestep], device)?, self.dtype)?)?;
        let conditioning = self.pooled.forward(&pooled.to_dtype(self.dtype)?)?.broadcast_add(&timestep)?.silu()?;
        for block in self.blocks.iter() {
            let streams: Streams = block?.forward(&image, &text, &conditioning)?;
            image = streams.image;
            text = streams.text.unwrap_or(text);
        }
        let [first, second] = modulation(&self.modulation, &conditioning)?;
        let (shift, scale) = if self.shift_first { (first, second) } else { (second, first) };
        let image = self.out.forward(&modulate(&image, &shift, &scale)?)?;
        unpatchify(&image, channels, rows, columns, Order::ChannelsLast)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    }

    /// The positions of an image, `[1, patches, width]`: those around the centre.
    fn middle(&self, rows: usize, columns: usize) -> Result<Tensor> {
        if rows > self.side || columns > self.side {
            candle_core::bail!("{rows} by {columns} patches in a table of positions of {} by {0}", self.side);
        }
        let (top, left) = ((self.side - rows) / 2, (self.side - columns) / 2);
        let square = self.positions.reshape((1, self.side, self.side, ()))?;
        square.narrow(1, top, rows)?.narrow(2, left, columns)?.reshape((1, rows * columns, ()))
    }
}

/// A token of each patch.
struct Patch(Conv2d);

impl Patch {
    fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let windows = Conv2dConfig { stride: PATCH, ..Default::default() };
        Ok(Self(conv2d(config.in_channels, config.width(), PATCH, windows, vb.clone())?))
    }

    /// `[1, patches, width]`.
    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        if latents.dtype() == DType::F32 {
            return self.0.forward(latents)?.flatten_from(2)?.transpose(1, 2)?.contiguous();
        }
        // candle has no convolution in half precision on the CPU. Windows that don't overlap are a layer over patches.
        let kernel = self.0.weight().flatten_from(1)?;
        candle_nn::Linear::new(kernel, self.0.bias().cloned())
            .forward(&patchify(latents, Order::ChannelsFirst)?)?
            .unsqueeze(0)
    }
}
