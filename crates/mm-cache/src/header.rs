//! The header of a weights file that others may be reading from at the same time.

use std::io::{self, Read};
use std::path::Path;

use mm_header::{Entry, HeaderError};

use crate::error::WeightsError;
use crate::open_file::OpenFile;

/// Reads and checks the header of a safetensors file; of the file's bytes, no more than the header.
pub(crate) fn read(path: &Path, file: &OpenFile) -> Result<Vec<Entry>, WeightsError> {
    mm_header::read(Stretch { file, at: 0 }, file.size()).map_err(|error| {
        let (path, have) = (path.to_owned(), file.size());
        match error {
            HeaderError::Io(source) => WeightsError::Io { file: path, source },
            HeaderError::NotAHeader(reason) => WeightsError::Header { file: path, reason },
            HeaderError::Truncated { tensor, need } => WeightsError::Truncated { file: path, tensor, need, have },
            HeaderError::Tensor { tensor, reason } => WeightsError::Tensor { file: path, tensor, reason },
        }
    })
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
