//! A GGUF header, read without the weights behind it.

use std::path::Path;

use mm_header::GgufEntry;

use crate::document;
use crate::error::InspectError;
use crate::header::refused;
use crate::tensor::{Stored, Tensor};

/// Reads the header of a GGUF file, tensors in the order they lie in.
pub(crate) fn read(path: &Path) -> Result<Vec<Tensor>, InspectError> {
    let (file, size) = document::open(path)?;
    let entries = mm_header::read_gguf(file, size).map_err(|error| refused(error, path, size, "GGUF"))?;
    let tensor = |GgufEntry { name, kind, shape, range }: GgufEntry| Tensor {
        name,
        shape: shape.into(),
        stored: Stored::Gguf(kind),
        bytes: range.end - range.start,
    };
    Ok(entries.into_iter().map(tensor).collect())
}
