//! Several processes use one index at once: all is remembered, and nobody ever sees a wrong id.
#![cfg(unix)]

mod common;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::{assert_right, bytes, index_at, process, quick_folder, settle};

const FOLDER: &str = "MM_TEST_INDEX_FOLDER";
const FIRST: &str = "MM_TEST_INDEX_FIRST";
const FILES: usize = 400;
const SIZE: usize = 300;

fn file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("f{number}"))
}

/// Not a test but a process: remembers every second file, or, without a first one, reads until it knows all.
#[test]
fn child() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return };
    let index = index_at(&folder.join("cache/index.sqlite3"));
    match env::var(FIRST).ok().and_then(|first| first.parse::<usize>().ok()) {
        Some(first) => {
            for number in (first..FILES).step_by(2) {
                assert_right(&index, &file(&folder, number), &[0..100, 100..300]);
            }
        }
        None => {
            for round in 0.. {
                let before = index.stats();
                for number in (0..FILES).step_by(1 + round % 7) {
                    assert_right(&index, &file(&folder, number), &[0..100, 100..300]);
                }
                if folder.join("done").exists() && index.stats().misses == before.misses {
                    break;
                }
            }
        }
    }
    assert_eq!(index.problem(), None);
}

#[test]
fn all_rows_of_all_processes_are_there() {
    let folder = quick_folder();
    for number in 0..FILES {
        fs::write(file(folder.path(), number), bytes(number as u64, SIZE)).expect("writes");
    }
    settle();
    let start = |environment: &[(&str, &OsStr)]| {
        let environment = [&[(FOLDER, folder.path().as_os_str())], environment].concat();
        process("child", &environment).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    };
    let reader = start(&[]);
    let writers = ["0", "1"].map(|first| start(&[(FIRST, first.as_ref())]));
    writers.into_iter().for_each(assert_fine);
    fs::write(folder.path().join("done"), "").expect("writes");
    assert_fine(reader);

    let index = index_at(&folder.path().join("cache/index.sqlite3"));
    for number in 0..FILES {
        assert_right(&index, &file(folder.path(), number), &[0..100, 100..300]);
    }
    assert_eq!((index.stats().hits, index.stats().misses), (3 * FILES as u64, 0));
}

fn assert_fine(child: Child) {
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran no test");
}
