//! Over budget, what nobody holds goes, least recently used first.

use std::convert::Infallible;
use std::sync::Arc;

use mm_cache::{Key, LoadCache, component_hash};

fn key(name: &str) -> Key {
    component_hash(name)
}

fn load(cache: &LoadCache, name: &'static str, bytes: u64) -> Arc<String> {
    cache.get_or_load(key(name), |_| bytes, || Ok::<_, Infallible>(name.to_owned())).expect("loads")
}

fn held(cache: &LoadCache, names: &[&'static str]) -> Vec<&'static str> {
    // Through `remove`, which does not count as use; put back afterwards by nobody, so this ends a test.
    names.iter().copied().filter(|name| cache.remove(&key(name))).collect()
}

#[test]
fn the_least_recently_used_goes_first() {
    let cache = LoadCache::with_budget(30);
    for name in ["a", "b", "c"] {
        load(&cache, name, 10);
    }
    load(&cache, "a", 10);
    assert_eq!(cache.stats().evictions, 0, "exactly the budget is within it");
    load(&cache, "d", 10);
    assert_eq!((cache.stats().evictions, cache.stats().bytes), (1, 30));
    assert_eq!(held(&cache, &["a", "b", "c", "d"]), ["a", "c", "d"]);
}

#[test]
fn one_byte_over_is_over() {
    let cache = LoadCache::with_budget(30);
    load(&cache, "a", 15);
    load(&cache, "b", 16);
    assert_eq!((cache.stats().entries, cache.stats().bytes), (1, 16));
}

#[test]
fn what_is_held_stays() {
    let cache = LoadCache::with_budget(10);
    let a = load(&cache, "a", 10);
    load(&cache, "b", 5);
    let c = load(&cache, "c", 5);
    assert_eq!(held(&cache, &["a", "b", "c"]), ["a", "c"], "b was the only idle one");
    drop((a, c));
}

#[test]
fn what_was_held_goes_once_it_is_let_go() {
    let cache = LoadCache::with_budget(10);
    let a = load(&cache, "a", 10);
    load(&cache, "b", 1);
    assert_eq!(cache.stats().bytes, 11, "held: over budget");
    drop(a);
    load(&cache, "c", 1);
    assert_eq!(held(&cache, &["a", "b", "c"]), ["b", "c"]);
}

#[test]
fn no_more_goes_than_must() {
    let cache = LoadCache::with_budget(10);
    for name in ["a", "b", "c", "d", "e"] {
        load(&cache, name, 2);
    }
    load(&cache, "f", 3);
    assert_eq!(held(&cache, &["a", "b", "c", "d", "e", "f"]), ["c", "d", "e", "f"]);
}

#[test]
fn an_evicted_value_is_loaded_again() {
    let cache = LoadCache::with_budget(1);
    load(&cache, "a", 1);
    load(&cache, "b", 1);
    assert_eq!(cache.get::<String>(&key("a")), Ok(None));
    load(&cache, "a", 1);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.evictions, stats.waits), (0, 3, 2, 0));
}

#[test]
fn weights_beyond_all_memory_do_not_overflow() {
    let cache = LoadCache::with_budget(u64::MAX);
    load(&cache, "a", u64::MAX);
    load(&cache, "b", u64::MAX);
    assert_eq!((cache.stats().bytes, cache.stats().entries), (u64::MAX, 1), "two of them exceed even this budget");
    let _held = (load(&cache, "b", 0), load(&cache, "c", u64::MAX));
    assert_eq!((cache.stats().bytes, cache.stats().entries), (u64::MAX, 2));
}

#[test]
fn without_a_budget_nothing_goes() {
    let cache = LoadCache::new();
    load(&cache, "a", u64::MAX);
    load(&cache, "b", u64::MAX);
    assert_eq!((cache.stats().entries, cache.stats().evictions), (2, 0));
    cache.clear();
    assert_eq!((cache.stats().entries, cache.stats().misses), (0, 2));
}
