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
use crate::mapping::Mapping;

/// The tensors of one or more safetensors files, by name.
///
/// Opening reads headers only; a tensor's pages are read from disk when its bytes are first looked at, and the
/// system may drop them again whenever it needs the memory.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, TensorSlice>,
    files: Vec<PathBuf>,
}

/// One tensor's bytes, shared and never copied: cloning it clones a reference.
#[derive(Clone)]
pub struct TensorSlice(Arc<Tensor>);

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: Arc<Path>,
    range: Range<usize>,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Arc<Mapping>),
    Owned(Vec<u8>),
}

impl Weights {
    /// Maps the files and checks their headers in full. Files that are one and the same, by whatever path, share one
    /// mapping in the process.
    ///
    /// The files must not be written or truncated in place while these weights or any tensor of them live: the
    /// system then changes bytes that are being read, or ends the process. Renaming a new file over an old one is
    /// safe. [`TensorSlice::check`] tells whether it happened.
    ///
    /// # Errors
    /// A file that cannot be read, is truncated or is no safetensors file; a tensor whose offsets are out of range,
    /// overlap or do not match its shape; a tensor name in two files, naming both.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Arc<Self>, WeightsError> {
        let mut tensors = BTreeMap::new();
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let path: Arc<Path> = path.as_ref().into();
            let mapping = Mapping::of(&path)?;
            for entry in header::parse(&path, &mapping)? {
                let slice = TensorSlice(Arc::new(Tensor {
                    name: entry.name.clone(),
                    dtype: entry.dtype,
                    shape: entry.shape,
                    file: path.clone(),
                    range: entry.range,
                    bytes: Bytes::Mapped(mapping.clone()),
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
        }
        Ok(Arc::new(Self { tensors, files }))
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
        if header::byte_size(dtype, &shape) != Some(bytes.len()) {
            let reason = format!("{} bytes do not hold {dtype} {shape:?}", bytes.len());
            return Err(WeightsError::Tensor { file: file.to_owned(), tensor: name, reason });
        }
        let range = 0..bytes.len();
        Ok(Self(Arc::new(Tensor { name, dtype, shape, file: file.into(), range, bytes: Bytes::Owned(bytes) })))
    }

    /// The bytes, row-major and little-endian. They start at no particular alignment.
    pub fn bytes(&self) -> &[u8] {
        let whole: &[u8] = match &self.0.bytes {
            Bytes::Mapped(mapping) => mapping,
            Bytes::Owned(bytes) => bytes,
        };
        // In range: checked against the mapping's length when the slice was made.
        &whole[self.0.range.clone()]
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
        self.0.range.start as u64..self.0.range.end as u64
    }

    /// Asks the system, with one call, whether the file still is what was mapped. Worth it before a long read; a
    /// tensor in memory is always unchanged.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] where the file was truncated or written in place.
    pub fn check(&self) -> Result<(), WeightsError> {
        let Bytes::Mapped(mapping) = &self.0.bytes else { return Ok(()) };
        match mapping.is_unchanged() {
            Ok(true) => Ok(()),
            Ok(false) => Err(WeightsError::Changed { file: self.file().to_owned() }),
            Err(source) => Err(WeightsError::Io { file: self.file().to_owned(), source }),
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
