//! A GGUF header, read without the weights behind it and believed only after every claim has been checked.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 1 (lengths of 32 bits), 2 and 3.

use std::collections::HashSet;
use std::io::{BufReader, Read, Seek};
use std::ops::Range;

use crate::error::HeaderError;
use crate::ggml::GgmlType;

/// What such a file begins with, and no safetensors file can: as a header's length it would be more than a gigabyte.
pub const GGUF_MAGIC: [u8; 4] = *b"GGUF";

/// One tensor of a checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufEntry {
    /// The full dotted name.
    pub name: String,
    /// The stored type.
    pub kind: GgmlType,
    /// Outermost dimension first, as PyTorch has it; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file: within it, and as many as type and shape say.
    pub range: Range<u64>,
}

const DEFAULT_ALIGNMENT: u64 = 32;
/// Metadata holds a vocabulary at most: a few megabytes. A file of holes must come to an end.
const MAX_METADATA: u64 = 32 << 20;
/// Of tensors far above any model's in one file; what is made of so many bytes in memory stays below 64 MiB.
const MAX_INFOS: u64 = 10_000_000;
const MAX_TENSORS: u64 = 1 << 17;
/// Strings in all arrays together: vocabularies have a quarter of that. The empty strings of a hole must come to an end.
const MAX_ELEMENTS: u64 = 1 << 20;
/// Far above any tensor's or key's name; the format's own limits are 64 and 65,535 bytes.
const MAX_NAME: u64 = 1 << 16;
/// The format has four; no model has more.
const MAX_DIMENSIONS: u32 = 8;
/// Arrays of arrays are allowed, and nobody writes them.
const MAX_NESTING: u32 = 4;

/// Reads the header of a GGUF file of `size` bytes, of which `from` gives those from its start on; tensors in the order they lie
/// in. Memory goes by what is there, never by what a number in the file claims.
///
/// # Errors
/// Each kind of [`HeaderError`].
pub fn read_gguf(from: impl Read + Seek, size: u64) -> Result<Vec<GgufEntry>, HeaderError> {
    let mut header = Header { input: BufReader::new(from), at: 0, size, most: MAX_METADATA, elements: 0, wide: true };
    let magic = header.bytes::<4>()?;
    if magic != GGUF_MAGIC {
        return Err(header.wrong("it does not begin with `GGUF`"));
    }
    let version = header.u32()?;
    if !(1..=3).contains(&version) {
        // A big-endian file has its version's bytes the other way round.
        let hint = if (1..=3).contains(&version.swap_bytes()) { " (big-endian files are not read)" } else { "" };
        return Err(header.wrong(&format!("version {version} is not known{hint}")));
    }
    header.wide = version > 1;
    let (tensors, pairs) = (header.length()?, header.length()?);
    // What each takes at the least, so that a count that lies is told at once.
    header.need(tensors.saturating_mul(16).saturating_add(pairs.saturating_mul(8)))?;
    let mut alignment = DEFAULT_ALIGNMENT;
    for _ in 0..pairs {
        let key = header.name("a key")?;
        if key.is_empty() {
            return Err(header.wrong("its metadata has a key without a name"));
        }
        let kind = header.u32()?;
        if key == "general.alignment" && kind == U32 {
            alignment = u64::from(header.u32()?);
        } else {
            header.skip_value(kind, 0)?;
        }
    }
    if alignment == 0 || !alignment.is_multiple_of(8) {
        return Err(header.wrong(&format!("general.alignment is {alignment}, expected a multiple of 8")));
    }
    if tensors > MAX_TENSORS {
        return Err(header.wrong(&format!("{tensors} tensors are too many; {MAX_TENSORS} are allowed")));
    }
    header.most = header.at + MAX_INFOS;
    let mut infos: Vec<(GgufEntry, u64)> = Vec::new();
    for _ in 0..tensors {
        let info = header.tensor()?;
        // The others are found when all are known. These, the empty names of a hole, would have no end.
        if infos.last().is_some_and(|(last, _)| last.name == info.0.name) {
            return Err(twice(info.0.name));
        }
        infos.push(info);
    }
    let start = header.at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    place(size, start, alignment, &mut infos)?;
    Ok(infos.into_iter().map(|(tensor, _)| tensor).collect())
}

fn twice(tensor: String) -> HeaderError {
    HeaderError::Tensor { tensor, reason: "named twice".into() }
}

