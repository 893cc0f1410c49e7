//! `FluxTransformer2DModel`: a stack of double blocks, then a stack of single ones.

use super::{
    block::{Context, DoubleBlock, SingleBlock},
    config::Config,
};
use crate::{
    joint::modulate,
    layers::{Embedder, SINUSOIDS, sinusoids},
    patches::{Order, patchify, unpatchify},
    projection::{Names, modulation},
    rope::{Position, Rope},
    size::PATCH,
};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Blocks, Linear, linear};

/// What a time and a guidance of 1 are to the sinusoids.
const TIME_FACTOR: f64 = 1000.0;

/// Of the positions; the same in every checkpoint.
const THETA: f64 = 10_000.0;

pub(crate) struct Transformer {
    rope: Rope,
    image: Linear,
    text: Linear,
    timestep: Embedder,
    guidance: Option<Embedder>,
    pooled: Embedder,
    double: Blocks<DoubleBlock>,
    single: Blocks<SingleBlock>,
    modulation: Linear,
    /// Whether the last modulation has its shift before its scale.
    shift_first: bool,
    out: Linear,
    dtype: DType,
}

impl Transformer {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let ((names, vb), width) = (Names::find(vb, "img_in.weight", "x_embedder.weight"), config.width());
        let layers = names.pick(("linear_1", "linear_2"), ("in_layer", "out_layer"));
        let embedder =
            |input, diffusers, original| Embedder::new(input, width, layers, &vb.pp(names.pick(diffusers, original)));
        let guidance = || embedder(SINUSOIDS, "time_text_embed.guidance_embedder", "guidance_in");
        let layer = |input, output, diffusers, original| linear(input, output, vb.pp(names.pick(diffusers, original)));
        Ok(Self {
            rope: Rope::single(THETA, &config.axes_dims_rope),
            image: layer(config.in_channels, width, "x_embedder", "img_in")?,
            text: layer(config.joint_attention_dim, width, "context_embedder", "txt_in")?,
            timestep: embedder(SINUSOIDS, "time_text_embed.timestep_embedder", "time_in")?,
            guidance: config.guidance_embeds.then(guidance).transpose()?,
            pooled: embedder(config.pooled_projection_dim, "time_text_embed.text_embedder", "vector_in")?,
            double: Blocks::load(
                &vb,
                names.pick("transformer_blocks", "double_blocks"),
                config.num_layers,
                |_, vb| DoubleBlock::new(config, names, &vb),
            )?,
            single: Blocks::load(
                &vb,
                names.pick("single_transformer_blocks", "single_blocks"),
                config.num_single_layers,
                |_, vb| SingleBlock::new(config, names, &vb),
            )?,
            modulation: layer(width, 2 * width, "norm_out.linear", "final_layer.adaLN_modulation.1")?,
            shift_first: names == Names::Original,
            out: layer(width, config.in_channels, "proj_out", "final_layer.linear")?,
            dtype: vb.dtype(),
        })
    }

    /// Latents `[1, channels, height, width]` at a timestep (1000 noise, 0 image) towards a prompt: `text` is
    /// `[1, tokens, width]`, `pooled` `[1, width]`. Returns the shape of the latents, in f32. Where the checkpoint has no
    /// use for guidance it is not looked at.
    pub(crate) fn forward(
        &self,
        latents: &Tensor,
        timestep: f32,
        guidance: f32,
        text: &Tensor,
        pooled: &Tensor,
    ) -> Result<Tensor> {
        let (_, channels, height, width) = latents.dims4()?;
        let (rows, columns) = (height / PATCH, width / PATCH);
        let device = self.text.device();
        let [latents, text, pooled] = [latents, text, pooled].map(|input| input.to_device(device));
        let (latents, text, pooled) = (latents?, text?, pooled?);
        let mut text = self.text.forward(&text.to_dtype(self.dtype)?)?;
        let mut image =
            self.image.forward(&patchify(&latents.to_dtype(self.dtype)?, Order::ChannelsFirst)?.unsqueeze(0)?)?;
        let conditioning = self.condition(timestep, guidance, &pooled)?.silu()?;
        let tokens = text.dim(1)?;
        let grid = (0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column]));
        let positions: Vec<Position> = std::iter::repeat_n([0; 3], tokens).chain(grid).collect();
        let rope = self.rope.table(&[positions], device)?;
        let context = Context { rope: &rope, conditioning: &conditioning };

        for block in self.double.iter() {
            (image, text) = block?.forward(&image, &text, &context)?;
        }
        let mut both = Tensor::cat(&[&text, &image], 1)?;
        for block in self.single.iter() {
            both = block?.forward(&both, &context)?;
        }
        let image = both.narrow(1, tokens, rows * columns)?;
        let [first, second] = modulation(&self.modulation, &conditioning)?;
        let (shift, scale) = if self.shift_first { (first, second) } else { (second, first) };
        let image = self.out.forward(&modulate(&image, &shift, &scale)?)?;
        unpatchify(&image, channels, rows, columns, Order::ChannelsFirst)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    }

    /// What modulates all blocks, `[1, width]`.
    fn condition(&self, timestep: f32, guidance: f32, pooled: &Tensor) -> Result<Tensor> {
        let sinusoids = |value: Tensor| sinusoids(&(value * TIME_FACTOR)?.to_dtype(DType::F32)?, self.dtype);
        // Down and up again, rounded each time: in half precision that is another timestep.
        let rounded = |value| rounded(value, self.dtype, pooled.device());
        let time = rounded(timestep)?.div(&rounded(TIME_FACTOR as f32)?)?;
        let mut sum = self.timestep.forward(&sinusoids(time)?)?;
        if let Some(embedder) = &self.guidance {
            sum = (sum + embedder.forward(&sinusoids(rounded(guidance)?)?)?)?;
        }
        sum + self.pooled.forward(&pooled.to_dtype(self.dtype)?)?
    }
}

/// In the compute dtype, to which the reference rounds what it is given.
fn rounded(value: f32, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::new(&[value], device)?.to_dtype(dtype)
}
