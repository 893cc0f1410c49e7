//! What can be wrong with a header, split by what to do about it.

use std::io;

fn for_tensor(tensor: &Option<String>) -> String {
    tensor.as_ref().map_or_else(String::new, |tensor| format!(" for tensor `{tensor}`"))
}

/// Why a header is not believed. The caller knows which file it is of, and names it.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Reading failed, or ended before the size that was told: check the disk, and that nobody writes the file.
    #[error("the header cannot be read: {0}")]
    Io(#[source] io::Error),
    /// No header of this format, for this reason: the file is another format, or damaged.
    #[error("no header of this format: {0}")]
    NotAHeader(String),
    /// The file ends before what its header promises: fetch it again.
    #[error("truncated: {need} bytes needed{}", for_tensor(tensor))]
    Truncated {
        /// The first tensor, in the order they lie in, that is not all there; `None` where the header itself is not.
        tensor: Option<String>,
        /// Bytes that the header calls for; saturating.
        need: u64,
    },
    /// The header says something impossible of one tensor: the file is damaged.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
}
