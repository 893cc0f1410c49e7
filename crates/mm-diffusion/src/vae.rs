//! The decoder of `AutoencoderKL`, candle's own, and what surrounds it.

use crate::{Error, check::Check, folder::Folder, part::Part};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
pub(crate) use candle_transformers::models::z_image::vae::Decoder;
use candle_transformers::models::z_image::vae::VaeConfig;
use mm_probe::Library;
use serde::Deserialize;

/// The compute dtype: half precision overflows in it, and candle has no bf16 convolution on the CPU.
const DTYPE: DType = DType::F32;

/// Its part in a pipeline.
pub(crate) const fn part(name: &'static str, phase: u32, passes: u32) -> Part {
    Part { name, library: Library::Diffusers, phase, passes, dtype: Some(DTYPE) }
}

/// Builds the half of it that makes images.
pub(crate) fn decoder(config: &VaeConfig, vb: VarBuilder<'_>) -> Result<Decoder> {
    Decoder::new(config, vb.pp("decoder"))
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) latent_channels: usize,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    norm_num_groups: usize,
    scaling_factor: f64,
    shift_factor: f64,
    #[serde(default = "three")]
    in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
    #[serde(default = "yes")]
    use_post_quant_conv: bool,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    act_fn: String,
    up_block_types: Vec<String>,
}

const fn three() -> usize {
    3
}

const fn yes() -> bool {
    true
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> std::result::Result<Self, Error> {
        let (config, file) = folder.config::<Self>("vae/config.json")?;
        let check = Check(&file);
        check.supported(!config.use_post_quant_conv, "use_post_quant_conv", config.use_post_quant_conv, "false")?;
        let attention = config.mid_block_add_attention;
        check.supported(attention, "mid_block_add_attention", attention, "true")?;
        check.supported(config.act_fn == "silu", "act_fn", &config.act_fn, "silu")?;
        let plain = config.up_block_types.iter().all(|t| t == "UpDecoderBlock2D");
        check.supported(plain, "up_block_types", &config.up_block_types, "UpDecoderBlock2D")?;
        check.supported(config.out_channels == 3, "out_channels", config.out_channels, "3")?;
        check.size("latent_channels", config.latent_channels)?;
        check.layers("layers_per_block", config.layers_per_block, 1)?;
        check.size("norm_num_groups", config.norm_num_groups)?;
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        // Each block but one doubles the side: more than eight would be no image.
        check.holds(
            (1..=8).contains(&channels.len()),
            "block_out_channels",
            channels,
            "expected 1 to 8 numbers".into(),
        )?;
        for &width in channels {
            check.size("block_out_channels", width)?;
            let reason = format!("expected multiples of norm_num_groups, {groups}");
            check.holds(width.is_multiple_of(groups), "block_out_channels", channels, reason)?;
        }
        check.positive("scaling_factor", config.scaling_factor)?;
        check.holds(
            config.shift_factor.is_finite(),
            "shift_factor",
            config.shift_factor,
            "expected a number".into(),
        )?;
        Ok(config)
    }

    /// Pixels along a latent's side.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// candle's form of it.
    pub(crate) fn decoder(&self) -> VaeConfig {
        VaeConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            latent_channels: self.latent_channels,
            block_out_channels: self.block_out_channels.clone(),
            layers_per_block: self.layers_per_block,
            scaling_factor: self.scaling_factor,
            shift_factor: self.shift_factor,
            norm_num_groups: self.norm_num_groups,
        }
    }

    /// Latents `[1, channels, height, width]` in f32 to an image `[height, width, 3]` in f32, 0 to 1.
    pub(crate) fn decode(&self, decoder: &Decoder, latents: &Tensor) -> Result<Tensor> {
        let latents = ((latents / self.scaling_factor)? + self.shift_factor)?;
        let image = decoder.forward(&latents)?.squeeze(0)?.permute((1, 2, 0))?;
        ((image / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.contiguous()
    }
}
