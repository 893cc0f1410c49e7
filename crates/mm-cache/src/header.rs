//! A safetensors header, believed only after every claim in it has been checked against the file's size.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::WeightsError;
use crate::open_file::OpenFile;

/// The format allows 100 MB; this is what the hub's own library reads, and holds a quarter of a million tensors.
const MAX_HEADER: u64 = 25_000_000;
/// Far above any model's in one file.
const MAX_TENSORS: usize = 1 << 18;
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
    let io = |source| WeightsError::Io { file: path.to_owned(), source };
    let truncated = |tensor, need| WeightsError::Truncated { file: path.to_owned(), tensor, need, have: file.size() };

    if file.size() < LENGTH_BYTES {
        return Err(truncated(None, LENGTH_BYTES));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_at(0, &mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(header("its header claims more than 25 MB"));
    }
    let start = LENGTH_BYTES + length;
    if file.size() < start {
        return Err(truncated(None, start));
    }
    // Not read as a whole: what is claimed may be a hole.
    let json = BufReader::new(Stretch { file, at: LENGTH_BYTES, end: start });
    let Tensors(tensors) = serde_json::from_reader(json).map_err(|error| match error.io_error_kind() {
        Some(kind) => io(kind.into()),
        None => header(&error.to_string()),
    })?;

    let mut names = HashSet::with_capacity(tensors.len());
    for (name, info) in &tensors {
        let wrong = |reason| Err(WeightsError::Tensor { file: path.to_owned(), tensor: name.clone(), reason });
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
        let end = start.saturating_add(to as u64);
        if end > file.size() {
            return Err(truncated(Some(name.clone()), end));
        }
    }
    drop(names);
    let entry = |(name, info): (String, Info)| {
        let (from, to) = info.data_offsets;
        Entry { name, dtype: info.dtype, shape: info.shape, range: start + from as u64..start + to as u64 }
    };
    let mut entries: Vec<Entry> = tensors.into_iter().map(entry).collect();
    covers_exactly(path, start, file.size(), &mut entries)?;
    Ok(entries)
}

/// A part of a file, read by position.
struct Stretch<'a> {
    file: &'a OpenFile,
    at: u64,
    end: u64,
}

impl Read for Stretch<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(into.len());
        self.file.read_at(self.at, &mut into[..length])?;
        self.at += length as u64;
        Ok(length)
    }
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
