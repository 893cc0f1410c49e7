//! Stable Diffusion 1.5, 2.1 and XL: one CLIP or two, a UNet, and `AutoencoderKL`.

mod attention;
mod config;
mod encode;
mod pipeline;
mod resnet;
#[cfg(test)]
mod tests;
mod time;
mod unet;

pub use pipeline::StableDiffusion;
