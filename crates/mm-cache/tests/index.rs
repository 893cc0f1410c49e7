//! What is remembered is found again, and never of a file that changed.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use common::{assert_right, bytes, index_at, rewrite_unseen, settle};
use mm_cache::{ContentId, Index, IndexStats};

const PART: Range<u64> = 0..100;

#[test]
fn what_was_hashed_once_is_known_to_everyone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, database) = (folder.path().join("f"), folder.path().join("new/folders/index.sqlite3"));
    fs::write(&path, bytes(1, 100_000)).expect("writes");
    settle();
    let index = index_at(&database);
    assert!(!folder.path().join("new").exists(), "nothing is made before it is needed");
    let id = index.content_id(&path).expect("hashes");
    assert_eq!(id, ContentId::of(&bytes(1, 100_000)));
    assert_eq!(index.stats(), IndexStats { hits: 0, misses: 1, hashed_bytes: 100_000 });
    assert_eq!(index.content_id(&path).expect("finds"), id);
    assert_eq!(index.file_id(&File::open(&path).expect("opens")).expect("finds"), id);
    assert_eq!(index.stats(), IndexStats { hits: 2, misses: 1, hashed_bytes: 100_000 });

    let later = index_at(&database);
    assert_eq!(later.content_ids(folder.path()).expect("lists")[0], (path, id));
    assert_eq!(later.stats().hits, 1);
    assert_eq!((index.problem(), later.problem()), (None, None));
}

#[test]
fn an_index_of_nothing_hashes_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f");
    fs::write(&path, "abc").expect("writes");
    settle();
    let index = Index::none();
    for _ in 0..2 {
        assert_eq!(index.content_id(&path).expect("hashes"), ContentId::of(b"abc"));
    }
    assert_eq!(index.stats(), IndexStats { hits: 0, misses: 2, hashed_bytes: 6 });
    assert_eq!(index.problem(), None);
}

#[test]
fn tensors_are_known_without_reading_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, database) = (folder.path().join("f"), folder.path().join("index.sqlite3"));
    fs::write(&path, bytes(2, 3_000_000)).expect("writes");
    settle();
    // One twice, an empty one, and one of several leaves.
    let ranges = [0..10, 10..10, 2_000_000..2_999_999, 0..10, 100..900_000];
    let index = index_at(&database);
    let ids = index.tensor_ids(&File::open(&path).expect("opens"), &ranges).expect("hashes");
    let all = bytes(2, 3_000_000);
    let expected: Vec<_> = ranges.iter().map(|r| ContentId::of(&all[r.start as usize..r.end as usize])).collect();
    assert_eq!(ids, expected);
    assert_eq!(index.stats(), IndexStats { hits: 0, misses: 5, hashed_bytes: 10 + 999_999 + 10 + 899_900 });

    let later = index_at(&database);
    let file = File::open(&path).expect("opens");
    assert_eq!(later.tensor_ids(&file, &ranges).expect("finds"), expected);
    assert_eq!(later.stats(), IndexStats { hits: 5, misses: 0, hashed_bytes: 0 });
    // The file's own id joins them, and takes none away.
    later.content_id(&path).expect("hashes");
    later.tensor_ids(&file, &[0..10, 0..11]).expect("finds and hashes");
    assert_eq!(later.stats(), IndexStats { hits: 6, misses: 2, hashed_bytes: 3_000_011 });
    assert_eq!(later.problem(), None);

    for (wrong, kind) in [
        (2_999_999..3_000_001, std::io::ErrorKind::UnexpectedEof),
        (u64::MAX - 1..u64::MAX, std::io::ErrorKind::InvalidInput),
        (Range { start: 9, end: 3 }, std::io::ErrorKind::InvalidInput),
    ] {
        assert_eq!(later.tensor_ids(&file, &[0..10, wrong]).expect_err("not there").kind(), kind);
    }
}

#[test]
fn a_changed_file_of_the_same_size_and_mtime_is_hashed_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, database) = (folder.path().join("f"), folder.path().join("index.sqlite3"));
    let index = index_at(&database);
    fs::write(&path, bytes(0, 5000)).expect("writes");
    for seed in 1..20 {
        settle();
        assert_right(&index, &path, &[0..100, 100..5000]);
        let before = index.stats();
        assert_right(&index, &path, &[0..100, 100..5000]);
        assert_eq!(index.stats().hits, before.hits + 3);
        rewrite_unseen(&path, &bytes(seed, 5000));
        assert_right(&index, &path, &[0..100, 100..5000]);
        assert_eq!(index.stats().misses, before.misses + 3);
    }
}

