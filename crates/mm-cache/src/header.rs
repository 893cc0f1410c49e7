//! A safetensors header, believed only after every claim in it has been checked against the file's size.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::WeightsError;
use crate::open_file::OpenFile;

/// The format's own cap on headers.
const MAX_HEADER: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// One tensor of a checked header: `range` lies within the file and is as long as dtype and shape say.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<u64>,
}

/// Reads and checks the header of a safetensors file; of the file's bytes, no more than the header.
pub(crate) fn read(path: &Path, file: &OpenFile) -> Result<Vec<Entry>, WeightsError> {
    let header = |reason: &str| WeightsError::Header { file: path.to_owned(), reason: reason.to_owned() };
    let truncated = |need| WeightsError::Truncated { file: path.to_owned(), need, have: file.size() };
    let fill = |offset, into: &mut [u8]| {
        file.read_at(offset, into).map_err(|source| WeightsError::Io { file: path.to_owned(), source })
    };

    if file.size() < LENGTH_BYTES {
        return Err(truncated(LENGTH_BYTES));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    fill(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(header("its header claims more than 100 MB"));
    }
    let start = LENGTH_BYTES + length;
    if file.size() < start {
        return Err(truncated(start));
    }
    let mut json = vec![0; length as usize];
    fill(LENGTH_BYTES, &mut json)?;
    let Tensors(tensors) = serde_json::from_slice(&json).map_err(|error| header(&error.to_string()))?;
    drop(json);

    let mut entries = Vec::with_capacity(tensors.len());
    let mut names = HashSet::with_capacity(tensors.len());
    for (name, info) in &tensors {
        let wrong = |reason: String| WeightsError::Tensor { file: path.to_owned(), tensor: name.clone(), reason };
        if !names.insert(name) {
            return Err(wrong("named twice".into()));
        }
        let (from, to) = info.data_offsets;
        let size = byte_size(info.dtype, &info.shape)
            .ok_or_else(|| wrong(format!("no whole number of bytes holds {} {:?}", info.dtype, info.shape)))?;
        if to.checked_sub(from) != Some(size) {
            return Err(wrong(format!(
                "offsets {from}..{to} do not hold {} {:?}, {size} bytes",
                info.dtype, info.shape
            )));
        }
        let end = start.saturating_add(to as u64);
        if end > file.size() {
            return Err(truncated(end));
        }
        entries.push(Entry {
            name: name.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: start + from as u64..end,
        });
    }
    covers_exactly(path, start, file.size(), &mut entries)?;
    Ok(entries)
}

/// Bytes of a tensor; `None` where they overflow or do not come out whole.
pub(crate) fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Tensors lie end to end and fill the file, as the format demands: an overlap would let two names share bytes, a
/// gap would hide them.
fn covers_exactly(file: &Path, start: u64, end: u64, entries: &mut [Entry]) -> Result<(), WeightsError> {
    entries.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    let mut at = start;
    for entry in entries.iter() {
        if entry.range.start != at {
            let fault = if entry.range.start < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(WeightsError::Tensor {
                file: file.to_owned(),
                tensor: entry.name.clone(),
                reason: fault.into(),
            });
        }
        at = entry.range.end;
    }
    if at != end {
        let reason = format!("{} bytes after the last tensor belong to none", end - at);
        return Err(WeightsError::Header { file: file.to_owned(), reason });
    }
    Ok(())
}

/// The header's tensors as written, repeated names included, which a map would hide.
struct Tensors(Vec<(String, TensorInfo)>);

impl<'de> serde::Deserialize<'de> for Tensors {
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
