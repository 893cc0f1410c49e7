//! How long it takes to find what is there, beside two caches that do not load once or weigh by reload cost but are known to
//! be quick: `cargo bench -p mm-cache`. All have keys of 32 bytes and values in an `Arc`, and nothing is evicted.
//!
//! `one` is a call on one thread (target: 200 ns). `apart` and `together` are calls per second of 1 and 2 threads, on keys of
//! their own (target: 2 threads do more than 1) and on one and the same key.

use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::thread;

use divan::{Bencher, counter::ItemsCount};
use mm_cache::{Key, LoadCache, component_hash};

const KEYS: usize = 1024;
/// Calls of one thread in one sample: far more than its start takes.
const CALLS: usize = 500_000;

fn main() {
    divan::main();
}

static NAMES: LazyLock<Vec<Key>> = LazyLock::new(|| (0..KEYS).map(|n| component_hash(&n.to_string())).collect());

/// A cache with all of [`NAMES`] in it.
trait Hits: Sync {
    fn filled() -> Self;
    fn get(&self, key: &Key) -> Option<Arc<usize>>;
}

impl Hits for LoadCache {
    fn filled() -> Self {
        let cache = Self::with_budget(1 << 40);
        NAMES.iter().enumerate().for_each(|(n, key)| cache.set(*key, Arc::new(n), 1));
        cache
    }

    fn get(&self, key: &Key) -> Option<Arc<usize>> {
        LoadCache::get(self, key).expect("all are of one type")
    }
}

struct Moka(moka::sync::Cache<Key, Arc<usize>>);

impl Hits for Moka {
    fn filled() -> Self {
        let cache = moka::sync::Cache::new(1 << 20);
        NAMES.iter().enumerate().for_each(|(n, key)| cache.insert(*key, Arc::new(n)));
        Self(cache)
    }

    fn get(&self, key: &Key) -> Option<Arc<usize>> {
        self.0.get(key)
    }
}

struct QuickCache(quick_cache::sync::Cache<Key, Arc<usize>>);

impl Hits for QuickCache {
    fn filled() -> Self {
        let cache = quick_cache::sync::Cache::new(1 << 20);
        NAMES.iter().enumerate().for_each(|(n, key)| cache.insert(*key, Arc::new(n)));
        Self(cache)
    }

    fn get(&self, key: &Key) -> Option<Arc<usize>> {
        self.0.get(key)
    }
}

#[divan::bench(types = [LoadCache, Moka, QuickCache], sample_count = 100, sample_size = 10_000)]
fn one<C: Hits>(bencher: Bencher<'_, '_>) {
    let cache = C::filled();
    let mut keys = NAMES.iter().cycle();
    bencher.bench_local(|| cache.get(black_box(keys.next().expect("it cycles"))));
}

#[divan::bench(types = [LoadCache, Moka, QuickCache], args = [1, 2], sample_count = 15, sample_size = 1)]
fn apart<C: Hits>(bencher: Bencher<'_, '_>, threads: usize) {
    let cache = C::filled();
    bencher.counter(ItemsCount::new(threads * CALLS)).bench_local(|| {
        at_once(threads, |thread| {
            // Neighbours: the counts of shares of small values lie side by side, and two cores would take them from each other.
            let own = NAMES.chunks(KEYS / threads).nth(thread).expect("as many as threads").iter().cycle();
            own.take(CALLS).for_each(|key| drop(black_box(cache.get(black_box(key)))));
        });
    });
}

#[divan::bench(types = [LoadCache, Moka, QuickCache], args = [1, 2], sample_count = 15, sample_size = 1)]
fn together<C: Hits>(bencher: Bencher<'_, '_>, threads: usize) {
    let cache = C::filled();
    bencher.counter(ItemsCount::new(threads * CALLS)).bench_local(|| {
        at_once(threads, |_| (0..CALLS).for_each(|_| drop(black_box(cache.get(black_box(&NAMES[0]))))));
    });
}

fn at_once(threads: usize, work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}
