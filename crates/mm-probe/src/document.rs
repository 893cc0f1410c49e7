//! Files that are read only as far as they deserve: size known, kind known, JSON within bounds.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::InspectError;

/// Far beyond any index in use; those of a million million parameters have some twenty megabytes.
pub(crate) const MAX_INDEX: u64 = 32 << 20;
/// Far beyond any other document in use, and little enough to be read as a tree of values: those take many times the text.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

/// Opens a regular file; its size comes with it.
pub(crate) fn open(path: &Path) -> Result<(File, u64), InspectError> {
    let io = |source| InspectError::Io { path: path.to_owned(), source };
    // Asked before opening, as opening a pipe would wait for its writer.
    if !path.metadata().map_err(io)?.is_file() {
        return Err(InspectError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    Ok((file, size))
}

/// Reads a JSON document of at most so many bytes.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T, InspectError> {
    let wrong = |reason| InspectError::Document { file: path.to_owned(), reason };
    let (file, size) = open(path)?;
    if size > most {
        return Err(wrong(format!("{size} bytes are too many for this document; {most} are allowed")));
    }
    serde_json::from_reader(BufReader::new(file.take(size))).map_err(|error| wrong(error.to_string()))
}
