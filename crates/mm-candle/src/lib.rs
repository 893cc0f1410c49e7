//! Runs candle models in less memory than their weights, bit for bit as they would run otherwise.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Module, linear};
//! use mm_candle::{LoadSpec, Manager};
//! use mm_plan::{DeviceKind, Machine, Policy};
//!
//! # let file = std::env::temp_dir().join(format!("mm-candle-doc-{}.safetensors", std::process::id()));
//! # let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
//! # candle_core::safetensors::save(&[("weight", ones(&[2, 3])), ("bias", ones(&[2]))].into(), &file).unwrap();
//! let budget = Some(64 << 10);
//! let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
//! let manager = Manager::cpu(machine, Policy::default())?;
//! let head = manager.load(&LoadSpec::new("head", [file]), |vb| linear(3, 2, vb))?;
//! let y = head.run(|head| head.forward(&Tensor::ones((1, 3), DType::F32, &Device::Cpu)?))?;
//! assert_eq!(y.to_vec2::<f32>()?, [[4.0, 4.0]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Any model, unmodified, is a component: it is on the device inside [`Component::run`], whole. A model that
//! holds its repeated blocks in [`Blocks`] instead of a `Vec` streams block by block. With [`LoadSpec::spans`] an unmodified
//! model streams as well, by the `tracing` spans that its layers enter. What stays and what
//! streams is the plan's business; this crate decides nothing, and knows no model. Who schedules models alone takes
//! [`Placement`], a wrapper of any `VarBuilder` backend.
//!
//! Guarantees, each with the test file that checks it:
//! 1. Outputs are bit-identical to an unmanaged run under every strategy and budget, after errors and
//!    panics too (`tests/blocks.rs`, and models of candle-transformers as they are: `tests/unmodified.rs`).
//! 2. Device bytes equal the plan's figure to the byte; only what the model asks for counts (`tests/blocks.rs`).
//! 3. Computing with a weight that is not on the device is an error from every op (`tests/refusal.rs`).
//! 4. A tensor that two blocks share is kept with the rest (`tests/models.rs`).
//! 5. Building holds at most the rest and one block (`tests/building.rs`).
//! 6. Files, tensors and shapes that don't fit are named (`tests/models.rs`).
//! 7. A file truncated or written in place while it streams is an error that names file, tensor and range; one replaced
//!    by renaming goes on as it was; what is loaded anew has the new weights (`tests/files.rs`).
//! 8. Quantized weights (GGUF files, by [`linear`] and [`embedding`]) compute what candle's own quantized layers do, bit for bit, and
//!    on the device are the file's bytes; whatever dtype weights are stored in, they are cast as candle casts them
//!    (`tests/quantized.rs`, `tests/precision.rs`).
//! 9. By spans too outputs are bit-identical, in whatever order, on whatever thread, how deep inside each other and how often spans
//!    are entered; a weight used outside its spans is an error, told once, and then the component is whole (`tests/spans.rs`,
//!    `tests/spans_used.rs`). Somebody else's subscriber hears what it would hear (`tests/spans_foreign.rs`).
//! 10. [`Placement`] gives memory back, and brings back the same bits (`tests/placement.rs`).
//! 11. Weights that are kept, written or replaced, threads that share a model or end with it, panics, runs inside runs: no
//!     crash, no other output, and an error where one is due (`tests/robustness.rs`).
//! 12. What goes gives its memory back to the system, from whichever thread it is dropped (`tests/unload.rs`).
//! 13. A whole model that was just built runs without being read again (`tests/built.rs`).
//! 14. LoRA, in any of three dialects, is the same to the bit under every strategy and budget and without a manager, equals weights merged in
//!     f64 within rounding, and leaves the original bits when it goes (`tests/lora.rs`).
//!
//! How: a weight is a view into its *home*, one flat tensor per group and dtype. Putting a group on the
//! device swaps a slot's memory into its homes; evicting swaps it out and leaves a storage that candle's
//! kernels refuse by its dtype. candle is pinned to an exact version because this rests on its internals.
//!
//! What to know: weights that a layer copies while it is built (batch norms do) stay with the layer, outside
//! any budget; so do `QTensor`s that a model makes itself, where [`linear`] would make one only while it computes. Spans
//! are gone where any crate of the program asks for tracing's features `max_level_*` or `release_max_level_*`;
//! [`Component::spans`] says so. A storage guard of a weight that was kept (`storage_and_layout`) must be gone before
//! the next run: taking the weight away waits for it. On a card nobody else may put other memory under a weight.
#![deny(unsafe_code)]

mod blocks;
mod build;
#[cfg(feature = "cuda")]
mod card;
mod cast;
mod component;
mod error;
mod home;
mod layers;
mod lora;
mod manager;
#[cfg(feature = "cuda")]
mod pinned;
mod placement;
mod plain;
mod quantized;
mod spans;

pub use blocks::{Blocks, Lease};
pub use cast::CastBackend;
pub use component::{Component, LoadSpec, load_unmanaged, load_unmanaged_on};
pub use error::Error;
pub use layers::{Embedding, Linear, embedding, linear, linear_no_bias};
pub use lora::{Lora, LoraBackend, LoraError, Matched, Part};
pub use manager::{Manager, describe};
#[cfg(feature = "cuda")]
pub use pinned::PinnedHost;
pub use placement::Placement;
pub use spans::SpanCoverage;
