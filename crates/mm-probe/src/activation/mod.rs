//! What computing a component takes on top of its weights, from its tensors' names and shapes and the request's size.
//!
//! The figures are the peaks of this project's runtime, candle 0.11: attention scores are materialized, every temporary
//! lives to the end of its statement. Each family's file says what is alive at the peak and where that was read.
//! All but Wan, which candle has not, are checked against measured peaks (`tests/tests/activations.rs`).

mod facts;
mod flux;
mod kernels;
mod sd3;
mod text;
mod unet;
mod vae;
mod wan;
mod z_image;

#[cfg(test)]
mod tests;

use mm_plan::{DType, DeviceKind};
use serde_json::Value;

pub(crate) use facts::Facts;
use kernels::{Kernels, WORKSPACE};

/// A request's size, as far as activations depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Width of the image or video, pixels.
    pub width: u32,
    /// Height, pixels.
    pub height: u32,
    /// Images, or prompts, in one pass.
    pub batch: u32,
    /// The element type computed in: `f64`, `f32`, `f16` or `bf16`; VAEs compute in `f32` whatever it is.
    pub dtype: DType,
    /// Frames of a video, 1 for images; 0: the family's usual number (Wan: 81).
    pub frames: u32,
    /// Classifier-free guidance: doubles the denoiser's batch where pipelines do both halves in one pass
    /// (not FLUX, whose guidance is an input, nor Wan, which makes two passes).
    pub guided: bool,
    /// Where it is computed. On a host candle widens the operands of each `bf16` matrix product to `f32`.
    pub device: DeviceKind,
    /// Pixels along a latent's side, which the VAE decides ([`Architecture::pixels_per_latent`]); `None`: as usual for the family.
    pub pixels_per_latent: Option<u32>,
}

impl Default for Workload {
    /// One image of 1024² pixels in `bf16` on a card, without guidance.
    fn default() -> Self {
        Self {
            width: 1024,
            height: 1024,
            batch: 1,
            dtype: DType::Bf16,
            frames: 0,
            guided: false,
            device: DeviceKind::Discrete,
            pixels_per_latent: None,
        }
    }
}

/// A known architecture with the sizes that its activations depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture(Family);

#[derive(Clone, Debug, PartialEq)]
enum Family {
    Flux(flux::Flux),
    Sd3(sd3::Sd3),
    ZImage(z_image::ZImage),
    Unet(unet::Unet),
    Wan(wan::Wan),
    T5(text::T5),
    Qwen3(text::Qwen3),
    Clip(text::Clip),
    Kl(vae::Kl),
    WanVae(vae::WanVae),
}

/// More than any machine has: a figure beyond it says that the sizes are absurd.
const ABSURD: f64 = (1u64 << 60) as f64;

impl Architecture {
    /// `flux`, `sd3`, `z_image`, `unet`, `wan`, `t5`, `umt5`, `qwen3`, `clip`, `autoencoder_kl`, `autoencoder_kl_wan`.
    pub fn name(&self) -> &'static str {
        match &self.0 {
            Family::Flux(_) => "flux",
            Family::Sd3(_) => "sd3",
            Family::ZImage(_) => "z_image",
            Family::Unet(_) => "unet",
            Family::Wan(_) => "wan",
            Family::T5(t5) => t5.name(),
            Family::Qwen3(_) => "qwen3",
            Family::Clip(_) => "clip",
            Family::Kl(_) => "autoencoder_kl",
            Family::WanVae(_) => "autoencoder_kl_wan",
        }
    }

    /// Pixels along a latent's side, where this is a VAE.
    pub fn pixels_per_latent(&self) -> Option<u32> {
        match &self.0 {
            Family::Kl(vae) => Some(vae.factor()),
            Family::WanVae(vae) => Some(vae.factor()),
            _ => None,
        }
    }

    /// Peak bytes on top of the weights in one pass. VAEs are taken to decode, text encoders to have their pipeline's
    /// usual number of tokens.
    ///
    /// `None` for sizes that are zero or beyond any machine, and for types nothing is computed in.
    pub fn activation(&self, workload: &Workload) -> Option<u64> {
        if workload.width == 0 || workload.height == 0 || workload.batch == 0 || workload.pixels_per_latent == Some(0) {
            return None;
        }
        let k = Kernels::of(workload)?;
        let bytes = match &self.0 {
            Family::Flux(flux) => flux.peak(workload, &k),
            Family::Sd3(sd3) => sd3.peak(workload, &k),
            Family::ZImage(z_image) => z_image.peak(workload, &k),
            Family::Unet(unet) => unet.peak(workload, &k),
            Family::Wan(wan) => wan.peak(workload, &k),
            Family::T5(t5) => t5.peak(workload, &k),
            Family::Qwen3(qwen3) => qwen3.peak(workload, &k),
            Family::Clip(clip) => clip.peak(workload, &k),
            Family::Kl(vae) => vae.peak(workload, &k.f32()),
            Family::WanVae(vae) => vae.peak(workload, &k.f32()),
        };
        let bytes = bytes + WORKSPACE;
        (1.0..ABSURD).contains(&bytes).then_some(bytes.ceil() as u64)
    }
}

/// Recognizes an architecture by its tensors' names and shapes; the class and the configuration only tell what those
/// leave open, such as the number of heads.
pub(crate) fn recognize(facts: &Facts<'_>) -> Option<Architecture> {
    let family = flux::Flux::of(facts)
        .map(Family::Flux)
        .or_else(|| sd3::Sd3::of(facts).map(Family::Sd3))
        .or_else(|| z_image::ZImage::of(facts).map(Family::ZImage))
        .or_else(|| unet::Unet::of(facts).map(Family::Unet))
        .or_else(|| wan::Wan::of(facts).map(Family::Wan))
        .or_else(|| text::T5::of(facts).map(Family::T5))
        .or_else(|| text::Qwen3::of(facts).map(Family::Qwen3))
        .or_else(|| text::Clip::of(facts).map(Family::Clip))
        .or_else(|| vae::WanVae::of(facts).map(Family::WanVae))
        .or_else(|| vae::Kl::of(facts).map(Family::Kl))?;
    Some(Architecture(family))
}

/// The architecture that tensors of these names and shapes (`[out, in]`) belong to, with [`Architecture::activation`]
/// for the workload; `None` where either is unknown. `config` is the component's own `config.json`, `class` its class.
pub fn estimate<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
    config: Option<&'a Value>,
    class: Option<&'a str>,
    workload: &Workload,
) -> Option<(Architecture, u64)> {
    let architecture = recognize(&Facts::new(tensors, config, class))?;
    let bytes = architecture.activation(workload)?;
    Some((architecture, bytes))
}
