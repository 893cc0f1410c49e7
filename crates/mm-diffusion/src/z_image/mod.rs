//! Z-Image: a Qwen3 text encoder, a single-stream transformer, and `AutoencoderKL`.

mod block;
mod config;
mod pipeline;
mod transformer;

pub use pipeline::ZImage;
