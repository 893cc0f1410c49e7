//! What can be wrong with a checkpoint, split by what to do about it.

use std::path::PathBuf;

use mm_plan::DType;

fn for_tensor(tensor: &Option<String>) -> String {
    tensor.as_ref().map_or_else(String::new, |tensor| format!(" for tensor `{tensor}`"))
}

fn variants(there: &[String]) -> String {
    match there {
        [] => "there are no variants, leave the choice out".to_owned(),
        there => format!("there are: {}", there.join(", ")),
    }
}

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
    #[error("{} is missing, but {} names it: finish the download{}", path.display(), named_by.display(), partial.as_ref().map_or_else(String::new, |partial| format!(" (a part of one is there: {})", partial.display())))]
    Missing {
        /// What is missing.
        path: PathBuf,
        /// The file that names it.
        named_by: PathBuf,
        /// A file that a download left behind half-finished, where one was found.
        partial: Option<PathBuf>,
    },
    /// Several sets of weights and nothing that says which to load: name one of them.
    #[error("{} has several sets of weights: {}; {instead}", folder.display(), there.join(", "))]
    Ambiguous {
        /// The folder.
        folder: PathBuf,
        /// What is there, sorted; the first few.
        there: Vec<String>,
        /// How to name one.
        instead: &'static str,
    },
    /// No component has the variant that was asked for: ask for one that is there.
    #[error("{} has no variant `{variant}`; {}", folder.display(), variants(there))]
    Variant {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The variant asked for.
        variant: String,
        /// The variants that are there.
        there: Vec<String>,
    },
    /// A repository, or a revision of it, that is not in the local cache: download it, nothing is fetched here.
    #[error("{id} is not in the local Hugging Face cache: {reason}")]
    NotCached {
        /// `org/name`, with `@revision` where one was given.
        id: String,
        /// What is missing, and where it was looked for.
        reason: String,
    },
    /// A part of a sharded checkpoint without the index that would name all of them: finish the download.
    #[error("{} is one of several files, and what is missing is {needed}", shard.display())]
    NoIndex {
        /// The first part.
        shard: PathBuf,
        /// What is missing, and what to do.
        needed: &'static str,
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
    #[error("{} is {form}, which is not read: {instead}", path.display())]
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
    #[error("{} is truncated: {need} bytes needed{}, {have} there; fetch it again", file.display(), for_tensor(tensor))]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The first tensor that is not all there, where the fault is not in the header.
        tensor: Option<String>,
        /// Bytes that the header calls for; saturating.
        need: u64,
        /// Bytes in the file.
        have: u64,
    },
    /// The header is none of that format: the file is another format, or damaged.
    #[error("{}: not a {format} file: {reason}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What its name says it is: `safetensors` or `GGUF`.
        format: &'static str,
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
