//! One tensor: in a file, in another file that holds the same bytes, or in memory.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use safetensors::Dtype;

use crate::digest::ContentId;
use crate::error::WeightsError;
use crate::header::{Found, Quantized};
use crate::index::Index;
use crate::open_file::{Change, OpenFile};

/// One tensor in a file or in memory: cloning it clones a reference.
#[derive(Clone)]
pub struct TensorSlice(Arc<Tensor>);

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    path: Arc<Path>,
    range: Range<u64>,
    quantized: Option<Quantized>,
    bytes: Bytes,
}

enum Bytes {
    File {
        own: Stretch,
        /// Where the same bytes lie in a file that was open before. They are read there, so that the system holds them
        /// once, for as long as that file stays what it was.
        twin: OnceLock<Stretch>,
    },
    Memory(Vec<u8>),
}

/// Where bytes lie in an open file; the range is within it.
#[derive(Clone)]
pub(crate) struct Stretch {
    pub(crate) file: Arc<OpenFile>,
    pub(crate) range: Range<u64>,
}

/// The content ids of stretches; what `index` knows is not read. An error comes with the place of a stretch in the file.
pub(crate) fn ids(index: &Index, stretches: &[&Stretch]) -> Result<Vec<ContentId>, (usize, io::Error)> {
    let mut by_file: HashMap<u64, (Vec<usize>, Vec<Range<u64>>)> = HashMap::new();
    for (at, stretch) in stretches.iter().enumerate() {
        let (places, ranges) = by_file.entry(stretch.file.number()).or_default();
        places.push(at);
        ranges.push(stretch.range.clone());
    }
    let mut ids = vec![ContentId::from([0; 32]); stretches.len()];
    for (places, ranges) in by_file.into_values() {
        let file = stretches[places[0]].file.file();
        let found = index.tensor_ids(file, &ranges).map_err(|error| (places[0], error))?;
        places.into_iter().zip(found).for_each(|(at, id)| ids[at] = id);
    }
    Ok(ids)
}

/// Why a stretch could not be read.
enum Trouble {
    Change(Change),
    Io(io::Error),
}

/// Whether what is read stays in the system's memory.
#[derive(Clone, Copy)]
enum Way {
    Cached,
    AroundCache,
}

impl Stretch {
    /// The file is what it was when it was opened.
    pub(crate) fn is_current(&self) -> bool {
        self.check().is_ok()
    }

    fn check(&self) -> Result<(), Trouble> {
        match self.file.change() {
            Ok(None) => Ok(()),
            Ok(Some(change)) => Err(Trouble::Change(change)),
            Err(source) => Err(Trouble::Io(source)),
        }
    }

    fn read(&self, offset: u64, into: &mut [u8], way: Way) -> Result<(), Trouble> {
        let offset = self.range.start + offset;
        let read = match way {
            Way::Cached => self.file.read_at(offset, into),
            Way::AroundCache => self.file.read_around_cache(offset, into),
        };
        // A truncated file shows as a short read; what became of it is the better error.
        self.check()?;
        read.map_err(Trouble::Io)
    }

    fn map(&self) -> Result<&[u8], Trouble> {
        self.check()?;
        let whole = self.file.map().map_err(Trouble::Io)?;
        // In range: checked against the file's size, which is the mapping's length, when the stretch was made.
        Ok(&whole[self.range.start as usize..self.range.end as usize])
    }
}

impl TensorSlice {
    /// A tensor that lives in memory and in no file.
    ///
    /// # Errors
    /// [`WeightsError::Tensor`] where `bytes` is not as long as dtype and shape say.
    pub fn from_bytes(
        name: impl Into<String>,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        bytes: Vec<u8>,
    ) -> Result<Self, WeightsError> {
        let (name, shape, path) = (name.into(), shape.into(), Path::new("(memory)"));
        if mm_header::byte_size(dtype, &shape) != Some(bytes.len()) {
            let reason = format!("{} bytes do not hold {dtype} {shape:?}", bytes.len());
            return Err(WeightsError::Tensor { file: path.to_owned(), tensor: name, reason });
        }
        let range = 0..bytes.len() as u64;
        let (path, quantized, bytes) = (path.into(), None, Bytes::Memory(bytes));
        Ok(Self(Arc::new(Tensor { name, dtype, shape, path, range, quantized, bytes })))
    }

    /// Reads the bytes from `offset` on, within the tensor, into `into`: row-major and little-endian. Nothing is mapped.
    ///
    /// What was read is the file's content as of [`Weights::open`](crate::Weights::open), or this is an error: after reading it asks whether
    /// the file was changed in place (its size, its mtime). Only a write that leaves the mtime as it was goes unseen.
    ///
    /// # Errors
    /// [`WeightsError::Cut`] and [`WeightsError::Changed`] where the file was truncated or written in place,
    /// [`WeightsError::Read`] where the system could not read it, [`WeightsError::Tensor`] where the tensor is not that
    /// long. `into` then holds nothing of use.
    pub fn read_into(&self, offset: u64, into: &mut [u8]) -> Result<(), WeightsError> {
        self.read_by(Way::Cached, offset, into)
    }

    /// The same, around the system's page cache where the file system takes such reads (Linux, disks; a stretch of 256 KiB or more): for
    /// weights that are read again and again and are larger than memory, which would never be found there.
    ///
    /// # Errors
    /// As [`TensorSlice::read_into`].
    pub fn read_around_cache(&self, offset: u64, into: &mut [u8]) -> Result<(), WeightsError> {
        self.read_by(Way::AroundCache, offset, into)
    }

