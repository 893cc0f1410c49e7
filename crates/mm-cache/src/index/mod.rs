//! Content ids that were computed once and are known ever after.

mod database;
mod fault;
mod place;
mod seal;
mod store;

pub use place::user_folder;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;

use crate::content::{ContentError, files_under, id_of};
use crate::digest::ContentId;
use crate::hash::{Cores, hash_range, on_all_cores};
use crate::identity::Identity;
use crate::index::store::Store;
use crate::reading::open_regular;

/// How old a file's stamps have to be before its id is remembered; see [`Identity::is_settled`].
const MARGIN: Duration = Duration::from_secs(2);

/// How often a file that changes while it is hashed is hashed again.
const TRIES: u32 = 3;

/// Remembers on disk which file has which content id, so that no file is hashed twice while it does not change.
///
/// It is a SQLite database that any number of processes use at once. It may be deleted at any time, also while it is in
/// use, and no process that is killed leaves it unusable. Where it cannot be used, everything still works, files are
/// hashed again, and [`Index::problem`] says what is the matter. It is opened when it is first needed.
///
/// A file is known by its device, inode, size, mtime and ctime, and never by its path. All five have to be as they
/// were: a file that was changed has another ctime, even where its size stayed and its mtime was set back, as ctime
/// cannot be set. What was changed less than two seconds ago is hashed and not remembered, as it may change again
/// within one tick of the file system's clock. Each row is sealed: an index that a disk or a power loss damaged gives no
/// wrong id, and is replaced by a fresh one.
///
/// Some changes leave no stamp, and no index can see them:
/// - A write through a shared writable mapping, to a page that was written that way before, is stamped only once the
///   system has written that page back (up to half a minute); on tmpfs never. Hash a file after those who write it
///   that way have closed it.
/// - A write to the disk below the file system; a file system that makes up the bytes of its files as they are read.
/// - A write within a tick of the clock after the clock was set back to the very tick of the write before; on a network
///   file system, one right after hashing where its server's clock is more than two seconds behind.
///
/// An index is believed, so it belongs where only its user can write: who can write it can forge ids.
pub struct Index {
    store: Store,
    margin: Duration,
    hits: AtomicU64,
    misses: AtomicU64,
    hashed_bytes: AtomicU64,
}

/// What an [`Index`] was asked in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Ids of files and tensors that were known.
    pub hits: u64,
    /// Ids of files and tensors that had to be computed.
    pub misses: u64,
    /// Bytes that were hashed for that.
    pub hashed_bytes: u64,
}

impl Index {
    /// The user's index: `index.sqlite3` in the folder that `MM_CACHE_DIR` names; where that is not set, in `mm` in the
    /// system's folder for caches (`$XDG_CACHE_HOME` or `~/.cache`; on Windows `%LOCALAPPDATA%`). Where there is no such
    /// folder nothing is remembered, and [`Index::problem`] says so.
    pub fn user() -> Self {
        Self::on(match place::of_user() {
            Ok(path) => Store::at(&path),
            Err(problem) => Store::none(Some(problem)),
        })
    }

    /// The index at a path, made there with its folders when first needed. A damaged one is replaced, and so is any
    /// other file at that path, save a database of another program.
    pub fn at(path: impl AsRef<Path>) -> Self {
        Self::on(Store::at(path.as_ref()))
    }

    /// Remembers nothing.
    pub fn none() -> Self {
        Self::on(Store::none(None))
    }

    fn on(store: Store) -> Self {
        let zero = AtomicU64::default;
        Self { store, margin: MARGIN, hits: zero(), misses: zero(), hashed_bytes: zero() }
    }

