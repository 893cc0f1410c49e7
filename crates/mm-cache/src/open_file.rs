//! A weights file, opened once per process, that notices when it is no longer the file that was opened.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock, Weak};

use memmap2::Mmap;
use parking_lot::Mutex;

use crate::direct::Direct;
use crate::error::WeightsError;
use crate::identity::Identity;
use crate::mapping;
use crate::reading::{open_regular, read_exact_at};

/// An open file, shared by everyone in the process who opens the same one.
pub(crate) struct OpenFile {
    /// Kept open, so that what is read later is this file and not a successor at its path.
    file: File,
    identity: Identity,
    /// Of all files that this process ever had open, the only one with this number.
    number: u64,
    direct: Direct,
    map: OnceLock<Mmap>,
    /// Held while mapping, so that two threads cannot map one file twice.
    mapping: Mutex<()>,
}

/// How an open file differs from what it was.
pub(crate) enum Change {
    /// It became shorter; its bytes when it was opened, and now.
    Shorter { from: u64, to: u64 },
    /// It was written, or became longer.
    Written,
}

static OPENED: AtomicU64 = AtomicU64::new(0);
static OPEN: LazyLock<Mutex<HashMap<Identity, Weak<OpenFile>>>> = LazyLock::new(Mutex::default);

impl OpenFile {
    /// Opens the file at `path`, or hands out what this process already has open of that same file.
    pub(crate) fn of(path: &Path) -> Result<Arc<Self>, WeightsError> {
        let io = |source| WeightsError::Io { file: path.to_owned(), source };
        let Some((file, metadata)) = open_regular(path).map_err(io)? else {
            return Err(WeightsError::NotAFile { file: path.to_owned() });
        };
        let identity = Identity::of(&metadata);
        let number = OPENED.fetch_add(1, Relaxed);
        let make = || {
            Arc::new(Self {
                file,
                identity,
                number,
                direct: Direct::default(),
                map: OnceLock::new(),
                mapping: Mutex::new(()),
            })
        };
        if !identity.is_known() {
            return Ok(make());
        }
        let mut open = OPEN.lock();
        if let Some(known) = open.get(&identity).and_then(Weak::upgrade) {
            return Ok(known);
        }
        open.retain(|_, file| file.strong_count() > 0);
        let made = make();
        open.insert(identity, Arc::downgrade(&made));
        Ok(made)
    }

    /// Bytes in the file when it was opened.
    pub(crate) const fn size(&self) -> u64 {
        self.identity.size
    }

    /// What tells this open file from every other, also later ones.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// The file itself, to be read by position only.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Fills `into` with the bytes at `offset`. Reads the file itself, so that a file that became shorter is an
    /// error and not the end of the process.
    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        read_exact_at(&self.file, offset, into)
    }

    /// The same around the page cache, where the file system and the length allow it.
    pub(crate) fn read_around_cache(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.direct.read(&self.file, offset, into)? { Ok(()) } else { self.read_at(offset, into) }
    }

    /// The whole file, mapped when this is first called.
    pub(crate) fn map(&self) -> io::Result<&[u8]> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let _one = self.mapping.lock();
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = mapping::map(&self.file, self.identity.size)?;
        Ok(self.map.get_or_init(|| map))
    }

    /// What became of the file since it was opened; `None`: nothing. One call of the system.
    pub(crate) fn change(&self) -> io::Result<Option<Change>> {
        let now = Identity::of(&self.file.metadata()?);
        // Adding or removing a link touches ctime but not the bytes, so only size and mtime count here.
        Ok(if now.size < self.identity.size {
            Some(Change::Shorter { from: self.identity.size, to: now.size })
        } else if now.size > self.identity.size || now.modified_ns != self.identity.modified_ns {
            Some(Change::Written)
        } else {
            None
        })
    }
}
