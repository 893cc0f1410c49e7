//! The decoder of `AutoencoderKL`, candle's own, and what surrounds it.

use crate::{Error, check::Check, folder::Folder, part::Part};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Conv2d, VarBuilder, conv2d};
use candle_transformers::models::z_image::vae::{self, VaeConfig};
use mm_probe::Library;
use serde::Deserialize;

/// The compute dtype: half precision overflows in it, and candle has no bf16 convolution on the CPU.
const DTYPE: DType = DType::F32;

/// Its part in a pipeline.
pub(crate) const fn part(name: &'static str, phase: u32, passes: u32) -> Part {
    Part { name, library: Library::Diffusers, phase, passes, dtype: Some(DTYPE) }
}

/// The half of it that makes images.
pub(crate) struct Decoder {
    /// Of latents, before all else.
    mix: Option<Conv2d>,
    decoder: vae::Decoder,
}

/// All that decides what the half is.
#[derive(Clone, Debug)]
pub(crate) struct Half {
    config: VaeConfig,
    mixes: bool,
}

/// Builds it.
pub(crate) fn decoder(half: &Half, vb: VarBuilder<'_>) -> Result<Decoder> {
    let channels = half.config.latent_channels;
    let mix = || conv2d(channels, channels, 1, Default::default(), vb.pp("post_quant_conv"));
    Ok(Decoder {
        mix: half.mixes.then(mix).transpose()?,
        decoder: vae::Decoder::new(&half.config, with_recent_names(vb).pp("decoder"))?,
    })
}

/// Diffusers' first checkpoints, those of Stable Diffusion 1 and 2, call the layers of attention by other names.
fn with_recent_names(vb: VarBuilder<'_>) -> VarBuilder<'_> {
    const ATTENTION: &str = "decoder.mid_block.attentions.0.";
    const NAMES: [(&str, &str); 4] =
        [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];
    if !vb.contains_tensor(&format!("{ATTENTION}query.weight")) {
        return vb;
    }
    vb.rename_f(|name| {
        let Some((before, layer)) = name.split_once(ATTENTION) else { return name.to_owned() };
        let renamed = NAMES.iter().find_map(|(now, then)| Some((*then, layer.strip_prefix(now)?)));
        renamed.map_or_else(|| name.to_owned(), |(then, kind)| format!("{before}{ATTENTION}{then}{kind}"))
    })
}

impl Decoder {
    /// Latents `[1, channels, height, width]` to values of about -1 to 1, `[1, 3, height, width]`.
    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.mix {
            Some(mix) => self.decoder.forward(&mix.forward(latents)?),
            None => self.decoder.forward(latents),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) latent_channels: usize,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    norm_num_groups: usize,
    #[serde(default = "scaling")]
    scaling_factor: f64,
    shift_factor: Option<f64>,
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

/// Of Stable Diffusion 1, whose files don't say.
const fn scaling() -> f64 {
    0.18215
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> std::result::Result<Self, Error> {
        let (config, file) = folder.config::<Self>("vae/config.json")?;
        let check = Check(&file);
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
        let shift = config.shift_factor.is_none_or(f64::is_finite);
        check.holds(shift, "shift_factor", config.shift_factor, "expected a number, or null".into())?;
        Ok(config)
    }

    /// Pixels along a latent's side.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The half that makes images.
    pub(crate) fn decoder(&self) -> Half {
        let config = VaeConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            latent_channels: self.latent_channels,
            block_out_channels: self.block_out_channels.clone(),
            layers_per_block: self.layers_per_block,
            scaling_factor: self.scaling_factor,
            shift_factor: self.shift_factor.unwrap_or(0.0),
            norm_num_groups: self.norm_num_groups,
        };
        Half { config, mixes: self.use_post_quant_conv }
    }

    /// Latents `[1, channels, height, width]` in f32 to an image `[height, width, 3]` in f32, 0 to 1.
    pub(crate) fn decode(&self, decoder: &Decoder, latents: &Tensor) -> Result<Tensor> {
        let latents = ((latents / self.scaling_factor)? + self.shift_factor.unwrap_or(0.0))?;
        let image = decoder.forward(&latents)?.squeeze(0)?.permute((1, 2, 0))?;
        ((image / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.contiguous()
    }
}
