//! Files that are read only as far as they deserve: size known, kind known, JSON within bounds.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::InspectError;

/// Room for three hundred thousand tensors; the largest mixtures of experts in use have a third of that.
pub(crate) const MAX_INDEX: u64 = 32 << 20;
/// Far beyond any config in use. Less than for an index: read as values of any kind, a document takes sixteen times its
/// size in memory.
pub(crate) const MAX_CONFIG: u64 = 2 << 20;

/// Opens a regular file; its size comes with it.
pub(crate) fn open(path: &Path) -> Result<(File, u64), InspectError> {
    let opened = mm_header::open_regular(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound if path.is_symlink() => {
            Error::new(ErrorKind::NotFound, "it is a link to a file that is not there; finish the download")
        }
        _ => source,
    });
    match opened {
        Ok(Some((file, metadata))) => Ok((file, metadata.len())),
        Ok(None) => Err(InspectError::NotAFile { path: path.to_owned() }),
        Err(source) => Err(InspectError::Io { path: path.to_owned(), source }),
    }
}

/// A model's configuration: a small JSON document.
///
/// # Errors
/// It is missing, no regular file, too large, or no JSON. The message names it.
pub fn read_config(path: impl AsRef<Path>) -> Result<Value, InspectError> {
    read(path.as_ref(), MAX_CONFIG)
}

/// Reads a JSON document of at most `max` bytes.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, max: u64) -> Result<T, InspectError> {
    let wrong = |reason| InspectError::Document { file: path.to_owned(), reason };
    let (file, size) = open(path)?;
    if size > max {
        return Err(wrong(format!("{size} bytes are too many for this document; {max} are allowed")));
    }
    serde_json::from_reader(BufReader::new(file.take(size))).map_err(|error| wrong(error.to_string()))
}