#[test]
fn a_file_that_others_were_renamed_over_is_the_new_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let index = index_at(&at("index.sqlite3"));
    fs::write(at("f"), bytes(1, 5000)).expect("writes");
    fs::write(at("next"), bytes(2, 5000)).expect("writes");
    let mtime = fs::metadata(at("f")).and_then(|metadata| metadata.modified()).expect("an mtime");
    File::options().write(true).open(at("next")).and_then(|file| file.set_modified(mtime)).expect("sets it");
    settle();
    assert_right(&index, &at("f"), &[PART]);
    assert_right(&index, &at("next"), &[PART]);
    fs::rename(at("next"), at("f")).expect("renames");
    assert_right(&index, &at("f"), &[PART]);
}

#[test]
fn hard_links_share_one_id() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let index = index_at(&at("index.sqlite3"));
    fs::write(at("a"), bytes(1, 5000)).expect("writes");
    fs::hard_link(at("a"), at("b")).expect("links");
    settle();
    assert_eq!(index.content_id(at("a")).expect("hashes"), index.content_id(at("b")).expect("finds"));
    assert_eq!((index.stats().hits, index.stats().misses), (1, 1));
    rewrite_unseen(&at("b"), &bytes(2, 5000));
    assert_right(&index, &at("a"), &[]);
}

/// With the margin that everyone has. Within one tick two writes leave the same stamps.
#[test]
fn a_file_that_may_change_unseen_is_not_remembered() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f");
    let index = Index::at(folder.path().join("index.sqlite3"));
    fs::write(&path, bytes(0, 200)).expect("writes");
    for seed in 1..2000 {
        assert_right(&index, &path, &[PART]);
        rewrite_unseen(&path, &bytes(seed, 200));
    }
    assert_eq!(index.stats().hits, 0);
    let patient = Index::at(folder.path().join("index.sqlite3")).margin(Duration::from_secs(3600));
    for _ in 0..2 {
        assert_right(&patient, &path, &[PART]);
    }
    assert_eq!(patient.stats().hits, 0, "changed less than an hour ago");
    let ahead = SystemTime::now() + Duration::from_secs(1 << 20);
    File::options().write(true).open(&path).and_then(|file| file.set_modified(ahead)).expect("sets it");
    let soon = index_at(&folder.path().join("index.sqlite3"));
    settle();
    for _ in 0..2 {
        assert_right(&soon, &path, &[PART]);
    }
    assert_eq!(soon.stats().hits, 0, "an mtime in the future");
    assert_eq!((index.problem(), soon.problem()), (None, None));
}

/// What `/proc` shows changes without new stamps, and its size is none.
#[cfg(target_os = "linux")]
#[test]
fn bytes_that_are_made_up_are_not_remembered() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = index_at(&folder.path().join("index.sqlite3"));
    let open = File::open("/proc/self/stat").expect("opens");
    index.content_id("/proc/self/stat").expect("hashes");
    settle();
    for _ in 0..2 {
        index.content_id("/proc/self/stat").expect("hashes");
        index.file_id(&open).expect("hashes");
    }
    assert_eq!((index.stats().hits, index.stats().misses), (0, 5));
}

#[test]
fn progress_is_told_while_hashing_and_not_when_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = index_at(&folder.path().join("index.sqlite3"));
    for (name, size) in [("small", 10), ("large", 5_000_000)] {
        let path = folder.path().join(name);
        fs::write(&path, bytes(1, size)).expect("writes");
        settle();
        for expected in [size as u64, 0] {
            let (hashed, calls) = (AtomicU64::new(0), AtomicU64::new(0));
            let progress = |bytes| {
                hashed.fetch_add(bytes, Ordering::Relaxed);
                calls.fetch_add(1, Ordering::Relaxed);
            };
            index.content_id_with(&path, &progress).expect("an id");
            assert_eq!(hashed.into_inner(), expected);
            assert!(expected < 1 << 20 || calls.into_inner() > 5);
        }
    }
}

/// The id is that of one of the two contents, or there is none.
#[test]
fn a_file_that_is_written_while_it_is_hashed_has_no_mixed_id() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f");
    let contents = [bytes(1, 200_000), bytes(2, 200_000)];
    fs::write(&path, &contents[0]).expect("writes");
    let index = index_at(&folder.path().join("index.sqlite3"));
    // Half way through, the other half is written.
    let half = |_| {
        for content in contents.iter().rev() {
            rewrite_unseen(&path, content);
        }
    };
    settle();
    let error = index.content_id_with(&path, &half).expect_err("always written");
    let told = error.to_string();
    assert!(told.contains(&*path.to_string_lossy()) && told.contains("being written: wait"), "{told}");
    let once = AtomicU64::new(0);
    let other = |_| {
        if once.fetch_add(1, Ordering::Relaxed) == 0 {
            rewrite_unseen(&path, &contents[1]);
        }
    };
    assert_eq!(index.content_id_with(&path, &other).expect("hashed again"), ContentId::of(&contents[1]));
}
