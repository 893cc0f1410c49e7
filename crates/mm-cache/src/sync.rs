//! What the load-once map is built on: locks, a clock, and the directory of its entries.
//!
//! The map names these through `crate::sync` alone, so that a test crate that brings its own `sync` compiles the very same
//! source for a checker of schedules (`tests/schedules`).

use std::hash::RandomState;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::digest::Key;

pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
pub(crate) use std::thread::ThreadId;

pub(crate) fn this_thread() -> ThreadId {
    std::thread::current().id()
}

/// Nanoseconds since this was first asked.
pub(crate) fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Wakes who waits for a change of what a [`Mutex`] guards.
#[derive(Default)]
pub(crate) struct Condvar(parking_lot::Condvar);

impl Condvar {
    /// Waits for a wake-up, at most for `timeout`.
    pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>, timeout: Option<Duration>) -> MutexGuard<'a, T> {
        match timeout {
            Some(timeout) => drop(self.0.wait_for(&mut guard, timeout)),
            None => self.0.wait(&mut guard),
        }
        guard
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Entries by key. Looking one up takes no lock, so that different keys have none in common.
///
/// A key is a digest only where it was made by [`component_hash`](crate::component_hash), and keys whose hashes are alike make
/// the table grow without bound: so it is hashed with a seed, all of it.
pub(crate) struct Directory<V>(papaya::HashMap<Key, Arc<V>, RandomState>);

impl<V> Default for Directory<V> {
    fn default() -> Self {
        Self(papaya::HashMap::default())
    }
}

impl<V> Directory<V> {
    /// Calls `use_entry` with no lock held.
    pub(crate) fn read<T>(&self, key: &Key, use_entry: impl FnOnce(&Arc<V>) -> T) -> Option<T> {
        self.0.pin().get(key).map(use_entry)
    }

    /// What is there, or what is made and put there; whether it was made.
    pub(crate) fn get_or_insert(&self, key: Key, make: impl FnOnce() -> Arc<V>) -> (Arc<V>, bool) {
        match self.0.pin().try_insert_with(key, make) {
            Ok(made) => (made.clone(), true),
            Err(there) => (there.clone(), false),
        }
    }

    /// Returns what was there.
    pub(crate) fn insert(&self, key: Key, entry: Arc<V>) -> Option<Arc<V>> {
        self.0.pin().insert(key, entry).cloned()
    }

    pub(crate) fn remove(&self, key: &Key) -> Option<Arc<V>> {
        self.0.pin().remove(key).cloned()
    }

    /// Removes this very entry, if it is there.
    pub(crate) fn remove_exactly(&self, key: &Key, entry: &Arc<V>) {
        // Another entry under the key is nobody's failure.
        let _ = self.0.pin().remove_if(key, |_, there| Arc::ptr_eq(there, entry));
    }

    pub(crate) fn entries(&self) -> Vec<Arc<V>> {
        self.0.pin().values().cloned().collect()
    }
}
