//! A safetensors header, read without the weights behind it.

use std::path::Path;

use mm_header::{Entry, HeaderError};

use crate::document;
use crate::error::InspectError;
use crate::tensor::{Stored, Tensor};

/// Reads the header of a safetensors file, tensors in the order they lie in.
pub(crate) fn read(path: &Path) -> Result<Vec<Tensor>, InspectError> {
    let (file, size) = document::open(path)?;
    let entries = mm_header::read(file, size).map_err(|error| refused(error, path, size, "safetensors"))?;
    let tensor = |Entry { name, dtype, shape, range }: Entry| Tensor {
        name,
        shape: shape.into(),
        stored: Stored::Safetensors(dtype),
        bytes: range.end - range.start,
    };
    Ok(entries.into_iter().map(tensor).collect())
}

/// A header of that format that is not believed, of a file of `have` bytes.
pub(crate) fn refused(error: HeaderError, path: &Path, have: u64, format: &'static str) -> InspectError {
    let path = path.to_owned();
    match error {
        HeaderError::Io(source) => InspectError::Io { path, source },
        HeaderError::NotAHeader(reason) => InspectError::Header { file: path, format, reason },
        HeaderError::Truncated { tensor, need } => InspectError::Truncated { file: path, tensor, need, have },
        HeaderError::Tensor { tensor, reason } => InspectError::Tensor { file: path, tensor, reason },
    }
}
