//! A map whose values are loaded once, however many threads ask at once.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use parking_lot::Mutex;

use crate::digest::Key;
use crate::fill::{Fill, Joined, Value, Waits};

/// Values of any type by key, each loaded once, weighed in bytes, and evicted beyond a budget once nobody holds them.
///
/// ```
/// use mm_cache::{LoadCache, LoadError, component_hash};
///
/// let cache = LoadCache::with_budget(1 << 30);
/// let key = component_hash("org/model@main/text_encoder");
/// let load = || Ok::<_, std::io::Error>(vec![0u8; 16]);
/// let first = cache.get_or_load(key, |weights| weights.len() as u64, load)?;
/// let again = cache.get::<Vec<u8>>(&key)?.expect("just loaded");
/// assert!(std::sync::Arc::ptr_eq(&first, &again));
/// assert_eq!(cache.stats().bytes, 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct LoadCache {
    slots: DashMap<Key, Slot>,
    waits: Waits,
    budget: Option<u64>,
    /// Held while choosing what to evict, so that two threads do not both make room for the same excess.
    evicting: Mutex<()>,
    clock: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    waited: AtomicU64,
    evictions: AtomicU64,
}

enum Slot {
    Loading(Arc<Fill>),
    Ready(Ready),
}

struct Ready {
    value: Value,
    type_name: &'static str,
    bytes: u64,
    used: AtomicU64,
}

/// What a cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Asked for and there.
    pub hits: u64,
    /// Factories run, those that failed included.
    pub misses: u64,
    /// Calls that waited for another thread's factory.
    pub waits: u64,
    /// Entries dropped to keep within the budget.
    pub evictions: u64,
    /// Entries held now.
    pub entries: u64,
    /// What those entries weigh, bytes; saturating.
    pub bytes: u64,
}

/// The value under a key has another type than was asked for: two callers use one identifier for different things.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cache entry {key} holds a {found}, not a {expected}: use one identifier per kind of value")]
pub struct WrongType {
    /// The key.
    pub key: Key,
    /// The type asked for.
    pub expected: &'static str,
    /// The type that is there.
    pub found: &'static str,
}

