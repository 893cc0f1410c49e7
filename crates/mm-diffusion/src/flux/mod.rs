//! FLUX.1 dev and schnell: CLIP and T5 text encoders, a transformer of two stacks, and `AutoencoderKL`.

mod block;
pub(crate) mod config;
mod pipeline;
#[cfg(test)]
mod tests;
pub(crate) mod transformer;

pub use pipeline::Flux;
