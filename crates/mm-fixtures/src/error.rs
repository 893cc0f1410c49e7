//! What can go wrong, split by remedy.

use std::{io, path::PathBuf};

/// Why a fixture can't be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option has a value that no checkpoint can be made from.
    #[error("{flag} {value}: {why}")]
    Option {
        /// The flag of `cargo xtask fixtures`.
        flag: &'static str,
        /// The value that was given.
        value: String,
        /// What to give instead.
        why: String,
    },
    /// The folder to write into has something in it.
    #[error("--out {}: the folder is not empty; name a new one", .0.display())]
    NotEmpty(PathBuf),
    /// A file or folder can't be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A list of tensors that no safetensors file can hold.
    #[error("{}: {why}", path.display())]
    Tensors {
        /// The file that was to hold them.
        path: PathBuf,
        /// Which tensor, and what is wrong with it.
        why: String,
    },
}

impl Error {
    pub(crate) fn option(flag: &'static str, value: impl ToString, why: impl Into<String>) -> Self {
        Error::Option { flag, value: value.to_string(), why: why.into() }
    }
}

/// Names the path in an I/O error.
pub(crate) fn at<T>(path: impl Into<PathBuf>, outcome: io::Result<T>) -> Result<T, Error> {
    outcome.map_err(|source| Error::Io { path: path.into(), source })
}
