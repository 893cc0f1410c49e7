//! What loaded things are kept under: a key from an identifier, or from contents and the way they are loaded.

use crate::digest::{ContentId, Key};

/// The key for whatever an identifier stands for: a repository id with its revision, a path, a URL.
pub fn component_hash(identifier: &str) -> Key {
    blake3::hash(identifier.as_bytes()).into()
}

/// What makes two loads of the same files differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadParams<'a> {
    /// The dtype computed in.
    pub dtype: &'a str,
    /// The device it is loaded for.
    pub device: &'a str,
    /// Everything else that decides what is built: the text of a configuration file, say.
    pub config: &'a [u8],
}

/// The key for what is loaded from these contents, in this order and in this way, wherever they lie.
///
/// ```
/// use mm_cache::{ContentId, LoadParams, content_hash};
///
/// let files = [ContentId::of(b"weights")];
/// let params = LoadParams { dtype: "f32", device: "cpu", config: br#"{"layers": 3}"# };
/// assert_eq!(content_hash(&files, &params), content_hash(&files, &params));
/// assert_ne!(content_hash(&files, &params), content_hash(&files, &LoadParams { dtype: "bf16", ..params }));
/// ```
pub fn content_hash(contents: &[ContentId], params: &LoadParams<'_>) -> Key {
    let mut parts = ContentParts::new(params);
    contents.iter().for_each(|id| parts.add(id.as_bytes()));
    parts.key()
}

/// The content id of several files that belong together, a component's for example, in whatever order: it depends on
/// their bytes and not on their names.
pub fn joint_id(files: impl IntoIterator<Item = ContentId>) -> ContentId {
    let mut files: Vec<ContentId> = files.into_iter().collect();
    files.sort();
    let mut hasher = blake3::Hasher::new_derive_key("mm-cache 2026-11-25 files that belong together");
    for id in &files {
        hasher.update(id.as_bytes());
    }
    hasher.finalize().into()
}

/// A key under way, of parts that can't run into each other.
pub(crate) struct ContentParts(blake3::Hasher);

impl ContentParts {
    pub(crate) fn new(params: &LoadParams<'_>) -> Self {
        let mut parts = Self(blake3::Hasher::new_derive_key("mm-cache 2026-11-25 contents and load parameters"));
        [params.dtype.as_bytes(), params.device.as_bytes(), params.config].iter().for_each(|part| parts.add(part));
        parts
    }

    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub(crate) fn key(self) -> Key {
        self.0.finalize().into()
    }
}
