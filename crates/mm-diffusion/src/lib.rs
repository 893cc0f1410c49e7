//! Text-to-image pipelines on mm-candle: tokenizers, forwards on `Blocks`, schedulers.
//!
//! A checkpoint is a Diffusers folder; every size comes from its own configuration files.
//!
//! ```
//! use mm_diffusion::{Folder, LoadOptions, Request, Unmanaged, ZImage};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../checkpoints/shapes");
//! let pipeline = ZImage::load(&Folder::open(folder)?, &LoadOptions::default(), &Unmanaged)?;
//! let request = Request {
//!     prompt: "a large red circle at the left on a white background".into(),
//!     guidance: 3.0,
//!     steps: 2,
//!     width: 64,
//!     height: 64,
//!     ..Request::default()
//! };
//! let image = pipeline.generate(&request, |progress| println!("{progress:?}"))?;
//! assert_eq!(image.rgb8()?.len(), 64 * 64 * 3);
//! # Ok::<(), mm_diffusion::Error>(())
//! ```
//!
//! Guarantees, each with the test file that checks it:
//! 1. Every tensor on the way equals diffusers' (`tests/golden.rs`), within rounding.
//! 2. A seed makes the same initial latents on every platform (`tests/generate.rs`).
//! 3. A request that can't be fulfilled is refused before anything is computed (`tests/bad_requests.rs`).
//! 4. A broken checkpoint is an error that names the file, and the key or tensor (`tests/bad_folders.rs`).
//! 5. In f32, T5, CLIP, the transformers of FLUX.1 and Stable Diffusion 3 and the UNet of 1.5 and 2.1 equal candle's own bit for
//!    bit (unit tests beside them), the UNet but for GELU, which candle approximates.
//! 6. With a LoRA latents and images equal diffusers' too, under the names of either kind (the workspace's `tests/tests/lora.rs`).
//!
//! [`Pipeline`] is whichever of [`ZImage`], [`Flux`], [`Sd3`], [`StableDiffusion`] and [`Wuerstchen`] a folder holds.

#![forbid(unsafe_code)]

mod check;
mod clip;
mod conv;
mod denoise;
mod describe;
mod error;
mod flux;
mod folder;
#[cfg(test)]
mod gguf_tests;
mod guidance;
#[cfg(test)]
mod invented;
mod joint;
mod latents;
mod layers;
mod load;
mod lora;
mod managed;
mod padded;
mod part;
mod patches;
mod pipeline;
mod projection;
mod qwen3;
mod request;
mod rope;
mod sampler;
mod scheduler;
mod sd;
mod sd3;
mod size;
mod t5;
mod template;
mod tokenizer;
mod trace;
mod vae;
mod wuerstchen;
mod z_image;

pub use describe::describe;
pub use error::Error;
pub use flux::Flux;
pub use folder::Folder;
pub use load::{LoadOptions, Loader, Passes, Unmanaged};
pub use lora::Adapted;
pub use pipeline::Pipeline;
pub use request::{Generated, Progress, Request};
pub use scheduler::{Schedule, Scheduler};
pub use sd::StableDiffusion;
pub use sd3::Sd3;
pub use tokenizer::Tokenizer;
pub use trace::Trace;
pub use wuerstchen::Wuerstchen;
pub use z_image::ZImage;