    /// How old stamps have to be. For tests, which cannot wait; on a file system with a tick of 10 ms less than that
    /// gives stale ids.
    #[doc(hidden)]
    #[must_use]
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = margin;
        self
    }

    /// The content id of a file: looked up, or hashed on all cores and remembered.
    ///
    /// # Errors
    /// A missing or unreadable file; anything that is not a regular file; a file that is truncated or written meanwhile.
    pub fn content_id(&self, path: impl AsRef<Path>) -> Result<ContentId, ContentError> {
        self.content_id_with(path, &|_| {})
    }

    /// As [`Index::content_id`]; `progress` is told, from any thread, how many bytes were hashed since it was last told.
    /// A file that changes while it is hashed is hashed anew, so all told may be more than the file's size.
    ///
    /// # Errors
    /// As [`Index::content_id`].
    pub fn content_id_with(
        &self,
        path: impl AsRef<Path>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<ContentId, ContentError> {
        let path = path.as_ref();
        let io = |source| ContentError::Io { path: path.to_owned(), source };
        let Some((file, _)) = open_regular(path).map_err(io)? else {
            return Err(ContentError::NotAFile { path: path.to_owned() });
        };
        self.file_id_with(&file, progress).map_err(io)
    }

    /// The content ids of all files under a folder, sorted by path; of a file, its own.
    ///
    /// Links are followed. A directory that is reached twice, through a link or a cycle of them, is listed once.
    ///
    /// # Errors
    /// The first path, in that order, that is missing, unreadable, being written or neither file nor directory.
    pub fn content_ids(&self, path: impl AsRef<Path>) -> Result<Vec<(PathBuf, ContentId)>, ContentError> {
        let files = files_under(path)?;
        files.into_iter().map(|file| self.content_id(&file).map(|id| (file, id))).collect()
    }

    /// The content id of an open file, all of it, wherever its cursor stands.
    ///
    /// # Errors
    /// What the system said; a file that is truncated or written meanwhile. The caller names the file.
    pub fn file_id(&self, file: &File) -> io::Result<ContentId> {
        self.file_id_with(file, &|_| {})
    }

    fn file_id_with(&self, file: &File, progress: &(dyn Fn(u64) + Sync)) -> io::Result<ContentId> {
        unchanged(file, |identity, now| {
            // What is looked up is the open file, asked just now, and no path: an answer holds for a moment during this
            // call, and more no answer can. Opening it first also makes a network file system ask its server anew.
            if let Some(id) = self.store.content(identity) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok((id, None));
            }
            let (id, length) = id_of(file, identity.size, &|bytes| self.hashed(bytes, progress))?;
            // Files whose size is not that of their bytes are made up as they are read (`/proc`), without new stamps.
            let is_real = length == identity.size && length > 0;
            Ok((id, Some(is_real && identity.is_settled(now, self.margin))))
        })
        .map(|(identity, (id, hashed))| {
            if let Some(is_lasting) = hashed {
                self.misses.fetch_add(1, Ordering::Relaxed);
                if is_lasting {
                    self.store.remember(&identity, Some(id), &[]);
                }
            }
            id
        })
    }

    /// The content ids of stretches of an open file, its tensors, in the order given. Those not known are hashed on all
    /// cores and remembered at once; the rest of the file is not read.
    ///
    /// # Errors
    /// What the system said; a stretch that is not all there, or ends before it begins; a file that is written meanwhile.
    /// The caller names the file.
    pub fn tensor_ids(&self, file: &File, ranges: &[Range<u64>]) -> io::Result<Vec<ContentId>> {
        let (identity, (ids, new, is_lasting)) = unchanged(file, |identity, now| {
            let known = self.store.tensors(identity, ranges);
            let id = |(range, known): (&Range<u64>, Option<ContentId>)| match known {
                Some(id) => Ok((id, false)),
                None => hash_range(file, range.clone(), &|bytes| self.hashed(bytes, &|_| {})).map(|id| (id, true)),
            };
            let ids: Vec<(ContentId, bool)> = on_all_cores(|cores| match cores {
                Cores::All => ranges.par_iter().zip(known).map(id).collect::<io::Result<_>>(),
                Cores::One => ranges.iter().zip(known).map(id).collect(),
            })?;
            let new: Vec<_> = ranges.iter().zip(&ids).filter(|(_, (_, is_new))| *is_new).collect();
            let new: Vec<_> = new.into_iter().map(|(range, (id, _))| (range.clone(), *id)).collect();
            Ok((ids, new, identity.is_settled(now, self.margin)))
        })?;
        self.misses.fetch_add(new.len() as u64, Ordering::Relaxed);
        self.hits.fetch_add((ids.len() - new.len()) as u64, Ordering::Relaxed);
        if is_lasting && !new.is_empty() {
            self.store.remember(&identity, None, &new);
        }
        Ok(ids.into_iter().map(|(id, _)| id).collect())
    }

    fn hashed(&self, bytes: u64, progress: &(dyn Fn(u64) + Sync)) {
        self.hashed_bytes.fetch_add(bytes, Ordering::Relaxed);
        progress(bytes);
    }

    /// Where it lies; `None`: it remembers nothing.
    pub fn path(&self) -> Option<&Path> {
        self.store.path()
    }

    /// How often it helped so far.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            hashed_bytes: self.hashed_bytes.load(Ordering::Relaxed),
        }
    }

    /// Why it last could not look up or remember something, in one sentence that says what to do; `None` where all went
    /// well, or nothing was asked yet.
    pub fn problem(&self) -> Option<String> {
        self.store.problem()
    }
}

/// Remembers nothing.
impl Default for Index {
    fn default() -> Self {
        Self::none()
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("path", &self.store.path()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What `find` makes of a file whose stamps are the same before and after, with what tells that file from others. `find`
/// is given the moment before which all was written that it can see.
fn unchanged<T>(file: &File, find: impl Fn(&Identity, SystemTime) -> io::Result<T>) -> io::Result<(Identity, T)> {
    for _ in 0..TRIES {
        let now = SystemTime::now();
        let before = Identity::of(&file.metadata()?);
        let found = find(&before, now)?;
        if Identity::of(&file.metadata()?) == before {
            return Ok((before, found));
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is being written: wait until that is done and try again"))
}
