//! What `src/sync.rs` brings, for a checker of schedules: each lock, wait and atomic is a point at which another thread may go
//! on.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::digest::Key;

pub(crate) use shuttle::sync::MutexGuard;
pub(crate) use shuttle::sync::atomic::{AtomicBool, Ordering::Relaxed};
pub(crate) use shuttle::thread::ThreadId;

pub(crate) fn this_thread() -> ThreadId {
    shuttle::thread::current().id()
}

thread_local! {
    static TICKS: Cell<u64> = const { Cell::new(0) };
}

/// Counts how often it was asked, so that a schedule tells all that happens. All threads of a schedule run on one.
pub(crate) fn now() -> u64 {
    // Time passes: another thread may go on here.
    AtomicBool::new(false).load(Relaxed);
    TICKS.set(TICKS.get() + 1);
    TICKS.get()
}

pub(crate) fn restart_clock() {
    TICKS.set(0);
}

#[derive(Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, timeout: Option<Duration>) -> MutexGuard<'a, T> {
        assert_eq!(timeout, None, "no time passes here");
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// In order, so that a schedule is the same each time.
pub(crate) struct Directory<V>(Mutex<BTreeMap<Key, Arc<V>>>);

impl<V> Default for Directory<V> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<V> Directory<V> {
    pub(crate) fn read<T>(&self, key: &Key, use_entry: impl FnOnce(&Arc<V>) -> T) -> Option<T> {
        let entry = self.0.lock().get(key).cloned();
        entry.as_ref().map(use_entry)
    }

    pub(crate) fn get_or_insert(&self, key: Key, make: impl FnOnce() -> Arc<V>) -> (Arc<V>, bool) {
        let mut made = false;
        let mut entries = self.0.lock();
        let make = || {
            made = true;
            make()
        };
        (entries.entry(key).or_insert_with(make).clone(), made)
    }

    pub(crate) fn insert(&self, key: Key, entry: Arc<V>) -> Option<Arc<V>> {
        self.0.lock().insert(key, entry)
    }

    pub(crate) fn remove(&self, key: &Key) -> Option<Arc<V>> {
        self.0.lock().remove(key)
    }

    pub(crate) fn remove_exactly(&self, key: &Key, entry: &Arc<V>) {
        let mut entries = self.0.lock();
        if entries.get(key).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            entries.remove(key);
        }
    }

    pub(crate) fn entries(&self) -> Vec<Arc<V>> {
        self.0.lock().values().cloned().collect()
    }
}
