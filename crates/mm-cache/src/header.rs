//! The header of a weights file that others may be reading from at the same time.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use mm_header::{Entry, GGUF_MAGIC, GgmlType, GgufEntry, HeaderError};
use safetensors::Dtype;

use crate::error::WeightsError;
use crate::open_file::OpenFile;

/// One tensor of a checked header. Of a quantized one, dtype and shape are those of its bytes.
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<u64>,
    pub(crate) quantized: Option<Quantized>,
}

/// What the bytes of a quantized tensor stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// The type of its blocks.
    pub kind: GgmlType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

/// Reads and checks the header of a safetensors or GGUF file; of the file's bytes, no more than the header.
pub(crate) fn read(path: &Path, file: &OpenFile) -> Result<Vec<Found>, WeightsError> {
    let (stretch, size) = (|| Stretch { file, at: 0 }, file.size());
    let mut magic = [0; GGUF_MAGIC.len()];
    let is_gguf = size >= magic.len() as u64 && {
        file.read_at(0, &mut magic).map_err(|source| WeightsError::Io { file: path.to_owned(), source })?;
        magic == GGUF_MAGIC
    };
    let (found, format) = match is_gguf {
        true => (mm_header::read_gguf(stretch(), size).map(|all| all.into_iter().map(Found::from).collect()), "GGUF"),
        false => {
            (mm_header::read(stretch(), size).map(|all| all.into_iter().map(Found::from).collect()), "safetensors")
        }
    };
    found.map_err(|error| {
        let (path, have) = (path.to_owned(), size);
        match error {
            HeaderError::Io(source) => WeightsError::Io { file: path, source },
            HeaderError::NotAHeader(reason) => WeightsError::Header { file: path, format, reason },
            HeaderError::Truncated { tensor, need } => WeightsError::Truncated { file: path, tensor, need, have },
            HeaderError::Tensor { tensor, reason } => WeightsError::Tensor { file: path, tensor, reason },
        }
    })
}

impl From<Entry> for Found {
    fn from(Entry { name, dtype, shape, range }: Entry) -> Self {
        Self { name, dtype, shape, range, quantized: None }
    }
}

impl From<GgufEntry> for Found {
    fn from(GgufEntry { name, kind, shape, range }: GgufEntry) -> Self {
        match kind.plain() {
            Some(dtype) => Self { name, dtype, shape, range, quantized: None },
            None => {
                // Within a file, whose bytes a process may map.
                let bytes = vec![(range.end - range.start) as usize];
                Self { name, dtype: Dtype::U8, shape: bytes, range, quantized: Some(Quantized { kind, shape }) }
            }
        }
    }
}

/// A file from a place on, read by position: its own position is shared with everyone who has it open.
struct Stretch<'a> {
    file: &'a OpenFile,
    at: u64,
}

impl Read for Stretch<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.file.size().saturating_sub(self.at);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        self.file.read_at(self.at, &mut into[..length])?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Stretch<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(step) => self.at.checked_add_signed(step),
            SeekFrom::End(step) => self.file.size().checked_add_signed(step),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
