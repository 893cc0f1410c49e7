//! A map whose values are loaded once, however many threads ask at once.

mod ask;
mod entry;
mod error;
mod events;
mod evict;
mod guard;
mod stats;
mod waits;
mod weight;

pub use ask::{Ask, Cancel};
pub use error::{LoadError, LookupError, WrongType};
pub use events::{Event, EventKind, Subscription};
pub use guard::{LoadGuard, Lookup};
pub use stats::CacheStats;
pub use weight::Weight;

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use crate::digest::Key;
use crate::key::component_hash;
use crate::sync::{Directory, Mutex, now};
use ask::Wait;
use entry::{Entry, Joined, Left, Ready, Value};
use events::Events;
use stats::Totals;
use waits::Waits;

/// Values of any type by key, each loaded once, weighed in bytes, and evicted beyond a budget once nobody holds them.
///
/// ```
/// use mm_cache::{LoadCache, component_hash};
///
/// let cache = LoadCache::with_budget(1 << 30);
/// let load = || Ok::<_, std::io::Error>(vec![0u8; 16]);
/// let weigh = |weights: &Vec<u8>| weights.len() as u64;
/// let first = cache.load_component("text_encoder", "org/model@main/text_encoder", weigh, load)?;
/// let again = cache.get::<Vec<u8>>(&component_hash("org/model@main/text_encoder"))?.expect("just loaded");
/// assert!(std::sync::Arc::ptr_eq(&first, &again));
/// assert_eq!(cache.stats().bytes, 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Finding a value takes a look into a directory without locks and the lock of that one entry: threads that ask for different
/// keys have no lock in common.
#[derive(Default)]
pub struct LoadCache {
    directory: Directory<Entry>,
    waits: Waits,
    totals: Mutex<Totals>,
    evicting: Mutex<()>,
    events: Arc<Events>,
}

impl LoadCache {
    /// A cache that keeps everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache that drops what nobody holds, least valuable first ([`trim`](Self::trim) says which that is), while its entries
    /// weigh more than `bytes`. What is held is never dropped, so it may exceed the budget.
    pub fn with_budget(bytes: u64) -> Self {
        let cache = Self::default();
        cache.totals.lock().budget = Some(bytes);
        cache
    }

    /// Replaces the budget; what is beyond it and not held goes at once. `None`: everything is kept.
    pub fn set_budget(&self, bytes: Option<u64>) {
        self.totals.lock().budget = bytes;
        self.trim();
    }

    /// The value that `identifier` stands for; where there is none, what `factory` returns. Events call it `name`.
    ///
    /// # Errors
    /// As [`get_or_load`](Self::get_or_load).
    pub fn load_component<T: Send + Sync + 'static, E, W: Into<Weight>>(
        &self,
        name: &str,
        identifier: &str,
        weigh: impl FnOnce(&T) -> W,
        factory: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, LoadError<E>> {
        self.get_or_load(Ask::new(component_hash(identifier)).named(name), weigh, factory)
    }

    /// The value under a key; where there is none, what `factory` returns, weighed by `weigh`.
    ///
    /// Of all threads that ask at once one runs its factory and the others wait, with no lock held. If that factory
    /// fails or panics, exactly one of the waiters runs its own. A factory must not wait for another thread that
    /// loads the same key: what it waits for by other means than this cache cannot be seen from here.
    ///
    /// # Errors
    /// The factory's own error; a value of another type under the key; a factory that asks for its own entry; a wait that
    /// was bounded or cancelled.
    pub fn get_or_load<T: Send + Sync + 'static, E, W: Into<Weight>>(
        &self,
        ask: impl Into<Ask>,
        weigh: impl FnOnce(&T) -> W,
        factory: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, LoadError<E>> {
        match self.lookup(ask)? {
            Lookup::Hit(value) => Ok(value),
            Lookup::Miss(guard) => {
                let value = factory().map_err(LoadError::Factory)?;
                let weight = weigh(&value);
                Ok(guard.fill(value, weight))
            }
        }
    }

    /// The value under a key, or the right to load it; waits while another thread loads it.
    ///
    /// # Errors
    /// A value of another type under the key; a load that would wait for itself; a wait that was bounded or cancelled.
    pub fn lookup<T: Send + Sync + 'static>(&self, ask: impl Into<Ask>) -> Result<Lookup<'_, T>, LookupError> {
        let ask = ask.into();
        let key = ask.key;
        if let Some(ready) = self.hit(&key) {
            return Ok(Lookup::Hit(typed(key, ready)?));
        }
        let mut wait = Wait::starting(&ask);
        loop {
            if ask.is_cancelled() {
                self.totals.lock().given_up += 1;
                return Err(LookupError::Cancelled { key });
            }
            let (entry, made) = self.directory.get_or_insert(key, || Entry::running(key, ask.name.clone()));
            if made {
                return Ok(Lookup::Miss(LoadGuard::new(self, entry)));
            }
            let on_wait = || {
                self.totals.lock().waits += 1;
                self.events.tell(key, &entry.name, EventKind::Waiting);
            };
            match entry.join(&mut wait, &self.waits, on_wait) {
                Joined::Value(ready) => {
                    if !wait.told {
                        self.events.tell(key, &entry.name, EventKind::Hit);
                    }
                    return Ok(Lookup::Hit(typed(key, ready)?));
                }
                Joined::Turn => return Ok(Lookup::Miss(LoadGuard::new(self, entry))),
                Joined::Gone => self.forget(&entry),
                Joined::Cycle => return Err(LookupError::Cycle { key }),
                Joined::TimedOut => {
                    self.totals.lock().given_up += 1;
                    return Err(LookupError::TimedOut { key });
                }
                Joined::Cancelled => {
                    self.totals.lock().given_up += 1;
                    self.forget_if_gone(&entry);
                    return Err(LookupError::Cancelled { key });
                }
            }
        }
    }

