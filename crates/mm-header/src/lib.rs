//! Headers of safetensors and GGUF files, believed only after every claim in them has been checked.
//!
//! ```
//! let header = br#"{"scale":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
//! let size = file.len() as u64;
//! let entries = mm_header::read(&file[..], size)?;
//! assert_eq!((entries[0].name.as_str(), &entries[0].shape[..]), ("scale", &[2][..]));
//! assert_eq!(entries[0].range, size - 8..size);
//! assert_eq!(mm_header::read(&file[..], size - 1).unwrap_err().to_string(), "truncated: 74 bytes needed for tensor `scale`");
//! # Ok::<(), mm_header::HeaderError>(())
//! ```
//!
//! Guarantees, each with the test file that checks it:
//! 1. Tensors of a header that is read lie end to end from its own end to the file's, each as long as its dtype and shape say and
//!    each name once (`tests/hostile.rs`).
//! 2. A file that was cut is told from a header that lies, and both from a disk that cannot be read; a fault of one tensor
//!    names it (`tests/hostile.rs`).
//! 3. Nothing behind the header is read, and of the header nothing behind its first fault; memory goes by what is there, never
//!    by what a number in it claims (`tests/memory.rs`).
//!    Of GGUF files mm-probe's tests check all this (`tests/gguf.rs`, `tests/mutations`): tensors lie apart from each other and
//!    within the file there.
//! 4. Only regular files are opened: what is none is never waited for (`tests/open.rs`).

#![forbid(unsafe_code)]

mod error;
mod ggml;
mod gguf;
mod header;
mod json;
mod open;

pub use error::HeaderError;
pub use ggml::GgmlType;
pub use gguf::{GGUF_MAGIC, GgufEntry, read_gguf};
pub use header::{Entry, byte_size, read};
pub use open::open_regular;
