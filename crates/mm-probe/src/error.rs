//! What can be wrong with a checkpoint, split by what to do about it.

use std::path::PathBuf;

use mm_plan::DType;

/// Why a checkpoint could not be inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// Missing or unreadable: check the path and its permissions.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory, pipe or device where a file belongs.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Named by another file but not there: the download is incomplete, finish it.
    #[error("{} is missing, but {} names it: finish the download", path.display(), named_by.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
        /// The file that names it.
        named_by: PathBuf,
    },
    /// Nothing to inspect in this folder: name another one.
    #[error("{} holds no weights: {needed}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was looked for.
        needed: &'static str,
    },
    /// The checkpoint has a form that is not read yet: convert it, or name another file.
    #[error("{} is {form}, which is not supported yet: {instead}", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// What it is.
        form: &'static str,
        /// What to give instead.
        instead: &'static str,
    },
    /// A JSON document (`model_index.json`, an index, a config) that cannot be followed: fetch it again.
    #[error("{}: {reason}", file.display())]
    Document {
        /// The document.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file ends before what its header promises: fetch it again.
    #[error("{} is truncated: {need} bytes needed, {have} there; fetch it again", file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes that the header calls for; saturating.
        need: u64,
        /// Bytes in the file.
        have: u64,
    },
    /// The header is no safetensors header: the file is another format, or damaged.
    #[error("{}: not a safetensors file: {reason}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The header says something impossible of one tensor: the file is damaged.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two files of one component hold a tensor of the same name: the checkpoint is inconsistent, fetch it again.
    #[error("tensor `{tensor}` is in both {} and {}: fetch the checkpoint again", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// The file that came first.
        first: PathBuf,
        /// The file that has it too.
        second: PathBuf,
    },
    /// Weights are computed with in a floating-point type: ask for f32, bf16 or f16.
    #[error("{dtype} is no type to compute in: use f32, bf16 or f16")]
    Dtype {
        /// The type asked for.
        dtype: DType,
    },
}