    /// The value under `key`, if it is loaded; never waits.
    ///
    /// # Errors
    /// [`WrongType`] where it is no `T`.
    pub fn get<T: Send + Sync + 'static>(&self, key: &Key) -> Result<Option<Arc<T>>, WrongType> {
        self.hit(key).map(|ready| typed(*key, ready)).transpose()
    }

    /// Puts a value under `key`, in place of what was there. A load in progress keeps its value to itself.
    pub fn set<T: Send + Sync + 'static>(&self, key: Key, value: Arc<T>, weight: impl Into<Weight>) {
        let weight = weight.into();
        let (bytes, reload) = (weight.bytes, weight.reload_ns(0));
        // `value` is held to the end, so that it is not the first to be evicted where its caller does not hold it.
        let ready = Ready { value: value.clone(), type_name: type_name::<T>(), bytes, reload, used: now() };
        self.totals.lock().bytes += u128::from(bytes);
        if let Some(replaced) = self.directory.insert(key, Entry::ready(key, None, ready)) {
            let left = replaced.detach();
            self.leave(&replaced, left);
        }
        self.trim();
        drop(value);
    }

    /// Forgets what is under `key`; who holds it keeps it. True: a value was there. A load in progress runs on for
    /// those who wait for it and is not kept.
    pub fn remove(&self, key: &Key) -> bool {
        let Some(entry) = self.directory.remove(key) else { return false };
        let left = entry.detach();
        let loaded = left.bytes.is_some();
        self.leave(&entry, left);
        loaded
    }

    /// Keeps what is under `key` although nobody holds it, whatever the budget, until it is unpinned, removed or replaced.
    /// False: nothing is loaded there.
    pub fn pin(&self, key: &Key) -> bool {
        self.directory.read(key, |entry| entry.pin(true)).unwrap_or(false)
    }

    /// Takes a [`pin`](Self::pin) back. False: nothing is loaded there.
    pub fn unpin(&self, key: &Key) -> bool {
        let here = self.directory.read(key, |entry| entry.pin(false)).unwrap_or(false);
        self.trim();
        here
    }

    /// Forgets everything, as [`remove`](Self::remove) does, pinned or not. Counters go on.
    pub fn clear(&self) {
        // One by one, so that values are dropped with no lock held: a drop may use this cache.
        for entry in self.directory.entries() {
            self.remove(&entry.key);
        }
    }

    /// Calls `listener` with everything that happens from now on, on the thread where it happens and with no lock held. It
    /// may use the cache; it should be quick, as loads wait for it.
    pub fn subscribe(&self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Subscription {
        self.events.subscribe(Arc::new(listener))
    }

    /// Counters so far and what is held now.
    pub fn stats(&self) -> CacheStats {
        let mut stats = self.totals.lock().stats();
        for entry in self.directory.entries() {
            let (loaded, hits) = entry.census();
            stats.entries += u64::from(loaded);
            stats.hits += hits;
        }
        stats
    }

    fn hit(&self, key: &Key) -> Option<Ready> {
        self.directory.read(key, |entry| {
            let ready = entry.hit()?;
            self.events.tell(*key, &entry.name, EventKind::Hit);
            Some(ready)
        })?
    }

    /// Takes an entry that is gone out of the directory, if that was not done yet.
    fn forget(&self, entry: &Arc<Entry>) {
        self.directory.remove_exactly(&entry.key, entry);
    }

    fn forget_if_gone(&self, entry: &Arc<Entry>) {
        if entry.is_gone() {
            self.forget(entry);
        }
    }

    /// Counts what left, tells of it, and drops it.
    fn leave(&self, entry: &Arc<Entry>, left: Left) {
        let loaded = left.bytes.is_some();
        self.forget(entry);
        drop(self.account(left));
        if loaded {
            self.events.tell(entry.key, &entry.name, EventKind::Removed);
        }
    }

    fn account(&self, left: Left) -> Option<Value> {
        let mut totals = self.totals.lock();
        totals.hits += left.hits;
        totals.bytes -= u128::from(left.bytes.unwrap_or(0));
        left.value
    }
}

impl fmt::Debug for LoadCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = self.totals.lock().budget;
        f.debug_struct("LoadCache").field("budget", &budget).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn typed<T: Send + Sync + 'static>(key: Key, ready: Ready) -> Result<Arc<T>, WrongType> {
    let Ready { value, type_name: found, .. } = ready;
    value.downcast().map_err(|_| WrongType { key, expected: type_name::<T>(), found })
}
