//! Content ids of files and folders.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::ContentId;
use crate::hash::hash_range;
use crate::index::Index;
use crate::reading::read_at;

/// Why a content id could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// Missing or unreadable, a link to nowhere included: check the path and its permissions. Or being written: wait
    /// until that is done.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe, socket or device has no content to identify; a directory has many: see [`content_ids`].
    #[error("{} is not a regular file and has no content id", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
}

/// Files up to this size are read to their end, as some (`/proc` has them) hold more than the size they tell.
const SMALL: u64 = 64 << 10;

/// The content id of a file, read and hashed on all cores. Nothing is remembered: see [`Index::content_id`].
///
/// # Errors
/// A missing or unreadable file; anything that is not a regular file; a file that is truncated or written meanwhile.
pub fn content_id(path: impl AsRef<Path>) -> Result<ContentId, ContentError> {
    Index::none().content_id(path)
}

/// The content id of an open file of that size, read from its start, and of how many bytes it is.
pub(crate) fn id_of(file: &File, size: u64, progress: &(dyn Fn(u64) + Sync)) -> io::Result<(ContentId, u64)> {
    if size <= SMALL {
        let bytes = read_whole(file, size)?;
        let length = bytes.len() as u64;
        if length < size {
            return Err(truncated(size, length));
        }
        let id = blake3::hash(&bytes).into();
        progress(length);
        return Ok((id, length));
    }
    let id = hash_range(file, 0..size, progress).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(size, file.metadata().map_or(0, |now| now.len())),
        _ => error,
    })?;
    Ok((id, size))
}

/// Reads to the end by position: where an open file is shared, so is its cursor.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    // At most `SMALL`, and one more to meet the end.
    let mut bytes = vec![0; size as usize + 1];
    let mut length = 0;
    loop {
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
        match read_at(file, length as u64, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

fn truncated(from: u64, to: u64) -> io::Error {
    let reason = format!("truncated from {from} to {to} bytes while it was read");
    io::Error::new(io::ErrorKind::UnexpectedEof, reason)
}

/// The content ids of all files under a folder, sorted by path; of a file, its own.
///
/// Links are followed. A directory that is reached twice, through a link or a cycle of them, is listed once.
///
/// # Errors
/// The first path, in that order, that is missing, unreadable or neither file nor directory.
pub fn content_ids(path: impl AsRef<Path>) -> Result<Vec<(PathBuf, ContentId)>, ContentError> {
    Index::none().content_ids(path)
}

/// All files under a folder, sorted, as [`content_ids`] hashes them; a file alone.
///
/// # Errors
/// A path that is missing or unreadable.
pub fn files_under(path: impl AsRef<Path>) -> Result<Vec<PathBuf>, ContentError> {
    let mut files = Vec::new();
    collect(path.as_ref(), &mut HashSet::new(), &mut files)?;
    files.sort();
    Ok(files)
}

/// Lists files without recursion on the call stack, as a hostile folder may be deep.
fn collect(root: &Path, seen: &mut HashSet<PathBuf>, files: &mut Vec<PathBuf>) -> Result<(), ContentError> {
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let io = |source| ContentError::Io { path: path.clone(), source };
        if !path.metadata().map_err(io)?.is_dir() {
            files.push(path);
            continue;
        }
        if !seen.insert(path.canonicalize().map_err(io)?) {
            continue;
        }
        let mut entries = Vec::new();
        for entry in path.read_dir().map_err(io)? {
            entries.push(entry.map_err(io)?.path());
        }
        // Last is popped first: which of two names of one directory is listed must not depend on the file system.
        entries.sort_by(|a, b| b.cmp(a));
        pending.append(&mut entries);
    }
    Ok(())
}
