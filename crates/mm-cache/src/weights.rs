//! Several safetensors files as one namespace of tensors, none of them copied.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;

use crate::error::WeightsError;
use crate::header;
use crate::open_file::{Change, OpenFile};

/// The tensors of one or more safetensors files, by name.
///
/// Opening reads headers only. A tensor is read ([`TensorSlice::read_into`]) or looked at in place
/// ([`TensorSlice::bytes`]) when it is asked for.
pub struct Weights {
    tensors: BTreeMap<String, TensorSlice>,
    files: Vec<PathBuf>,
    open: Vec<Arc<OpenFile>>,
}

/// One tensor in a file or in memory: cloning it clones a reference.
#[derive(Clone)]
pub struct TensorSlice(Arc<Tensor>);

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: Arc<Path>,
    range: Range<u64>,
    bytes: Bytes,
}

enum Bytes {
    File(Arc<OpenFile>),
    Memory(Vec<u8>),
}

impl Weights {
    /// Opens the files and checks their headers in full. Files that are one and the same, by whatever path, are open
    /// once in the process.
    ///
    /// A new file renamed over an old one changes nothing for those who opened the old one. A file written or
    /// truncated in place can no longer be read: [`TensorSlice::read_into`] then is an error.
    ///
    /// # Errors
    /// A file that cannot be read, is truncated or is no safetensors file; a tensor whose offsets are out of range,
    /// overlap or do not match its shape; a tensor name in two files, naming both.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Arc<Self>, WeightsError> {
        let mut tensors = BTreeMap::new();
        let mut files = Vec::with_capacity(paths.len());
        let mut open = Vec::with_capacity(paths.len());
        for path in paths {
            let path: Arc<Path> = path.as_ref().into();
            let file = OpenFile::of(&path)?;
            for entry in header::read(&path, &file)? {
                let slice = TensorSlice(Arc::new(Tensor {
                    name: entry.name.clone(),
                    dtype: entry.dtype,
                    shape: entry.shape,
                    file: path.clone(),
                    range: entry.range,
                    bytes: Bytes::File(file.clone()),
                }));
                match tensors.entry(entry.name) {
                    Slot::Vacant(slot) => slot.insert(slice),
                    Slot::Occupied(slot) => {
                        return Err(WeightsError::Duplicate {
                            tensor: slot.key().clone(),
                            first: slot.get().file().to_owned(),
                            second: path.to_path_buf(),
                        });
                    }
                };
            }
            files.push(path.to_path_buf());
            open.push(file);
        }
        Ok(Arc::new(Self { tensors, files, open }))
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorSlice> {
        self.tensors.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files, in the order given.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether the paths still lead to the files that were opened, unchanged; if not, opening them again gives other
    /// weights, or an error.
    pub fn are_current(&self) -> bool {
        self.open.iter().zip(&self.files).all(|(file, path)| file.is_at(path))
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("files", &self.files).field("tensors", &self.tensors).finish()
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
        let (name, shape, file) = (name.into(), shape.into(), Path::new("(memory)"));
        if mm_header::byte_size(dtype, &shape) != Some(bytes.len()) {
            let reason = format!("{} bytes do not hold {dtype} {shape:?}", bytes.len());
            return Err(WeightsError::Tensor { file: file.to_owned(), tensor: name, reason });
        }
        let range = 0..bytes.len() as u64;
        Ok(Self(Arc::new(Tensor { name, dtype, shape, file: file.into(), range, bytes: Bytes::Memory(bytes) })))
    }

    /// Reads the bytes from `offset` on, within the tensor, into `into`: row-major and little-endian. Nothing is mapped.
    ///
    /// What was read is the file's content as of [`Weights::open`], or this is an error: after reading it asks whether
    /// the file was changed in place (its size, its mtime). Only a write that leaves the mtime as it was goes unseen.
    ///
    /// # Errors
    /// [`WeightsError::Cut`] and [`WeightsError::Changed`] where the file was truncated or written in place,
    /// [`WeightsError::Read`] where the system could not read it, [`WeightsError::Tensor`] where the tensor is not that
    /// long. `into` then holds nothing of use.
    pub fn read_into(&self, offset: u64, into: &mut [u8]) -> Result<(), WeightsError> {
        let end = offset.checked_add(into.len() as u64).filter(|end| *end <= self.byte_len());
        let Some(end) = end else {
            let reason = format!("{} bytes at {offset} asked of its {}", into.len(), self.byte_len());
            return Err(WeightsError::Tensor { file: self.file().to_owned(), tensor: self.name().to_owned(), reason });
        };
        match &self.0.bytes {
            // In range: `end` is at most the length of the vector.
            Bytes::Memory(bytes) => into.copy_from_slice(&bytes[offset as usize..end as usize]),
            Bytes::File(file) => {
                let read = file.read_at(self.0.range.start + offset, into);
                // A truncated file shows as a short read; what became of it is the better error.
                self.check()?;
                read.map_err(|source| self.unreadable(source))?;
            }
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
        let file = match &self.0.bytes {
            Bytes::Memory(bytes) => return Ok(bytes),
            Bytes::File(file) => file,
        };
        self.check()?;
        let whole = file.map().map_err(|source| self.unreadable(source))?;
        // In range: checked against the file's size, which is the mapping's length, when the slice was made.
        Ok(&whole[self.0.range.start as usize..self.0.range.end as usize])
    }

    /// Length in bytes, as stored.
    pub fn byte_len(&self) -> u64 {
        self.0.range.end - self.0.range.start
    }

    /// The stored element type.
    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// The full dotted name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file it lies in, as it was named to [`Weights::open`]; `(memory)` for a tensor made from bytes.
    pub fn file(&self) -> &Path {
        &self.0.file
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
        let Bytes::File(file) = &self.0.bytes else { return Ok(()) };
        let (path, tensor) = (self.file().to_owned(), self.name().to_owned());
        match file.change() {
            Ok(None) => Ok(()),
            Ok(Some(Change::Shorter(have))) => Err(WeightsError::Cut { file: path, tensor, need: file.size(), have }),
            Ok(Some(Change::Written)) => Err(WeightsError::Changed { file: path, tensor }),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    fn unreadable(&self, source: std::io::Error) -> WeightsError {
        WeightsError::Read { file: self.file().to_owned(), tensor: self.name().to_owned(), source }
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