/// Why [`LoadCache::get_or_load`] has no value to give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// This caller's factory failed; the next call runs a factory again.
    #[error("loading failed: {0}")]
    Factory(#[source] E),
    /// The key holds another type.
    #[error(transparent)]
    WrongType(#[from] WrongType),
    /// The factory asked for the very entry it is to load, directly or through other threads' loads.
    #[error("loading {key} waits for itself: its factory must not ask for the entry that it loads")]
    Cycle {
        /// The key.
        key: Key,
    },
}

impl LoadCache {
    /// A cache that keeps everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache that drops what nobody holds, least recently used first, while its entries weigh more than `bytes`.
    /// What is held is never dropped, so it may exceed the budget.
    pub fn with_budget(bytes: u64) -> Self {
        Self { budget: Some(bytes), ..Self::default() }
    }

    /// The value under `key`; where there is none, what `factory` returns, weighed in bytes by `weigh`.
    ///
    /// Of all threads that ask at once one runs its factory and the others wait, with no lock held. If that factory
    /// fails or panics, exactly one of the waiters runs its own. A factory must not wait for another thread that
    /// loads the same key: what it waits for by other means than this cache cannot be seen from here.
    ///
    /// # Errors
    /// The factory's own error; a value of another type under the key; a factory that asks for its own entry.
    pub fn get_or_load<T: Send + Sync + 'static, E>(
        &self,
        key: Key,
        weigh: impl FnOnce(&T) -> u64,
        factory: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, LoadError<E>> {
        let guard = match self.find_or_start(key)? {
            Found::There(value, found) => return Ok(downcast(key, value, found)?),
            Found::Miss(guard) => guard,
        };
        self.misses.fetch_add(1, Relaxed);
        let value = Arc::new(factory().map_err(LoadError::Factory)?);
        let bytes = weigh(&value);
        guard.publish(value.clone(), type_name::<T>(), bytes);
        self.evict();
        Ok(value)
    }

    /// The value under `key`, if it is loaded; never waits.
    ///
    /// # Errors
    /// [`WrongType`] where it is no `T`.
    pub fn get<T: Send + Sync + 'static>(&self, key: &Key) -> Result<Option<Arc<T>>, WrongType> {
        let Some((value, found)) = self.hit(key) else { return Ok(None) };
        downcast(*key, value, found).map(Some)
    }

    /// Puts a value under `key`, in place of what was there. A load in progress keeps its value to itself.
    pub fn set<T: Send + Sync + 'static>(&self, key: Key, value: Arc<T>, bytes: u64) {
        // `value` is held to the end, so that it is not the first to be evicted where its caller does not hold it.
        let ready = self.ready(value.clone(), type_name::<T>(), bytes);
        let replaced = self.slots.insert(key, Slot::Ready(ready));
        drop(replaced);
        self.evict();
        drop(value);
    }

    /// Forgets what is under `key`; who holds it keeps it. True: a value was there. A load in progress runs on for
    /// those who wait for it and is not kept.
    pub fn remove(&self, key: &Key) -> bool {
        matches!(self.slots.remove(key), Some((_, Slot::Ready(_))))
    }

    /// Forgets everything, as [`remove`](Self::remove) does. Counters go on.
    pub fn clear(&self) {
        let keys: Vec<Key> = self.slots.iter().map(|slot| *slot.key()).collect();
        // One by one, so that values are dropped with no lock held: a drop may use this cache.
        for key in keys {
            self.remove(&key);
        }
    }

    /// Counters so far and what is held now.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            waits: self.waited.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
            ..CacheStats::default()
        };
        for slot in &self.slots {
            if let Slot::Ready(ready) = slot.value() {
                stats.entries += 1;
                stats.bytes = stats.bytes.saturating_add(ready.bytes);
            }
        }
        stats
    }

    fn hit(&self, key: &Key) -> Option<(Value, &'static str)> {
        let slot = self.slots.get(key)?;
        let Slot::Ready(ready) = slot.value() else { return None };
        self.hits.fetch_add(1, Relaxed);
        ready.used.store(self.tick(), Relaxed);
        Some((ready.value.clone(), ready.type_name))
    }

    fn find_or_start<E>(&self, key: Key) -> Result<Found<'_>, LoadError<E>> {
        loop {
            if let Some((value, found)) = self.hit(&key) {
                return Ok(Found::There(value, found));
            }
            let fill = match self.slots.entry(key) {
                MapEntry::Vacant(slot) => {
                    let fill = Fill::started();
                    slot.insert(Slot::Loading(fill.clone()));
                    return Ok(Found::Miss(Guard { cache: self, key, fill, published: false }));
                }
                MapEntry::Occupied(slot) => match slot.get() {
                    Slot::Loading(fill) => fill.clone(),
                    Slot::Ready(_) => continue,
                },
            };
            let on_wait = || {
                self.waited.fetch_add(1, Relaxed);
            };
            match fill.join(&self.waits, on_wait) {
                Joined::Loaded(value, found) => return Ok(Found::There(value, found)),
                Joined::Turn => return Ok(Found::Miss(Guard { cache: self, key, fill, published: false })),
                Joined::Cycle => return Err(LoadError::Cycle { key }),
                // Its guard is just about to take it out of the map.
                Joined::Abandoned => std::thread::yield_now(),
            }
        }
    }

    fn ready(&self, value: Value, type_name: &'static str, bytes: u64) -> Ready {
        Ready { value, type_name, bytes, used: AtomicU64::new(self.tick()) }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }

    fn evict(&self) {
        let Some(budget) = self.budget else { return };
        let mut evicted = Vec::new();
        let lock = self.evicting.lock();
        let mut total = 0u128;
        let mut idle = Vec::new();
        for slot in &self.slots {
            if let Slot::Ready(ready) = slot.value() {
                total += u128::from(ready.bytes);
                if ready.is_idle() {
                    idle.push((ready.used.load(Relaxed), *slot.key()));
                }
            }
        }
        idle.sort_unstable_by_key(|(used, _)| *used);
        for (seen, key) in idle {
            if total <= u128::from(budget) {
                break;
            }
            // Asked again under the entry's lock, which everyone who takes a share of the value holds.
            let unused =
                |_: &Key, slot: &Slot| matches!(slot, Slot::Ready(r) if r.is_idle() && r.used.load(Relaxed) == seen);
            if let Some((_, Slot::Ready(ready))) = self.slots.remove_if(&key, unused) {
                total -= u128::from(ready.bytes);
                self.evictions.fetch_add(1, Relaxed);
                evicted.push(ready);
            }
        }
        // Values are dropped with no lock held: freeing gigabytes takes a while, and a drop may use this cache.
        drop(lock);
        drop(evicted);
    }
}

impl fmt::Debug for LoadCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadCache").field("budget", &self.budget).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Ready {
    /// Nobody but the cache holds the value.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.value) == 1
    }
}

enum Found<'a> {
    There(Value, &'static str),
    Miss(Guard<'a>),
}

/// The right and the duty to load one key: dropped without a value, it hands both on.
struct Guard<'a> {
    cache: &'a LoadCache,
    key: Key,
    fill: Arc<Fill>,
    published: bool,
}

impl Guard<'_> {
    fn publish(mut self, value: Value, type_name: &'static str, bytes: u64) {
        // Removed or replaced meanwhile: then the entry is no longer this load's to fill.
        if let MapEntry::Occupied(mut slot) = self.cache.slots.entry(self.key)
            && self.owns(slot.get())
        {
            slot.insert(Slot::Ready(self.cache.ready(value.clone(), type_name, bytes)));
        }
        self.fill.finish(value, type_name);
        self.published = true;
    }

    fn owns(&self, slot: &Slot) -> bool {
        matches!(slot, Slot::Loading(fill) if Arc::ptr_eq(fill, &self.fill))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.published && !self.fill.hand_on() {
            self.cache.slots.remove_if(&self.key, |_, slot| self.owns(slot));
        }
    }
}

fn downcast<T: Send + Sync + 'static>(key: Key, value: Value, found: &'static str) -> Result<Arc<T>, WrongType> {
    value.downcast().map_err(|_| WrongType { key, expected: type_name::<T>(), found })
}
