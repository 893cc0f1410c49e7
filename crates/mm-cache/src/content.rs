//! Content ids of files and folders.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::ContentId;
use crate::open_file::open_regular;

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

/// Read so much at a time: enough to keep all cores busy for longer than starting them takes, and little enough to be in
/// the caches still when it is hashed.
const CHUNK: usize = 4 << 20;

/// The content id of a file, hashed on all cores. It is read, not mapped: under a mapping a truncation ends the process.
///
/// # Errors
/// A missing or unreadable file; anything that is not a regular file; a file that is truncated meanwhile.
pub fn content_id(path: impl AsRef<Path>) -> Result<ContentId, ContentError> {
    let path = path.as_ref();
    let io = |source| ContentError::Io { path: path.to_owned(), source };
    let Some((mut file, metadata)) = open_regular(path).map_err(io)? else {
        return Err(ContentError::NotAFile { path: path.to_owned() });
    };
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    // One byte more than a small file has, so that its end shows without another chunk.
    let mut chunk = vec![0; size.saturating_add(1).min(CHUNK)];
    let mut hasher = blake3::Hasher::new();
    let mut hashed = 0;
    loop {
        let mut filled = 0;
        while filled < chunk.len() {
            match file.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
        hasher.update_rayon(&chunk[..filled]);
        hashed += filled as u64;
        if filled == chunk.len() {
            continue;
        }
        if hashed < metadata.len() {
            let reason = format!("truncated from {} to {hashed} bytes while it was read", metadata.len());
            return Err(io(io::Error::new(io::ErrorKind::UnexpectedEof, reason)));
        }
        return Ok(hasher.finalize().into());
    }
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
