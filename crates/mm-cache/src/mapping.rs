//! The one place that maps files into memory; the only `unsafe` of this crate.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, LazyLock, Weak};

use memmap2::Mmap;
use parking_lot::Mutex;

use crate::error::WeightsError;

/// A whole file, mapped read-only and shared by everyone in the process who opens the same file.
pub(crate) struct Mapping {
    map: Mmap,
    /// Kept open, so that a later look at the size is about this file and not about a successor at its path.
    file: File,
    identity: Identity,
}

/// What makes two opens the same unchanged file. Paths play no part: links share one mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

static MAPPED: LazyLock<Mutex<HashMap<Identity, Weak<Mapping>>>> = LazyLock::new(Mutex::default);

impl Mapping {
    /// Maps the file at `path`, or hands out the mapping this process already has of that same file.
    pub(crate) fn of(path: &Path) -> Result<Arc<Self>, WeightsError> {
        let io = |source| WeightsError::Io { file: path.to_owned(), source };
        // Asked before opening, as opening a pipe would wait for its writer.
        let not_a_file = || WeightsError::NotAFile { file: path.to_owned() };
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(not_a_file());
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(not_a_file());
        }
        let Some(identity) = Identity::of(&metadata) else {
            return Self::new(file, Identity::unknown(metadata.len())).map(Arc::new).map_err(io);
        };
        // Held while mapping, which only reserves addresses, so that two threads cannot map one file twice.
        let mut mapped = MAPPED.lock();
        if let Some(mapping) = mapped.get(&identity).and_then(Weak::upgrade) {
            return Ok(mapping);
        }
        mapped.retain(|_, mapping| mapping.strong_count() > 0);
        let mapping = Arc::new(Self::new(file, identity).map_err(io)?);
        mapped.insert(identity, Arc::downgrade(&mapping));
        Ok(mapping)
    }

    #[allow(unsafe_code)]
    fn new(file: File, identity: Identity) -> io::Result<Self> {
        let size = usize::try_from(identity.size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // SAFETY:
        // 1. The map is read-only and private to this struct; nobody in this process can write through it, and
        //    `file` is opened for reading only.
        // 2. Every borrow of the bytes goes through `Deref`, so it cannot outlive the `Mmap` that owns the pages.
        // 3. The length is the one the file had when it was opened, so every page of it was backed by the file.
        // 4. The bytes are only ever read as `u8`, for which any value is valid.
        // What remains cannot be ruled out from here and is the caller's contract, stated at `Weights::open`: the
        // file must not be written or truncated in place while mapped. A write would change bytes under a shared
        // borrow; a truncation turns a later read into SIGBUS. Replacing the file (rename, unlink) is fine, as the
        // mapping keeps the old inode. `check` finds a change cheaply before a large read; it narrows the window
        // but cannot close it.
        let map = unsafe { memmap2::MmapOptions::new().len(size).map(&file) }?;
        Ok(Self { map, file, identity })
    }

    /// Whether the file still is what was mapped: an error if it was truncated or written since.
    pub(crate) fn is_unchanged(&self) -> io::Result<bool> {
        let now = self.file.metadata()?;
        Ok(match Identity::of(&now) {
            // Adding or removing a link touches ctime but not the bytes, so only size and mtime count here.
            Some(now) => now.size == self.identity.size && now.modified_ns == self.identity.modified_ns,
            None => now.len() == self.identity.size,
        })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Identity {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Elsewhere the standard library names no inode, and a mapping is made for each open.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Option<Self> {
        None
    }

    fn unknown(size: u64) -> Self {
        Self { device: 0, inode: 0, size, modified_ns: 0, changed_ns: 0 }
    }
}
