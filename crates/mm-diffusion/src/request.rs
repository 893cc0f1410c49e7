//! What is asked for, what comes back, and what is told on the way.

use crate::{Error, trace::Trace};
use candle_core::{DType, Tensor};

/// One image to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to draw.
    pub prompt: String,
    /// What to lead away from; only read with guidance.
    pub negative: String,
    /// How strongly: `positive + guidance × (positive − negative)`. Zero makes no negative pass. To [`Flux`](crate::Flux) it is
    /// an input of its transformer; [`Sd3`](crate::Sd3), [`StableDiffusion`](crate::StableDiffusion) and
    /// [`Wuerstchen`](crate::Wuerstchen) count from the negative. Each is the `guidance_scale` of diffusers' pipeline.
    pub guidance: f64,
    /// Denoising steps; of [`Wuerstchen`](crate::Wuerstchen)'s prior, whose decoder makes a fifth as many.
    pub steps: u32,
    /// Seed of the initial latents: the same on every platform.
    pub seed: u64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Latents to start from instead of the seed's, `[1, channels, height, width]` in latents.
    pub initial_latents: Option<Tensor>,
    /// Whether to keep the tensors on the way. Costs an extra pass of the transformer.
    pub trace: bool,
}

impl Default for Request {
    /// 1024 × 1024 pixels, 8 steps, no guidance, seed 0.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative: String::new(),
            guidance: 0.0,
            steps: 8,
            seed: 0,
            width: 1024,
            height: 1024,
            initial_latents: None,
            trace: false,
        }
    }
}

/// A pass that has just ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// `text_encoder`, `transformer` or `vae`; other families' `text_encoder_2` and `text_encoder_3`, and `unet`;
    /// Würstchen's `prior_text_encoder`, `prior_prior`, `decoder` and `vqgan`.
    pub component: &'static str,
    /// Passes of it that are done, from 1.
    pub pass: u32,
    /// Passes of it that the request needs.
    pub passes: u32,
}

/// An image.
#[derive(Clone, Debug)]
pub struct Generated {
    /// `[height, width, 3]`, f32, 0 to 1.
    pub image: Tensor,
    /// The tensors on the way, where the request asked for them.
    pub trace: Option<Trace>,
}

impl Generated {
    /// The image as bytes: rows from the top, red, green, blue.
    ///
    /// # Errors
    /// `Compute`: the image isn't what it should be.
    pub fn rgb8(&self) -> Result<Vec<u8>, Error> {
        let levels = ((&self.image * 255.0)?.round()?).clamp(0.0, 255.0)?.to_dtype(DType::U8)?;
        Ok(levels.flatten_all()?.to_vec1()?)
    }
}
