//! A safetensors header, read without the weights behind it and believed only after every claim has been checked.

use std::collections::HashSet;
use std::fmt;
use std::io::{BufReader, Read};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::document;
use crate::error::InspectError;
use crate::tensor::{Stored, Tensor};

/// The format's own cap on headers.
const MAX_HEADER: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// Reads the header of a safetensors file, tensors in the order they lie in. Memory goes by what is there, never by
/// what a number in the file claims.
pub(crate) fn read(path: &Path) -> Result<Vec<Tensor>, InspectError> {
    let header = |reason: String| InspectError::Header { file: path.to_owned(), format: "safetensors", reason };
    let (mut file, size) = document::open(path)?;
    let truncated = |need| InspectError::Truncated { file: path.to_owned(), need, have: size };

    let mut length = [0; LENGTH_BYTES as usize];
    if size < LENGTH_BYTES {
        return Err(truncated(LENGTH_BYTES));
    }
    file.read_exact(&mut length).map_err(|source| InspectError::Io { path: path.to_owned(), source })?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(header("its header claims more than 100 MB".into()));
    }
    let Some(data) = size.checked_sub(LENGTH_BYTES + length) else { return Err(truncated(LENGTH_BYTES + length)) };
    let Tensors(mut tensors) =
        serde_json::from_reader(BufReader::new(file.take(length))).map_err(|error| match error.io_error_kind() {
            Some(kind) => InspectError::Io { path: path.to_owned(), source: kind.into() },
            None => header(error.to_string()),
        })?;

    tensors.sort_by(|(a, ai), (b, bi)| (ai.data_offsets, a).cmp(&(bi.data_offsets, b)));
    let end = fill(path, &tensors)?;
    match end.cmp(&data) {
        std::cmp::Ordering::Greater => return Err(truncated(end.saturating_add(size - data))),
        std::cmp::Ordering::Less => {
            return Err(header(format!("{} bytes after the last tensor belong to none", data - end)));
        }
        std::cmp::Ordering::Equal => {}
    }
    let tensor = |(name, info): (String, TensorInfo)| {
        let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
        Tensor { name, shape: info.shape.into(), stored: Stored::Safetensors(info.dtype), bytes }
    };
    Ok(tensors.into_iter().map(tensor).collect())
}

/// Where the tensors end, given that each is as long as its shape says and they lie end to end, as the format demands.
fn fill(path: &Path, tensors: &[(String, TensorInfo)]) -> Result<u64, InspectError> {
    let mut names = HashSet::with_capacity(tensors.len());
    let mut at = 0;
    for (name, info) in tensors {
        let wrong = |reason| InspectError::Tensor { file: path.to_owned(), tensor: name.clone(), reason };
        if !names.insert(name) {
            return Err(wrong("named twice".into()));
        }
        let (from, to) = info.data_offsets;
        let size = byte_size(info.dtype, &info.shape);
        let size =
            size.ok_or_else(|| wrong(format!("no whole number of bytes holds {} {:?}", info.dtype, info.shape)))?;
        if to.checked_sub(from) != Some(size) {
            return Err(wrong(format!(
                "offsets {from}..{to} do not hold {} {:?}, {size} bytes",
                info.dtype, info.shape
            )));
        }
        if from != at {
            return Err(wrong(
                if from < at { "overlaps the tensor before it" } else { "leaves a gap before it" }.into(),
            ));
        }
        at = to;
    }
    Ok(at as u64)
}

fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header's tensors as written, repeated names included, which a map would hide.
struct Tensors(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Tensors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                        tensors.push((name, info));
                    }
                }
                Ok(Tensors(tensors))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
