//! An index that is damaged, not to be used or gone never gives a wrong id, nor an error.
#![cfg(unix)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{assert_right, bytes, index_at, quick_folder, settle};
use mm_cache::{ContentId, Index};
use rusqlite::Connection;

struct Files {
    folder: tempfile::TempDir,
    files: Vec<PathBuf>,
    ranges: Vec<Range<u64>>,
}

impl Files {
    /// A few small files, old enough to be remembered.
    fn new() -> Self {
        let folder = quick_folder();
        let files: Vec<PathBuf> = (0..5).map(|i| folder.path().join(format!("f{i}"))).collect();
        for (seed, file) in files.iter().enumerate() {
            fs::write(file, bytes(seed as u64, 2000)).expect("writes");
        }
        settle();
        Self { folder, files, ranges: (0..40).map(|i| i * 50..i * 50 + 50).collect() }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("index.sqlite3")
    }

    fn assert_right(&self, index: &Index) {
        for file in &self.files {
            assert_right(index, file, &self.ranges);
        }
    }

    fn assert_all_known(&self, index: &Index) {
        let misses = index.stats().misses;
        self.assert_right(index);
        assert_eq!(index.stats().misses, misses, "{:?}", index.problem());
    }

    /// A damaged row is met only when it is asked for: what was found before that is forgotten with the rest.
    fn assert_right_and_then_known(&self, index: &Index) {
        self.assert_right(index);
        self.assert_right(index);
        self.assert_all_known(index);
    }

    /// The bytes of an index that knows all.
    fn filled(&self) -> Vec<u8> {
        self.assert_right(&index_at(&self.database()));
        self.assert_all_known(&index_at(&self.database()));
        fs::read(self.database()).expect("reads")
    }

    /// Ids are right, something is the matter, and nothing is remembered.
    fn assert_unused(&self, index: &Index, problem: &str) {
        for _ in 0..2 {
            self.assert_right(index);
        }
        assert_eq!(index.stats().hits, 0);
        let told = index.problem().expect("a problem");
        assert!(told.contains(problem) && told.contains("hashed again"), "{told}");
        assert!(told.contains("index.sqlite3"), "{told}");
    }
}

fn is_told(index: &Index, problem: &str) -> bool {
    index.problem().is_some_and(|told| told.contains(problem))
}

#[test]
fn what_is_no_database_is_replaced() {
    let files = Files::new();
    for garbage in [b"SQLite format 3".to_vec(), bytes(9, 513), bytes(9, 50_000), vec![0; 8192]] {
        fs::write(files.database(), &garbage).expect("writes");
        let index = index_at(&files.database());
        files.assert_right(&index);
        assert!(is_told(&index, "was damaged"), "{} bytes: {:?}", garbage.len(), index.problem());
        files.assert_all_known(&index);
        let again = index_at(&files.database());
        files.assert_all_known(&again);
        assert_eq!(again.problem(), None);
    }
}

#[test]
fn a_truncated_database_gives_no_wrong_id() {
    let files = Files::new();
    let whole = files.filled();
    for length in (0..whole.len()).step_by(731) {
        fs::write(files.database(), &whole[..length]).expect("writes");
        files.assert_right_and_then_known(&index_at(&files.database()));
    }
}

/// Flips bits of every kind of page: header, schema, rows, indices.
#[test]
fn a_flipped_byte_gives_no_wrong_id() {
    let files = Files::new();
    let whole = files.filled();
    let dense = (0..100).chain((100..whole.len()).step_by(61));
    let (mut tried, mut damaged) = (0, 0);
    for (i, at) in dense.enumerate() {
        let mut flipped = whole.clone();
        flipped[at] ^= [1, 0x80, 0xff, 0x10][i % 4];
        fs::write(files.database(), flipped).expect("writes");
        let index = index_at(&files.database());
        files.assert_right(&index);
        tried += 1;
        damaged += usize::from(is_told(&index, "was damaged"));
    }
    assert!(tried > 500 && damaged > tried / 8, "{damaged} of {tried} were seen");
}

