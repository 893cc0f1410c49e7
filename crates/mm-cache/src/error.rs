//! What can be wrong with weights on disk, split by what to do about it.

use std::path::PathBuf;

fn for_tensor(tensor: &Option<String>) -> String {
    tensor.as_ref().map_or_else(String::new, |tensor| format!(" for tensor `{tensor}`"))
}

/// Why weights could not be opened or are no longer to be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file could not be opened, read or mapped: check the path and its permissions.
    #[error("cannot read {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory, pipe or device where a file belongs.
    #[error("{} is not a regular file: name a .safetensors or .gguf file", file.display())]
    NotAFile {
        /// The path.
        file: PathBuf,
    },
    /// The file ends before what its header promises: fetch it again.
    #[error("{} is truncated: {need} bytes needed{}, {have} there; fetch it again", file.display(), for_tensor(tensor))]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The first tensor listed that is not all there, where the fault is not in the header.
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
        /// `safetensors`, or `GGUF` where the file begins as one.
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
    /// Two of the files hold a tensor of the same name: open only one of them.
    #[error("tensor `{tensor}` is in both {} and {}: open only one of them", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// The file that was given first.
        first: PathBuf,
        /// The file that has it too.
        second: PathBuf,
    },
    /// The system could not read a tensor of a file that was opened: check the disk.
    #[error("{}: tensor `{tensor}`: {}", file.display(), self.reason())]
    Read {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file was truncated after it was opened: restore it and open it again.
    #[error("{}: tensor `{tensor}`: {}", file.display(), self.reason())]
    Cut {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes in the file when it was opened.
        need: u64,
        /// Bytes in the file now.
        have: u64,
    },
    /// The file was written in place after it was opened: open it again.
    #[error("{}: tensor `{tensor}`: {}", file.display(), self.reason())]
    Changed {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

impl WeightsError {
    /// What is wrong and what to do, for callers that name file and tensor themselves.
    pub fn reason(&self) -> String {
        match self {
            Self::Read { source, .. } => format!("cannot be read: {source}"),
            Self::Cut { need, have, .. } => {
                format!("the file was truncated from {need} to {have} bytes while in use: restore it and load it again")
            }
            Self::Changed { .. } => "the file was written in place while in use: load it again, and replace weights \
                                     by renaming a new file over them"
                .to_owned(),
            Self::Tensor { reason, .. } | Self::Header { reason, .. } => reason.clone(),
            other => other.to_string(),
        }
    }
}
