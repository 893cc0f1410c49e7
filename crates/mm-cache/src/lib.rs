//! Loads each thing once: a load-once map, content ids, and memory-mapped weights that nobody copies.
//!
//! ```
//! use mm_cache::{ContentId, LoadCache, TensorSlice, component_hash};
//! use safetensors::Dtype;
//!
//! let cache = LoadCache::with_budget(1 << 30);
//! let scale = cache.get_or_load(component_hash("scale"), |t: &TensorSlice| t.bytes().len() as u64, || {
//!     TensorSlice::from_bytes("scale", Dtype::F32, [1], 1f32.to_le_bytes().to_vec())
//! })?;
//! assert_eq!(scale.bytes(), [0, 0, 128, 63]);
//! assert_eq!(ContentId::of(scale.bytes()), ContentId::of(&[0, 0, 128, 63]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Guarantees, each with the test file that checks it:
//! 1. One factory runs per load however many threads ask; a failure or panic wakes exactly one waiter, who retries;
//!    no waiter is lost, and a load that would wait for itself is an error (`tests/load_cache.rs`).
//! 2. Over budget, what nobody holds goes, least recently used first; what is held stays (`tests/eviction.rs`).
//! 3. No claim of a weights file is believed before it is checked: truncated and lying files are errors that name the
//!    file and, where there is one, the tensor (`tests/hostile_weights.rs`).
//! 4. A file is mapped once per process, by whatever path it is opened, and a tensor is a view of it (`tests/weights.rs`).
//! 5. Content ids are plain blake3 over the bytes (`tests/content.rs`).
//!
//! `unsafe` is confined to one call in one module, the mapping itself; [`Weights::open`] states what it asks of callers.

#![deny(unsafe_code)]

mod content;
mod digest;
mod error;
mod fill;
mod header;
mod load_cache;
mod mapping;
mod weights;

pub use content::{ContentError, content_id, content_ids};
pub use digest::{ContentId, Key, ParseDigestError, component_hash};
pub use error::WeightsError;
pub use load_cache::{CacheStats, LoadCache, LoadError, WrongType};
pub use weights::{TensorSlice, Weights};