#[test]
fn a_row_that_was_tampered_with_is_not_believed() {
    let files = Files::new();
    let other = ContentId::of(b"something else");
    for change in [
        "UPDATE files SET content = ?1",
        "UPDATE tensors SET content = ?1",
        "UPDATE tensors SET behind = behind + length(?1) * 1000",
        "UPDATE OR REPLACE tensors SET file = 1 WHERE length(?1) = 32",
        "UPDATE files SET inode = -inode WHERE length(?1) = 32",
        "DELETE FROM tensors WHERE length(?1) = 32 AND file < 3",
        "UPDATE files SET content = NULL WHERE length(?1) = 32",
    ] {
        files.filled();
        let connection = Connection::open(files.database()).expect("opens");
        connection.execute_batch("PRAGMA foreign_keys = OFF").expect("sets");
        connection.execute(change, [other.as_bytes()]).unwrap_or_else(|error| panic!("{change}: {error}"));
        drop(connection);
        files.assert_right_and_then_known(&index_at(&files.database()));
        fs::remove_file(files.database()).expect("deletes");
    }
}

#[test]
fn an_index_deleted_while_open_is_made_anew() {
    let files = Files::new();
    let index = index_at(&files.database());
    files.assert_right(&index);
    fs::remove_file(files.database()).expect("deletes");
    files.assert_all_known(&index);
    fs::write(&files.files[0], bytes(77, 2000)).expect("writes");
    settle();
    files.assert_right(&index);
    assert!(files.database().exists());
    files.assert_right(&index);
    files.assert_all_known(&index_at(&files.database()));
    assert_eq!(index.problem(), None);
}

#[test]
fn with_its_folder_too() {
    let files = Files::new();
    let place = files.folder.path().join("cache/mm");
    let index = index_at(&place.join("index.sqlite3"));
    files.assert_right(&index);
    fs::remove_dir_all(&place).expect("deletes");
    fs::write(&files.files[0], bytes(77, 2000)).expect("writes");
    settle();
    files.assert_right(&index);
    assert!(place.join("index.sqlite3").exists());
    assert_eq!(index.problem(), None);
}

/// Tests may run as root, whom permissions do not stop.
#[test]
fn a_place_that_cannot_be_written_is_told() {
    let files = Files::new();
    let file = &files.files[0];
    files.assert_unused(&index_at(&file.join("mm/index.sqlite3")), "cannot be written");
    fs::create_dir(files.database()).expect("creates");
    files.assert_unused(&index_at(&files.database()), "cannot be written");
    let lost = Path::new("/dev/null/index.sqlite3");
    files.assert_unused(&index_at(lost), "cannot be written");
}

#[test]
fn other_schemas() {
    let files = Files::new();
    let set = |pragma: &str| {
        let connection = Connection::open(files.database()).expect("opens");
        connection.execute_batch(pragma).expect("sets");
    };
    files.filled();
    set("PRAGMA user_version = 999");
    let newer = fs::read(files.database()).expect("reads");
    files.assert_unused(&index_at(&files.database()), "update mm");
    assert!(fs::read(files.database()).expect("reads") == newer, "is left alone");

    set("PRAGMA user_version = 0; DROP TABLE files; CREATE TABLE files (x)");
    let index = index_at(&files.database());
    files.assert_right(&index);
    files.assert_all_known(&index_at(&files.database()));
    assert_eq!(index.problem(), None, "an older one is replaced");

    fs::remove_file(files.database()).expect("deletes");
    set("CREATE TABLE bookmarks (url); INSERT INTO bookmarks VALUES ('precious')");
    let theirs = fs::read(files.database()).expect("reads");
    files.assert_unused(&index_at(&files.database()), "another program");
    assert!(fs::read(files.database()).expect("reads") == theirs, "is left alone");
}

#[test]
fn an_index_that_others_keep_locked_is_not_waited_for_long() {
    let files = Files::new();
    files.filled();
    let connection = Connection::open(files.database()).expect("opens");
    connection.execute_batch("BEGIN EXCLUSIVE").expect("locks");
    let index = index_at(&files.database());
    // Waits once, not for each file: it is not asked again for a minute.
    files.assert_unused(&index, "locked by another process");
    connection.execute_batch("COMMIT").expect("unlocks");
    files.assert_unused(&index, "locked by another process");
    files.assert_all_known(&index_at(&files.database()));
}