    fn read_by(&self, way: Way, offset: u64, into: &mut [u8]) -> Result<(), WeightsError> {
        let end = offset.checked_add(into.len() as u64).filter(|end| *end <= self.byte_len());
        let Some(end) = end else {
            let reason = format!("{} bytes at {offset} asked of its {}", into.len(), self.byte_len());
            return Err(WeightsError::Tensor { file: self.file().to_owned(), tensor: self.name().to_owned(), reason });
        };
        match &self.0.bytes {
            // In range: `end` is at most the length of the vector.
            Bytes::Memory(bytes) => into.copy_from_slice(&bytes[offset as usize..end as usize]),
            Bytes::File { twin, .. } if twin.get().is_some_and(|twin| twin.read(offset, into, way).is_ok()) => {}
            Bytes::File { own, .. } => own.read(offset, into, way).map_err(|trouble| self.error(trouble))?,
        }
        Ok(())
    }

    /// The bytes in place, row-major and little-endian; they start at no particular alignment. The file is mapped when
    /// this is first asked of any of its tensors, and stays so while it is open.
    ///
    /// The file must not be written or truncated in place while these bytes are looked at: the system then changes
    /// them meanwhile, or ends the process. [`TensorSlice::read_into`] asks for no such promise.
    ///
    /// # Errors
    /// The file has changed already, or cannot be mapped.
    pub fn bytes(&self) -> Result<&[u8], WeightsError> {
        match &self.0.bytes {
            Bytes::Memory(bytes) => Ok(bytes),
            Bytes::File { own, twin } => {
                let shared = twin.get().and_then(|twin| twin.map().ok());
                shared.map_or_else(|| own.map().map_err(|trouble| self.error(trouble)), Ok)
            }
        }
    }

    /// Length in bytes, as stored.
    pub fn byte_len(&self) -> u64 {
        self.0.range.end - self.0.range.start
    }

    /// The stored element type; of a quantized tensor that of its bytes, `U8`.
    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    /// The shape; empty for a scalar. Of a quantized tensor that of its bytes, of one dimension.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// What its bytes stand for, where it is quantized.
    pub fn quantized(&self) -> Option<&Quantized> {
        self.0.quantized.as_ref()
    }

    /// The full dotted name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file it lies in, as it was named to [`Weights::open`](crate::Weights::open); `(memory)` for a tensor made from bytes.
    pub fn file(&self) -> &Path {
        &self.0.path
    }

    /// Where its bytes lie in the file.
    pub fn file_range(&self) -> Range<u64> {
        self.0.range.clone()
    }

    /// Asks the system, with one call, whether the file still is what was opened. Worth it before a long read, which
    /// itself asks only afterwards; a tensor in memory is always unchanged.
    ///
    /// # Errors
    /// [`WeightsError::Cut`] and [`WeightsError::Changed`] where the file was truncated or written in place.
    pub fn check(&self) -> Result<(), WeightsError> {
        match &self.0.bytes {
            Bytes::File { twin, .. } if twin.get().is_some_and(Stretch::is_current) => Ok(()),
            _ => self.check_own(),
        }
    }

    /// The same of its own file, whatever other it is read in.
    pub(crate) fn check_own(&self) -> Result<(), WeightsError> {
        self.own().map_or(Ok(()), |own| own.check().map_err(|trouble| self.error(trouble)))
    }

    pub(crate) fn in_file(found: Found, path: Arc<Path>, own: Stretch) -> Self {
        let Found { name, dtype, shape, range, quantized } = found;
        let bytes = Bytes::File { own, twin: OnceLock::new() };
        Self(Arc::new(Tensor { name, dtype, shape, path, range, quantized, bytes }))
    }

    /// From now on it is read at `twin`, where the same bytes lie.
    pub(crate) fn share(&self, at: Stretch) {
        if let Bytes::File { twin, .. } = &self.0.bytes {
            // Shared already: one place is as good as another.
            let _ = twin.set(at);
        }
    }

    /// Where it lies in files, first the place where it is read.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Stretch> {
        let (twin, own) = match &self.0.bytes {
            Bytes::File { own, twin } => (twin.get(), Some(own)),
            Bytes::Memory(_) => (None, None),
        };
        twin.into_iter().chain(own)
    }

    /// Where it lies in its own file; `None`: in memory.
    pub(crate) fn own(&self) -> Option<&Stretch> {
        self.places().last()
    }

    /// Where it is read; `None`: in memory.
    pub(crate) fn held_at(&self) -> Option<&Stretch> {
        self.places().next()
    }

    /// Whether it is read in another file than its own, as the same bytes were open there before.
    pub fn is_shared(&self) -> bool {
        matches!(&self.0.bytes, Bytes::File { twin, .. } if twin.get().is_some())
    }

    fn error(&self, trouble: Trouble) -> WeightsError {
        let (file, tensor) = (self.file().to_owned(), self.name().to_owned());
        match trouble {
            Trouble::Change(Change::Shorter { from, to }) => WeightsError::Cut { file, tensor, need: from, have: to },
            Trouble::Change(Change::Written) => WeightsError::Changed { file, tensor },
            Trouble::Io(source) => WeightsError::Read { file, tensor, source },
        }
    }
}

impl fmt::Debug for TensorSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {:?} in {} at {:?}",
            self.name(),
            self.dtype(),
            self.shape(),
            self.file().display(),
            self.0.range
        )
    }
}
