//! LoRA: what a small file adds to a model's weights.
//!
//! `names.rs` reads the three dialects of names, `file.rs` and `alpha.rs` a file, `matching.rs` finds whose weights it is for, `merge.rs`
//! adds it, `layout.rs` makes it a part of a managed component. `backend.rs` is for loaders of one's own.

mod alpha;
mod backend;
mod error;
mod file;
pub(crate) mod layout;
mod matching;
mod merge;
mod names;
pub(crate) mod state;

pub use backend::LoraBackend;
pub use error::LoraError;
pub use file::{Lora, Part};
pub use matching::Matched;
pub(crate) use merge::Merge;
