//! Reading a header and checking its claims against each other and against the file's size.

use std::collections::HashSet;
use std::io::{self, BufReader, Read, Take};
use std::ops::Range;

use safetensors::Dtype;

use crate::error::HeaderError;
use crate::json::{Info, Tensors};

/// The format allows 100 MB; this is what the hub's own library reads, and holds a quarter of a million tensors.
const MAX_HEADER: u64 = 25_000_000;
const LENGTH_BYTES: u64 = 8;

/// One tensor of a checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The full dotted name.
    pub name: String,
    /// The stored element type.
    pub dtype: Dtype,
    /// Outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file: within it, and as long as dtype and shape say.
    pub range: Range<u64>,
}

/// Reads the header of a safetensors file of `size` bytes, of which `from` gives the first ones; tensors in the order they
/// lie in. No more is read than the header.
///
/// # Errors
/// Each kind of [`HeaderError`]; where several things are wrong with a header, the first tensor that lies about itself goes before
/// one that is not all there, and that before an overlap, a gap or bytes that belong to none.
pub fn read(mut from: impl Read, size: u64) -> Result<Vec<Entry>, HeaderError> {
    let truncated = |tensor, need| HeaderError::Truncated { tensor, need };
    if size < LENGTH_BYTES {
        return Err(truncated(None, LENGTH_BYTES));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    from.read_exact(&mut length).map_err(HeaderError::Io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(HeaderError::NotAHeader("its header claims more than 25 MB".into()));
    }
    let start = LENGTH_BYTES + length;
    let Some(data) = size.checked_sub(start) else { return Err(truncated(None, start)) };
    let mut tensors = parse(from.take(length))?;

    tensors.sort_by(|(a, ai), (b, bi)| (ai.data_offsets, a).cmp(&(bi.data_offsets, b)));
    check_each(&tensors)?;
    // The first to reach beyond the end, so that a claim of one is told from a file that was cut.
    if let Some((name, info)) = tensors.iter().find(|(_, info)| info.data_offsets.1 as u64 > data) {
        return Err(truncated(Some(name.clone()), start.saturating_add(info.data_offsets.1 as u64)));
    }
    check_end_to_end(&tensors, data)?;
    let entry = |(name, info): (String, Info)| {
        let (from, to) = info.data_offsets;
        Entry { name, dtype: info.dtype, shape: info.shape, range: start + from as u64..start + to as u64 }
    };
    Ok(tensors.into_iter().map(entry).collect())
}

/// Bytes of a tensor; `None` where they overflow or do not come out whole.
pub fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Not read as a whole: what is claimed may be a hole.
fn parse(header: Take<impl Read>) -> Result<Vec<(String, Info)>, HeaderError> {
    let mut json = BufReader::new(Claimed { header, failure: None });
    let parsed = serde_json::from_reader(&mut json);
    if let Some(failure) = json.into_inner().failure {
        return Err(HeaderError::Io(failure));
    }
    let Tensors(tensors) = parsed.map_err(|error| HeaderError::NotAHeader(error.to_string()))?;
    Ok(tensors)
}

/// The header's bytes, all of them. It keeps why they could not be read, as the parser turns that into a fault of the text.
struct Claimed<R> {
    header: Take<R>,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Claimed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let failure = match self.header.read(into) {
            Ok(0) if self.header.limit() > 0 && !into.is_empty() => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "it ended within its header")
            }
            Err(error) if error.kind() != io::ErrorKind::Interrupted => error,
            read => return read,
        };
        let kind = failure.kind();
        self.failure = Some(failure);
        Err(kind.into())
    }
}

/// Checks that each name is there once and that each tensor is as long as its shape says.
fn check_each(tensors: &[(String, Info)]) -> Result<(), HeaderError> {
    let mut names = HashSet::with_capacity(tensors.len());
    for (name, info) in tensors {
        let wrong = |reason| Err(HeaderError::Tensor { tensor: name.clone(), reason });
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

/// Tensors lie end to end and fill the file, as the format demands: an overlap would let two names share bytes, a
/// gap would hide them.
fn check_end_to_end(tensors: &[(String, Info)], data: u64) -> Result<(), HeaderError> {
    let mut at = 0;
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        if from != at {
            let reason = if from < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(HeaderError::Tensor { tensor: name.clone(), reason: reason.into() });
        }
        at = to;
    }
    match data - at as u64 {
        0 => Ok(()),
        rest => Err(HeaderError::NotAHeader(format!("{rest} bytes after the last tensor belong to none"))),
    }
}
