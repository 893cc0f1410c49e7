//! Load once, hash once, share everything: a load-once map, content ids that are remembered, and weights of which each content
//! is held once, in however many files it lies.
//!
//! ```
//! use mm_cache::{ContentId, LoadCache, TensorSlice, component_hash};
//! use safetensors::Dtype;
//!
//! let cache = LoadCache::with_budget(1 << 30);
//! let scale = cache.get_or_load(component_hash("scale"), |t: &TensorSlice| t.byte_len(), || {
//!     TensorSlice::from_bytes("scale", Dtype::F32, [1], 1f32.to_le_bytes().to_vec())
//! })?;
//! let mut read = [0; 4];
//! scale.read_into(0, &mut read)?;
//! assert_eq!(read, [0, 0, 128, 63]);
//! assert_eq!(ContentId::of(scale.bytes()?), ContentId::of(&read));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Guarantees, each with the test file that checks it:
//! 1. One factory runs per load however many threads ask; a failure or panic wakes exactly one waiter, who retries;
//!    no waiter is lost, and a load that would wait for itself is an error (`tests/load_cache.rs`, `tests/load_once.rs`, and
//!    under a checker of schedules `tests/schedules`). Threads that ask for different keys have no lock in common (`benches/hits.rs`).
//! 2. Over budget, what nobody holds goes, least valuable first; what is held or pinned stays (`tests/eviction.rs`).
//! 3. No claim of a weights file is believed before it is checked: truncated and lying files are errors that name the
//!    file and, where there is one, the tensor (`tests/hostile_weights.rs`).
//!    GGUF files too, whose quantized tensors are bytes here (`tests/gguf.rs`).
//! 4. A file is open once per process, by whatever path, and mapped at most once, when a tensor's bytes are first looked
//!    at in place; opening and reading map nothing (`tests/weights.rs`, `tests/reading.rs`).
//! 5. What is read is the file's content as of opening it, or an error that names file and tensor: a file truncated or
//!    written in place neither ends the process nor gives other bytes (`tests/reading.rs`).
//! 6. Through a [`WeightStore`] equal tensors are one, in memory too, and each file still has its own bytes when another that
//!    it shared with is changed or gone (`tests/sharing.rs`, `tests/host_memory.rs`).
//! 7. Content ids are plain blake3 over the bytes (`tests/content.rs`).
//! 8. An [`Index`] spares hashing what did not change, and never gives the id of what a file held before
//!    (`tests/index.rs`); not when it is damaged, locked, full or deleted either (`tests/index_damage.rs`), when a process
//!    is killed at any system call (`tests/index_crash.rs`), or when several use it (`tests/index_processes.rs`).
//!
//! # What a mapping can't promise
//!
//! [`TensorSlice::bytes`] looks at a file in place. It is an error if the file was truncated or written since it was opened; replacing
//! it by renaming is harmless, as the old file stays. But a file that is truncated *while* its bytes are looked at ends the
//! process (SIGBUS), and one that is written shows its new bytes: no system call can rule that out for a shared mapping.
//! [`TensorSlice::read_into`] has neither fault, and is what the engine uses.
//!
//! `unsafe` is confined to one call in one module, the mapping itself; [`TensorSlice::bytes`] states what it asks of callers.

#![deny(unsafe_code)]

mod content;
mod digest;
mod direct;
mod error;
mod hash;
mod header;
mod identity;
mod index;
mod key;
mod load;
mod mapping;
mod open_file;
mod reading;
mod store;
mod sync;
mod tensor;
mod weights;

pub use content::{ContentError, content_id, content_ids, files_under};
pub use digest::{ContentId, Key, ParseDigestError};
pub use error::WeightsError;
pub use header::Quantized;
pub use index::{Index, IndexStats, user_folder};
pub use key::{LoadParams, component_hash, content_hash, joint_id};
pub use load::{
    Ask, CacheStats, Cancel, Event, EventKind, LoadCache, LoadError, LoadGuard, Lookup, LookupError, Subscription,
    Weight, WrongType,
};
pub use store::{SharingStats, WeightStore};
pub use tensor::TensorSlice;
pub use weights::Weights;
