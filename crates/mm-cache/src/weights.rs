//! Several files of weights as one namespace of tensors, none of them copied.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{ContentId, Key};
use crate::error::WeightsError;
use crate::header;
use crate::index::Index;
use crate::key::{ContentParts, LoadParams};
use crate::open_file::OpenFile;
use crate::tensor::{Stretch, TensorSlice, ids};

/// The tensors of one or more safetensors or GGUF files, by name.
///
/// Opening reads headers only. A tensor is read ([`TensorSlice::read_into`]) or looked at in place
/// ([`TensorSlice::bytes`]) when it is asked for.
pub struct Weights {
    tensors: BTreeMap<String, TensorSlice>,
    files: Vec<PathBuf>,
}

impl Weights {
    /// Opens the files and checks their headers in full. Files that are one and the same, by whatever path, are open
    /// once in the process.
    ///
    /// A new file renamed over an old one changes nothing for those who opened the old one. A file written or
    /// truncated in place can no longer be read: [`TensorSlice::read_into`] then is an error.
    ///
    /// # Errors
    /// A file that cannot be read, is truncated or is of neither format; a tensor whose offsets are out of range,
    /// overlap or do not match its shape; a tensor name in two files, naming both.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Arc<Self>, WeightsError> {
        let mut tensors: BTreeMap<String, TensorSlice> = BTreeMap::new();
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let path: Arc<Path> = path.as_ref().into();
            let file = OpenFile::of(&path)?;
            for found in header::read(&path, &file)? {
                let (name, at) = (found.name.clone(), Stretch { file: file.clone(), range: found.range.clone() });
                let slice = TensorSlice::in_file(found, path.clone(), at);
                match tensors.entry(name) {
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

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSlice> {
        self.tensors.values()
    }

    /// The key of what is loaded from these weights in this way. Weights with the same tensors have the same key where a
    /// [`WeightStore`](crate::WeightStore) opened them, by whatever paths and in however many files.
    ///
    /// It holds within the process and while these weights live; it is no [`ContentId`](crate::ContentId), as that would take
    /// reading every byte.
    pub fn key(&self, params: &LoadParams<'_>) -> Key {
        let mut parts = ContentParts::new(params);
        for tensor in self.tensors.values() {
            parts.add(tensor.name().as_bytes());
            parts.add(format!("{} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
            if let Some(quantized) = tensor.quantized() {
                parts.add(format!("{} {:?}", quantized.kind.name(), quantized.shape).as_bytes());
            }
            if let Some(at) = tensor.held_at() {
                parts.add(&at.file.number().to_le_bytes());
                parts.add(&at.range.start.to_le_bytes());
            }
        }
        parts.key()
    }

    /// The content id of each tensor, as [`tensors`](Self::tensors) lists them; what `index` knows is not read.
    ///
    /// # Errors
    /// A file that can't be read, or that was truncated or written in place since it was opened.
    pub fn content_ids(&self, index: &Index) -> Result<Vec<ContentId>, WeightsError> {
        let own: Vec<&Stretch> = self.tensors.values().filter_map(TensorSlice::own).collect();
        let tensors: Vec<&TensorSlice> = self.tensors.values().collect();
        let ids = ids(index, &own).map_err(|(at, source)| WeightsError::Read {
            file: tensors[at].file().to_owned(),
            tensor: tensors[at].name().to_owned(),
            source,
        })?;
        // What was hashed is what was opened.
        tensors.iter().try_for_each(|tensor| tensor.check_own())?;
        Ok(ids)
    }

    /// Bytes of tensors that are held in another file's place.
    pub fn shared_bytes(&self) -> u64 {
        self.tensors.values().filter(|tensor| tensor.is_shared()).map(TensorSlice::byte_len).sum()
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("files", &self.files).field("tensors", &self.tensors).finish()
    }
}
