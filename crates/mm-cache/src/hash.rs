//! blake3 of a stretch of an open file, read and hashed on all cores at once.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::LazyLock;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::digest::ContentId;
use crate::reading::read_exact_at;

/// What one core reads and hashes at a time: it stays in the core's nearest caches until it is hashed, and is more than
/// the widest vector unit takes at once. Of 32 KiB to 4 MiB this was the fastest. A power of two of chunks, as a
/// subtree has to be.
const LEAF: u64 = 64 << 10;

/// Hashing has threads of its own. In a pool that also runs a caller's work, a thread that waits for its half of a tree may
/// begin something else of the caller's meanwhile, which may wait for what this one holds.
static POOL: LazyLock<Option<ThreadPool>> = LazyLock::new(|| ThreadPoolBuilder::new().build().ok());

/// Runs `work` on those threads; on this one alone where it belongs to another pool, or where there are no threads to be had.
pub(crate) fn on_all_cores<T: Send>(work: impl FnOnce(Cores) -> T + Send) -> T {
    match &*POOL {
        Some(pool) if pool.current_thread_index().is_some() => work(Cores::All),
        Some(pool) if rayon::current_thread_index().is_none() => pool.install(|| work(Cores::All)),
        _ => work(Cores::One),
    }
}

/// How many threads may share the work.
#[derive(Clone, Copy)]
pub(crate) enum Cores {
    All,
    One,
}

thread_local! {
    static LEAF_BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The id of the bytes in `range`, which must be there to be read. `progress` is told, from any thread, how many bytes
/// were hashed since it was last told.
///
/// blake3 is a tree: its subtrees are hashed apart, each read by the core that hashes it, and joined afterwards. So
/// reading goes on on all cores beside hashing, and nothing is mapped: under a mapping a truncation ends the process.
pub(crate) fn hash_range(file: &File, range: Range<u64>, progress: &(dyn Fn(u64) + Sync)) -> io::Result<ContentId> {
    let Some(length) = range.end.checked_sub(range.start) else {
        let reason = format!("a range of bytes that ends at {} before it begins at {}", range.end, range.start);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    };
    on_all_cores(|cores| {
        let tree = Tree { file, start: range.start, cores, progress };
        if length <= LEAF {
            return tree.leaf(0, length, |bytes| blake3::hash(bytes).into());
        }
        let (left, right) = tree.halves(0, length)?;
        Ok(merge_subtrees_root(&left, &right, Mode::Hash).into())
    })
}

struct Tree<'a> {
    file: &'a File,
    /// Where the hashed stretch begins in the file.
    start: u64,
    cores: Cores,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Tree<'_> {
    fn halves(&self, offset: u64, length: u64) -> io::Result<(ChainingValue, ChainingValue)> {
        let left = left_subtree_len(length);
        let halves = (|| self.subtree(offset, left), || self.subtree(offset + left, length - left));
        let (left, right) = match self.cores {
            Cores::All => rayon::join(halves.0, halves.1),
            Cores::One => (halves.0(), halves.1()),
        };
        Ok((left?, right?))
    }

    fn subtree(&self, offset: u64, length: u64) -> io::Result<ChainingValue> {
        if length > LEAF {
            let (left, right) = self.halves(offset, length)?;
            return Ok(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        self.leaf(offset, length, |bytes| {
            blake3::Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
        })
    }

    /// At most a leaf, in a buffer that each thread keeps.
    fn leaf<T>(&self, offset: u64, length: u64, hash: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let hashed = LEAF_BYTES.with_borrow_mut(|bytes| {
            // At most `LEAF`.
            bytes.resize(length as usize, 0);
            read_exact_at(self.file, self.start + offset, bytes)?;
            io::Result::Ok(hash(bytes))
        })?;
        // The buffer is free again: who is told may hash something itself.
        (self.progress)(length);
        Ok(hashed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// blake3's own test pattern.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn any_stretch_has_the_id_that_its_bytes_have() {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes = pattern(5 * LEAF as usize + 77);
        file.write_all(&bytes).expect("writes");
        let leaf = LEAF as usize;
        let lengths =
            [0, 1, 1023, 1024, 1025, leaf - 1, leaf, leaf + 1, 2 * leaf, 2 * leaf + 1, 3 * leaf - 1, 5 * leaf];
        for start in [0, 1, 77] {
            for length in lengths {
                let id = hash_range(&file, start..start + length as u64, &|_| {}).expect("hashes");
                let stretch = &bytes[start as usize..start as usize + length];
                assert_eq!(id, blake3::hash(stretch).into(), "{length} bytes at {start}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&pattern(3 * LEAF as usize)).expect("writes");
        for end in [3 * LEAF + 1, 9 * LEAF] {
            assert_eq!(hash_range(&file, 0..end, &|_| {}).expect_err("too long").kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn progress_adds_up_to_what_was_asked_for() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&pattern(3 * LEAF as usize)).expect("writes");
        for length in [0, 1, LEAF, 2 * LEAF + 1] {
            let hashed = std::sync::atomic::AtomicU64::new(0);
            let progress = |bytes| {
                hashed.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            };
            hash_range(&file, 7..7 + length, &progress).expect("hashes");
            assert_eq!(hashed.into_inner(), length);
        }
    }

    #[test]
    fn a_range_that_ends_before_it_begins_is_an_error() {
        let file = tempfile::tempfile().expect("a file");
        let backwards = Range { start: 2, end: 1 };
        assert_eq!(hash_range(&file, backwards, &|_| {}).expect_err("backwards").kind(), io::ErrorKind::InvalidInput);
    }
}
