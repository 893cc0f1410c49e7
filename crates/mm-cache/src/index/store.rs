//! The database while it can be used: opened late, replaced when damaged, left alone for a while when it cannot be used.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::digest::ContentId;
use crate::identity::Identity;
use crate::index::database::Database;
use crate::index::fault::Fault;

/// How long an index that could not be used is not asked again: a folder of a thousand files must not wait a thousand
/// times for a lock, and a process that runs for months must not do without for good.
const REST: Duration = Duration::from_secs(60);

pub(super) struct Store {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    database: Option<Database>,
    rests_until: Option<Instant>,
    problem: Option<String>,
}

impl Store {
    pub(super) fn at(path: &Path) -> Self {
        // Absolute, as the working directory may change before it is opened; and SQLite reads `file:…` as a URL.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { path: Some(path), state: Mutex::default() }
    }

    pub(super) fn none(problem: Option<String>) -> Self {
        Self { path: None, state: Mutex::new(State { problem, ..State::default() }) }
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.state.lock().problem.clone()
    }

    /// The id of a file's content, where it is known.
    pub(super) fn content(&self, file: &Identity) -> Option<ContentId> {
        let numbers = known(file)?;
        self.with(|database| database.content(&numbers)).flatten()
    }

    /// As many as there are ranges.
    pub(super) fn tensors(&self, file: &Identity, ranges: &[Range<u64>]) -> Vec<Option<ContentId>> {
        let found = known(file).and_then(|numbers| self.with(|database| database.tensors(&numbers, ranges)));
        found.unwrap_or_else(|| vec![None; ranges.len()])
    }

    /// Remembers ids of one file: of all its content, of tensors, or of both.
    pub(super) fn remember(&self, file: &Identity, content: Option<ContentId>, tensors: &[(Range<u64>, ContentId)]) {
        if let Some(numbers) = known(file) {
            self.with(|database| database.remember(&numbers, content, tensors));
        }
    }

    /// Whatever a database that can be used makes of it, at the second try where the first one meets a database that
    /// has to be replaced or opened anew.
    fn with<T>(&self, mut ask: impl FnMut(&mut Database) -> Result<T, Fault>) -> Option<T> {
        let path = self.path.as_deref()?;
        let mut state = self.state.lock();
        if state.rests_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        for _ in 0..2 {
            match state.open(path).and_then(&mut ask) {
                Ok(answer) => return Some(answer),
                Err(fault) => {
                    if !state.mend(path, fault) {
                        return None;
                    }
                }
            }
        }
        None
    }
}

impl State {
    fn open(&mut self, path: &Path) -> Result<&mut Database, Fault> {
        match &mut self.database {
            Some(database) => Ok(database),
            closed => Ok(closed.insert(Database::open(path)?)),
        }
    }

    /// Whether another try is worth it.
    fn mend(&mut self, path: &Path, fault: Fault) -> bool {
        if let Some(problem) = fault.sentence(path) {
            self.problem = Some(problem);
        }
        match fault {
            Fault::Moved => {
                self.database = None;
                true
            }
            Fault::Damaged(_) | Fault::Older => {
                self.database = None;
                self.delete(path)
            }
            // It failed at once and will again; what it holds can still be read.
            Fault::Full | Fault::Unwritable(_) if self.database.is_some() => false,
            _ => {
                self.rest();
                false
            }
        }
    }

    /// Deletes the database alone. SQLite itself deletes a journal that has no database, under a lock; one deleted here
    /// might be that of a fresh database, which another process has made at this path meanwhile.
    fn delete(&mut self, path: &Path) -> bool {
        match fs::remove_file(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                self.problem = Some(format!(
                    "the index of content ids {} is damaged or out of date and cannot be replaced ({error}), so files \
                     are hashed again: delete it or set MM_CACHE_DIR to another folder",
                    path.display()
                ));
                self.rest();
                false
            }
        }
    }

    fn rest(&mut self) {
        self.database = None;
        self.rests_until = Some(Instant::now() + REST);
    }
}

fn known(file: &Identity) -> Option<[i64; 5]> {
    file.is_known().then(|| file.numbers()).flatten()
}
