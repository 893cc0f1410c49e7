//! The right and the duty to load one key.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::LoadCache;
use super::entry::{Entry, Ready};
use super::events::EventKind;
use super::weight::Weight;
use crate::sync::now;

/// What a [`LoadCache`] answers who is ready to load.
#[derive(Debug)]
pub enum Lookup<'a, T> {
    /// It is there.
    Hit(Arc<T>),
    /// It is not, and everyone else who asks waits for this caller to load it.
    Miss(LoadGuard<'a, T>),
}

/// The right and the duty to load one key: [filled](LoadGuard::fill), everyone who waits has the value; dropped unfilled, by
/// an error or a panic, exactly one of them loads in its place.
///
/// It stays on its thread, as that is how a load that waits for itself is found out.
pub struct LoadGuard<'a, T> {
    cache: &'a LoadCache,
    entry: Arc<Entry>,
    started: u64,
    reserved: u64,
    filled: bool,
    kind: PhantomData<fn() -> T>,
    stays: PhantomData<*const ()>,
}

impl<'a, T: Send + Sync + 'static> LoadGuard<'a, T> {
    pub(super) fn new(cache: &'a LoadCache, entry: Arc<Entry>) -> Self {
        cache.totals.lock().misses += 1;
        cache.events.tell(entry.key, &entry.name, EventKind::Loading);
        Self { cache, entry, started: now(), reserved: 0, filled: false, kind: PhantomData, stays: PhantomData }
    }

    /// Makes room for a value of `bytes` before it is loaded, instead of afterwards: what nobody holds goes first.
    pub fn reserve(&mut self, bytes: u64) {
        {
            let mut totals = self.cache.totals.lock();
            totals.reserved = totals.reserved - u128::from(self.reserved) + u128::from(bytes);
        }
        self.reserved = bytes;
        self.cache.trim();
    }

    /// Keeps the value and gives it to everyone who waits.
    pub fn fill(mut self, value: impl Into<Arc<T>>, weight: impl Into<Weight>) -> Arc<T> {
        let (value, weight) = (value.into(), weight.into());
        let took = now().saturating_sub(self.started);
        let (bytes, reload) = (weight.bytes, weight.reload_ns(took));
        let ready = Ready { value: value.clone(), type_name: type_name::<T>(), bytes, reload, used: now() };
        {
            // Counted before it can be seen, so that whoever evicts it finds it counted.
            let mut totals = self.cache.totals.lock();
            totals.bytes += u128::from(bytes);
            totals.reserved -= u128::from(std::mem::take(&mut self.reserved));
        }
        self.filled = true;
        if !self.entry.finish(ready) {
            // Removed or replaced meanwhile: no longer this load's to keep.
            self.cache.totals.lock().bytes -= u128::from(bytes);
        }
        let loaded = EventKind::Loaded { bytes, took: Duration::from_nanos(took) };
        self.cache.events.tell(self.entry.key, &self.entry.name, loaded);
        // `value` is held, so that it is not the first to go.
        self.cache.trim();
        value
    }
}

impl<T> Drop for LoadGuard<'_, T> {
    fn drop(&mut self) {
        if self.filled {
            return;
        }
        {
            let mut totals = self.cache.totals.lock();
            totals.failures += 1;
            totals.reserved -= u128::from(self.reserved);
        }
        if !self.entry.hand_on() {
            self.cache.forget(&self.entry);
        }
        self.cache.events.tell(self.entry.key, &self.entry.name, EventKind::Failed);
    }
}

impl<T> fmt::Debug for LoadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadGuard").field("key", &self.entry.key).finish_non_exhaustive()
    }
}
