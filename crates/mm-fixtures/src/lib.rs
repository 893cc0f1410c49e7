//! Checkpoints of real layout, names, shapes and dtypes, at any scale, for tests and benches.
//!
//! ```
//! use mm_fixtures::{Fixture, Model, Options};
//!
//! let options = Options { layers: Some(2), scale: 0.001, only: vec!["transformer".into()], ..Options::default() };
//! let fixture = Fixture::new(Model::FluxDev, &options)?;
//! let tensor = fixture.components[0].tensors.iter().find(|t| t.name == "transformer_blocks.1.attn.to_q.weight");
//! assert_eq!(tensor.unwrap().block, Some(("transformer_blocks".into(), 1)));
//!
//! let folder = tempfile::tempdir()?;
//! let written = fixture.write(&folder.path().join("flux"))?;
//! assert!(written.paths.iter().any(|path| path.ends_with("transformer/diffusion_pytorch_model.safetensors")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Guarantees, each with the test file that checks it:
//! 1. At full size the parameters are those of the published models (`tests/sizes.rs`).
//! 2. What is written is what the fixture lists, and any safetensors reader reads it (`tests/files.rs`).
//! 3. A tensor's random values depend on its component, its name and the seed alone: they are the same on every
//!    platform, in every dtype up to rounding, however the shards are cut (`tests/fill.rs`).
//! 4. A sparse checkpoint takes little more room than its headers (`tests/fill.rs`).
//! 5. A GGUF file has the names and types that converters give, and its blocks hold the values to within their rounding
//!    (`tests/gguf.rs`).
//! 6. A refused option is named (`tests/options.rs`).
#![forbid(unsafe_code)]

mod builder;
mod error;
mod file;
mod fill;
mod fixture;
mod gguf;
mod layout;
mod models;
mod options;
mod quantize;
mod sizes;
mod variants;

pub use error::Error;
pub use file::write_file;
pub use fixture::{Component, Fixture, Init, Tensor, Written};
pub use gguf::write_gguf;
pub use models::Model;
pub use options::{Fill, Layout, Options, Quantization};
