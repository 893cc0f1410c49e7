//! Files whose stamps are old enough to be remembered, without waiting for seconds.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use mm_cache::{ContentId, Index};

/// More than the longest tick of a kernel's clock, 10 ms.
const MARGIN: Duration = Duration::from_millis(20);

/// An index that remembers a file as soon as it is `settled`.
pub(crate) fn index_at(path: &Path) -> Index {
    Index::at(path).margin(MARGIN)
}

/// Waits until what was written so far is old enough.
pub(crate) fn settle() {
    thread::sleep(MARGIN + MARGIN / 2);
}

/// A folder in memory, where there is one: thousands of transactions wait for no disk. What a killed process wrote is
/// kept by the system either way.
pub(crate) fn quick_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// This test program once more, as a process of its own, that runs only the test of that name.
pub(crate) fn process(test: &str, environment: &[(&str, &OsStr)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).envs(environment.iter().copied());
    command
}

/// Bytes that no other seed gives.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Other bytes, as many, with the mtime that the file had.
pub(crate) fn rewrite_unseen(path: &Path, bytes: &[u8]) {
    let before = fs::metadata(path).expect("stamps");
    assert_eq!(before.len(), bytes.len() as u64);
    let mut file = File::options().write(true).open(path).expect("opens");
    file.write_all(bytes).expect("writes");
    file.set_modified(before.modified().expect("an mtime")).expect("sets it back");
}

/// The ids that an index gives are those of the bytes that are there: of the file, and of all its tensors.
pub(crate) fn assert_right(index: &Index, path: &Path, ranges: &[Range<u64>]) {
    let held = fs::read(path).expect("reads");
    let id = index.content_id(path).unwrap_or_else(|error| panic!("{error}"));
    assert!(id == ContentId::of(&held), "{} has a wrong id: {:?}", path.display(), index.problem());
    let ids = index.tensor_ids(&File::open(path).expect("opens"), ranges).expect("hashes");
    for (range, id) in ranges.iter().zip(ids) {
        let stretch = &held[range.start as usize..range.end as usize];
        assert!(id == ContentId::of(stretch), "{range:?} of {} has a wrong id", path.display());
    }
}
