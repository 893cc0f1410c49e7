//! A safetensors header, read without the weights behind it and believed only after every claim has been checked.

use std::collections::HashSet;
use std::fmt;
use std::io::{BufReader, Read};
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::document;
use crate::error::InspectError;
use crate::tensor::{Stored, Tensor};

/// The format allows 100 MB; this is what the hub's own library reads, and holds a quarter of a million tensors.
const MAX_HEADER: u64 = 25_000_000;
/// Far above any model's in one file.
const MAX_TENSORS: usize = 1 << 18;
const LENGTH_BYTES: u64 = 8;

/// Reads the header of a safetensors file, tensors in the order they lie in. Memory goes by what is there, never by
/// what a number in the file claims.
pub(crate) fn read(path: &Path) -> Result<Vec<Tensor>, InspectError> {
    let header = |reason: String| InspectError::Header { file: path.to_owned(), format: "safetensors", reason };
    let (mut file, size) = document::open(path)?;
    let truncated = |need| InspectError::Truncated { file: path.to_owned(), tensor: None, need, have: size };

    let mut length = [0; LENGTH_BYTES as usize];
    if size < LENGTH_BYTES {
        return Err(truncated(LENGTH_BYTES));
    }
    file.read_exact(&mut length).map_err(|source| InspectError::Io { path: path.to_owned(), source })?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(header("its header claims more than 25 MB".into()));
    }
    let Some(data) = size.checked_sub(LENGTH_BYTES + length) else { return Err(truncated(LENGTH_BYTES + length)) };
    let Tensors(mut tensors) =
        serde_json::from_reader(BufReader::new(file.take(length))).map_err(|error| match error.io_error_kind() {
            Some(kind) => InspectError::Io { path: path.to_owned(), source: kind.into() },
            None => header(error.to_string()),
        })?;

    tensors.sort_by(|(a, ai), (b, bi)| (ai.data_offsets, a).cmp(&(bi.data_offsets, b)));
    check_each(path, &tensors)?;
    // The first to reach beyond the end, so that a claim of one is told from a file that was cut.
    if let Some((name, info)) = tensors.iter().find(|(_, info)| info.data_offsets.1 as u64 > data) {
        let need = (info.data_offsets.1 as u64).saturating_add(size - data);
        return Err(InspectError::Truncated { file: path.to_owned(), tensor: Some(name.clone()), need, have: size });
    }
    let end = end_to_end(path, &tensors)?;
    if end < data {
        return Err(header(format!("{} bytes after the last tensor belong to none", data - end)));
    }
    let tensor = |(name, info): (String, Info)| {
        let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
        Tensor { name, shape: info.shape.into(), stored: Stored::Safetensors(info.dtype), bytes }
    };
    Ok(tensors.into_iter().map(tensor).collect())
}

/// Checks that each name is there once and that each tensor is as long as its shape says.
fn check_each(path: &Path, tensors: &[(String, Info)]) -> Result<(), InspectError> {
    let mut names = HashSet::with_capacity(tensors.len());
    for (name, info) in tensors {
        let wrong = |reason| Err(InspectError::Tensor { file: path.to_owned(), tensor: name.clone(), reason });
        if !names.insert(name) {
            return wrong("named twice".into());
        }
        let (from, to) = info.data_offsets;
        let Some(size) = byte_size(info.dtype, &info.shape) else {
            return wrong(format!("no whole number of bytes holds {} {:?}", info.dtype, info.shape));
        };
        if to.checked_sub(from) != Some(size) {
            let claim = format!("{} {:?}, {size} bytes", info.dtype, info.shape);
            return wrong(format!("offsets {from}..{to} do not hold {claim}"));
        }
    }
    Ok(())
}

/// Where the tensors end, given that they lie end to end, as the format demands.
fn end_to_end(path: &Path, tensors: &[(String, Info)]) -> Result<u64, InspectError> {
    let mut at = 0;
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        if from != at {
            let reason = if from < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(InspectError::Tensor { file: path.to_owned(), tensor: name.clone(), reason: reason.into() });
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

/// PyTorch's own limit.
const MAX_DIMENSIONS: usize = 64;

/// What the format says of a tensor; as `safetensors::tensor::TensorInfo`, but for a list of sides that has an end.
#[derive(Deserialize)]
struct Info {
    dtype: Dtype,
    #[serde(deserialize_with = "sides")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Two bytes of text make eight in memory, so a shape could take many times the header.
fn sides<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Sides;

    impl<'de> Visitor<'de> for Sides {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sides")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
            let mut sides = Vec::new();
            while let Some(side) = list.next_element()? {
                if sides.len() == MAX_DIMENSIONS {
                    return Err(A::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
                }
                sides.push(side);
            }
            Ok(sides)
        }
    }

    deserializer.deserialize_seq(Sides)
}

/// The header's tensors as written, repeated names included, which a map would hide.
struct Tensors(Vec<(String, Info)>);

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
                        if tensors.len() == MAX_TENSORS {
                            return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                        }
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
