//! A process that is killed at any moment leaves an index that opens, gives right ids only, and remembers again.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod common;
mod tracing;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{assert_right, bytes, index_at, process, quick_folder, rewrite_unseen, settle};
use mm_cache::Index;
use tracing::{End, trace};

const FOLDER: &str = "MM_TEST_INDEX_FOLDER";
const FILES: usize = 24;
const SIZE: usize = 4000;
const POINTS: usize = 200;

fn file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("f{number}"))
}

/// Every third file has tensors.
fn ranges(number: usize) -> Vec<Range<u64>> {
    if number.is_multiple_of(3) { (0..20).map(|i| i * 200..i * 200 + 200).collect() } else { Vec::new() }
}

fn open(folder: &Path) -> Index {
    index_at(&folder.join("cache/mm/index.sqlite3"))
}

/// Not a test but the process that is killed.
#[test]
fn child() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return };
    println!("ready");
    io::stdin().lock().read_line(&mut String::new()).expect("is told to start");
    let index = open(&folder);
    let remember_all = || {
        for number in 0..FILES {
            assert_right(&index, &file(&folder, number), &ranges(number));
        }
    };
    remember_all();
    for number in (0..FILES).step_by(2) {
        rewrite_unseen(&file(&folder, number), &bytes((FILES + number) as u64, SIZE));
    }
    settle();
    remember_all();
    assert_eq!(index.problem(), None);
}

/// Starts it; it waits for a line.
fn start(folder: &Path) -> Child {
    for number in 0..FILES {
        fs::write(file(folder, number), bytes(number as u64, SIZE)).expect("writes");
    }
    settle();
    let environment = [(FOLDER, folder.as_os_str()), ("RAYON_NUM_THREADS", OsStr::new("1"))];
    let mut command = process("child", &environment);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut output = BufReader::new(child.stdout.as_mut().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(output.read_line(&mut line).expect("reads"), 0, "it ended at once");
    }
    child
}

fn go(child: &mut Child) {
    child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("starts");
}

/// What the killed process left.
fn check(folder: &Path) -> u64 {
    settle();
    let index = open(folder);
    for number in 0..FILES {
        let (path, ranges) = (file(folder, number), ranges(number));
        assert_right(&index, &path, &[]);
        let before = index.stats().hits;
        assert_right(&index, &path, &ranges);
        let known = index.stats().hits - before - 1;
        assert!(known == 0 || known == ranges.len() as u64, "{known} of {} tensors were remembered", ranges.len());
    }
    let (left, misses) = (index.stats().hits - FILES as u64, index.stats().misses);
    for number in 0..FILES {
        assert_right(&index, &file(folder, number), &ranges(number));
    }
    assert_eq!(index.stats().misses, misses, "does not remember again");
    assert_eq!(index.problem(), None);
    left
}

#[test]
fn killed_at_any_system_call_that_writes() {
    let whole = quick_folder();
    let mut child = start(whole.path());
    let stops = match trace(&mut child, None, go) {
        Ok(End::Exited { stops, code: 0 }) => stops,
        Ok(end) => panic!("an undisturbed run ended with {end:?}"),
        Err(error) => {
            eprintln!(
                "NOT TESTED AT SYSTEM CALLS: ptrace is refused here ({error}); killing at {POINTS} moments instead"
            );
            let _ = child.kill();
            let _ = child.wait();
            return killed_at_any_moment();
        }
    };
    assert!(check(whole.path()) > 0);
    assert!(stops > POINTS, "only {stops} stops at system calls that write");
    let (killed, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Who traces is a thread, and its children are its own.
    thread::scope(|scope| {
        for half in 0..2 {
            let (killed, left) = (&killed, &left);
            scope.spawn(move || {
                for point in (half..POINTS).step_by(2) {
                    let folder = quick_folder();
                    let mut child = start(folder.path());
                    let end = trace(&mut child, Some(point * stops / POINTS), go).expect("traces, as before");
                    killed.fetch_add(usize::from(matches!(end, End::Killed)), Ordering::Relaxed);
                    left.fetch_add(usize::from(check(folder.path()) > 0), Ordering::Relaxed);
                }
            });
        }
    });
    let (killed, left) = (killed.into_inner(), left.into_inner());
    println!("{stops} stops at system calls that write; killed at {killed}, {left} left ids");
    assert!(killed > POINTS * 9 / 10, "only {killed} of {POINTS} were reached");
    assert!(left > POINTS / 2, "only {left} of {POINTS} left anything to check");
}

fn killed_at_any_moment() {
    let run = |after: Option<Duration>| {
        let folder = quick_folder();
        let mut child = start(folder.path());
        let begun = Instant::now();
        go(&mut child);
        if let Some(after) = after {
            thread::sleep(after);
            let _ = child.kill();
        }
        let _ = child.wait();
        let took = begun.elapsed();
        check(folder.path());
        took
    };
    let whole = run(None);
    for point in 0..POINTS {
        run(Some(whole * point as u32 / POINTS as u32));
    }
}
