//! Stable Diffusion 3 and 3.5: two CLIPs and T5, a transformer of joint blocks (MMDiT, and MMDiT-X), and `AutoencoderKL`.

mod block;
mod config;
mod encode;
mod pipeline;
#[cfg(test)]
mod tests;
mod transformer;

pub use pipeline::Sd3;
