//! Content ids of files and folders.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::ContentId;
use crate::hash::hash_range;
use crate::reading::open_regular;

/// Why a content id could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// Missing or unreadable, a link to nowhere included: check the path and its permissions.
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

/// The content id of a file, read and hashed on all cores.
///
/// # Errors
/// A missing or unreadable file; anything that is not a regular file; a file that is truncated meanwhile.
pub fn content_id(path: impl AsRef<Path>) -> Result<ContentId, ContentError> {
    let path = path.as_ref();
    let io = |source| ContentError::Io { path: path.to_owned(), source };
    let Some((file, metadata)) = open_regular(path).map_err(io)? else {
        return Err(ContentError::NotAFile { path: path.to_owned() });
    };
    id_of(&file, metadata.len()).map_err(io)
}

/// The content id of an open file of that size.
fn id_of(mut file: &File, size: u64) -> io::Result<ContentId> {
    if size <= SMALL {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(truncated(size, bytes.len() as u64));
        }
        return Ok(ContentId::of(&bytes));
    }
    hash_range(file, 0..size).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(size, file.metadata().map_or(0, |now| now.len())),
        _ => error,
    })
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
    let mut files = Vec::new();
    collect(path.as_ref(), &mut HashSet::new(), &mut files)?;
    files.sort();
    files.into_iter().map(|file| content_id(&file).map(|id| (file, id))).collect()
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
