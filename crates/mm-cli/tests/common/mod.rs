//! What the tests share.

#![allow(dead_code, reason = "each test file is a program of its own and uses some of it")]

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

/// The demo checkpoint.
pub(crate) const SHAPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../checkpoints/shapes");

/// What one call answered.
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// Standard output as the one JSON document that it has to be.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in {:?}\n{}", self.stdout, self.stderr))
    }

    /// Standard output as documents, one a line.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"))).collect()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// Failed with this code, saying all of this on standard error.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for part in says {
            assert!(self.stderr.contains(part), "{part:?} is not in {}", self.stderr);
        }
        self
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let code = output.status.code().expect("an exit code");
        assert_ne!(code, 101, "panicked: {}", String::from_utf8_lossy(&output.stderr));
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Calls the program.
pub(crate) fn mm<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Answer {
    command().args(args).output().expect("starts").into()
}

/// Calls the program with this as the hub's local cache.
pub(crate) fn mm_caching<S: AsRef<std::ffi::OsStr>>(cache: &Path, args: impl IntoIterator<Item = S>) -> Answer {
    command().env("HF_HUB_CACHE", cache).args(args).output().expect("starts").into()
}

/// Calls the program with its index in this folder.
pub(crate) fn mm_indexing<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Answer {
    command().env("MM_CACHE_DIR", folder).args(args).output().expect("starts").into()
}

/// Calls the program with this on standard input.
pub(crate) fn mm_reading(args: &[&str], stdin: &str) -> Answer {
    command().args(args).write_stdin(stdin).output().expect("starts").into()
}

/// With no index of the user's: tests neither use it nor leave something in it.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mm"));
    command.env("MM_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

/// A copy of the demo checkpoint, to be damaged.
pub(crate) fn copy() -> TempDir {
    let to = tempfile::tempdir().expect("a folder");
    copy_folder(Path::new(SHAPES), to.path());
    to
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let (entry, to) = entry.map(|e| (e.path(), to.join(e.file_name()))).expect("an entry");
        if entry.is_dir() {
            fs::create_dir(&to).expect("creates");
            copy_folder(&entry, &to);
        } else {
            fs::copy(&entry, &to).expect("copies");
        }
    }
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A small image: arguments of `mm run` up to what a test adds.
pub(crate) fn draw(checkpoint: &str, folder: &Path, more: &[&str]) -> Answer {
    let out = folder.join("out.png");
    let mut args = vec!["run", checkpoint, "--prompt", "a large red circle at the left on a white background"];
    args.extend(["--steps", "2", "-o", text(&out)]);
    args.extend(more);
    mm(args)
}

/// A file in a folder.
pub(crate) fn file(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}
