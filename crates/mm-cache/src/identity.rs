//! What tells one file, and one state of a file, from another.

use std::fs::Metadata;

/// What makes two opens the same unchanged file. Paths play no part: links share one open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified_ns: i128,
    pub(crate) changed_ns: i128,
}

impl Identity {
    #[cfg(unix)]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Elsewhere the standard library names no inode.
    #[cfg(not(unix))]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let modified_ns = since.and_then(|age| i128::try_from(age.as_nanos()).ok()).unwrap_or(0);
        Self { device: 0, inode: 0, size: metadata.len(), modified_ns, changed_ns: 0 }
    }

    /// Whether it tells one file from another; where not, each open stands alone.
    pub(crate) const fn is_known(&self) -> bool {
        self.inode != 0
    }
}