/// Checks that each name is there once, and that each tensor lies within the file and on nobody else. Their ranges, of the right
/// length so far, move to where they lie in the file.
fn place(size: u64, start: u64, alignment: u64, tensors: &mut [(GgufEntry, u64)]) -> Result<(), HeaderError> {
    tensors.sort_by(|(a, a_at), (b, b_at)| (a_at, a.range.end, &a.name).cmp(&(b_at, b.range.end, &b.name)));
    let mut names = HashSet::with_capacity(tensors.len());
    let mut end = 0u64;
    for (tensor, offset) in tensors.iter() {
        let wrong = |reason: String| Err(HeaderError::Tensor { tensor: tensor.name.clone(), reason });
        if !names.insert(tensor.name.as_str()) {
            return Err(twice(tensor.name.clone()));
        }
        if !offset.is_multiple_of(alignment) {
            return wrong(format!("its offset {offset} is no multiple of the alignment, {alignment}"));
        }
        if *offset < end {
            return wrong("overlaps the tensor before it".into());
        }
        end = offset.saturating_add(tensor.range.end);
        let need = start.saturating_add(end);
        if need > size {
            return Err(HeaderError::Truncated { tensor: Some(tensor.name.clone()), need });
        }
    }
    for (tensor, offset) in tensors {
        // Within the file, so nothing overflows.
        tensor.range = start + *offset..start + *offset + tensor.range.end;
    }
    Ok(())
}

/// A header being read; `at` counts the bytes so far.
struct Header<R> {
    input: BufReader<R>,
    at: u64,
    size: u64,
    /// Where it ends at the latest.
    most: u64,
    /// Strings and arrays in arrays, so far.
    elements: u64,
    /// Lengths have 64 bits.
    wide: bool,
}

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a fixed size.
fn fixed(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

impl<R: Read + Seek> Header<R> {
    fn wrong(&self, reason: &str) -> HeaderError {
        HeaderError::NotAHeader(reason.to_owned())
    }

    /// Makes sure that so many bytes are there before anything is done for them.
    fn need(&self, bytes: u64) -> Result<(), HeaderError> {
        let need = self.at.saturating_add(bytes);
        if need > self.size {
            return Err(HeaderError::Truncated { tensor: None, need });
        }
        if need > self.most {
            return Err(self.wrong(&format!("its header is longer than {} bytes", self.most)));
        }
        Ok(())
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), HeaderError> {
        self.need(into.len() as u64)?;
        self.input.read_exact(into).map_err(HeaderError::Io)?;
        self.at += into.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), HeaderError> {
        self.need(bytes)?;
        // Within the file, so below what an offset can be.
        let step = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.input.seek_relative(step).map_err(HeaderError::Io)?;
        self.at += bytes;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Result<u64, HeaderError> {
        if self.wide { self.bytes().map(u64::from_le_bytes) } else { self.u32().map(u64::from) }
    }

    fn name(&mut self, what: &str) -> Result<String, HeaderError> {
        let length = self.length()?;
        if length > MAX_NAME {
            return Err(self.wrong(&format!("{what} claims a name of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.wrong(&format!("{what} has a name that is not UTF-8")))
    }

    fn skip_value(&mut self, kind: u32, nesting: u32) -> Result<(), HeaderError> {
        if let Some(bytes) = fixed(kind) {
            return self.skip(bytes);
        }
        match kind {
            STRING => {
                let length = self.length()?;
                self.skip(length)
            }
            ARRAY if nesting < MAX_NESTING => {
                let (kind, count) = (self.u32()?, self.length()?);
                if let Some(bytes) = fixed(kind) {
                    return self.skip(bytes.saturating_mul(count));
                }
                self.need(count.saturating_mul(4))?;
                self.elements = self.elements.saturating_add(count);
                if self.elements > MAX_ELEMENTS {
                    return Err(self.wrong("its metadata has more than a million strings"));
                }
                (0..count).try_for_each(|_| self.skip_value(kind, nesting + 1))
            }
            ARRAY => Err(self.wrong("its metadata has arrays in arrays in arrays")),
            _ => Err(self.wrong(&format!("its metadata has a value of unknown type {kind}"))),
        }
    }

    /// A tensor, from zero on as long as it is, and where it lies behind the header.
    fn tensor(&mut self) -> Result<(GgufEntry, u64), HeaderError> {
        let name = self.name("a tensor")?;
        let wrong = |reason| HeaderError::Tensor { tensor: name.clone(), reason };
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(wrong(format!("{dimensions} dimensions are too many")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.length()?);
        }
        let number = self.u32()?;
        let offset = u64::from_le_bytes(self.bytes()?);
        let wrong = |reason| HeaderError::Tensor { tensor: name.clone(), reason };
        let kind = GgmlType::of_number(number).ok_or_else(|| wrong(format!("its type {number} is not known")))?;
        // The innermost dimension comes first; a scalar is one row of one element.
        let (row, outer) = shape.split_first().map_or((1, &[][..]), |(row, outer)| (*row, outer));
        let rows = outer.iter().try_fold(1u64, |product, side| product.checked_mul(*side));
        let bytes = rows.and_then(|rows| kind.bytes(row, rows));
        let sides: Option<Vec<usize>> = shape.iter().rev().map(|side| usize::try_from(*side).ok()).collect();
        let (Some(bytes), Some(sides)) = (bytes, sides) else {
            return Err(wrong(format!("no whole number of blocks holds {} {shape:?}", kind.name())));
        };
        Ok((GgufEntry { name, kind, shape: sides, range: 0..bytes }, offset))
    }
}
