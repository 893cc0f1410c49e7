//! Files that are read only as far as they deserve: size known, kind known, JSON within bounds.

use std::fs::{File, OpenOptions};
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
    let io = |source| InspectError::Io { path: path.to_owned(), source };
    // Asked before opening too, as opening a device may do something.
    let found = path.metadata().map_err(|source| match source.kind() {
        ErrorKind::NotFound if path.symlink_metadata().is_ok() => {
            io(Error::new(ErrorKind::NotFound, "it is a link to a file that is not there; finish the download"))
        }
        _ => io(source),
    })?;
    if !found.is_file() {
        return Err(InspectError::NotAFile { path: path.to_owned() });
    }
    let file = open_at_once(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(InspectError::NotAFile { path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}

/// A model's configuration: a small JSON document.
///
/// # Errors
/// It is missing, no regular file, too large, or no JSON. The message names it.
pub fn read_config(path: impl AsRef<Path>) -> Result<Value, InspectError> {
    read(path.as_ref(), MAX_CONFIG)
}

/// What was a file a moment ago may be a pipe by now, whose opening would wait for its writer.
#[cfg(unix)]
fn open_at_once(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(not(unix))]
fn open_at_once(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).open(path)
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
