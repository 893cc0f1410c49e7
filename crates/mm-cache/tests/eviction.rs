//! Over budget, what nobody holds goes, least valuable first: what is cheap to load again, takes much room, and was used long ago.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use mm_cache::{Key, LoadCache, Lookup, Weight, component_hash};

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

/// Puts what nobody holds there, of which the reload cost is stated.
fn set(cache: &LoadCache, name: &'static str, bytes: u64, reload: Duration) {
    cache.set(key(name), Arc::new(name.to_owned()), Weight::bytes(bytes).reload_in(reload));
}

/// Far more than any pause between two lines of a test is worth.
const AGES: Duration = Duration::from_nanos(u64::MAX);

#[test]
fn what_is_dear_to_load_again_outlives_what_is_cheap() {
    let cache = LoadCache::new();
    set(&cache, "dear", 10, AGES);
    set(&cache, "cheap", 10, Duration::from_millis(2));
    cache.set_budget(Some(10));
    assert_eq!(held(&cache, &["dear", "cheap"]), ["dear"], "although it was used longer ago");
}

#[test]
fn what_frees_more_for_its_cost_goes_first() {
    let cache = LoadCache::new();
    set(&cache, "small", 1, Duration::from_secs(1));
    set(&cache, "large", 1 << 62, Duration::from_secs(1));
    cache.set_budget(Some(1 << 62));
    assert_eq!(held(&cache, &["small", "large"]), ["small"]);
}

#[test]
fn of_equal_cost_and_size_the_least_recently_used_goes_first() {
    for used in ["a", "b"] {
        let cache = LoadCache::new();
        set(&cache, "a", 10, Duration::from_secs(1));
        set(&cache, "b", 10, Duration::from_secs(1));
        assert!(cache.get::<String>(&key(used)).is_ok_and(|value| value.is_some()));
        cache.set_budget(Some(10));
        assert_eq!(held(&cache, &["a", "b"]), [used]);
    }
}

#[test]
fn costs_under_a_millisecond_are_equal() {
    for (first, second) in [(1, 999_999), (999_999, 1), (0, 1_000_000)] {
        let cache = LoadCache::new();
        set(&cache, "a", 10, Duration::from_nanos(first));
        set(&cache, "b", 10, Duration::from_nanos(second));
        cache.set_budget(Some(10));
        assert_eq!(held(&cache, &["a", "b"]), ["b"], "the one used last, {first} against {second} ns");
    }
}

#[test]
fn what_weighs_nothing_makes_no_room() {
    let cache = LoadCache::new();
    set(&cache, "nothing", 0, Duration::ZERO);
    set(&cache, "a", 10, Duration::ZERO);
    cache.set_budget(Some(0));
    assert_eq!(held(&cache, &["nothing", "a"]), ["nothing"]);
}

#[test]
fn room_is_made_before_a_load_that_reserves_it() {
    let cache = LoadCache::with_budget(10);
    set(&cache, "idle", 6, Duration::ZERO);
    let Ok(Lookup::Miss(mut guard)) = cache.lookup::<String>(key("a")) else { panic!("an empty cache") };
    guard.reserve(4);
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (6, 0), "there is room");
    guard.reserve(5);
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (0, 1), "a reservation replaces the last one");
    set(&cache, "idle", 5, Duration::ZERO);
    assert_eq!(cache.stats().evictions, 1, "5 of 10 are reserved");
    set(&cache, "idle", 6, Duration::ZERO);
    cache.trim();
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (0, 2), "6 and 5 are beyond 10");
    guard.fill("a".to_owned(), 5);
    set(&cache, "idle", 5, Duration::ZERO);
    assert_eq!(
        (cache.stats().bytes, cache.stats().evictions),
        (10, 2),
        "the value is counted in place of the reservation"
    );
}

#[test]
fn a_failed_load_gives_its_reservation_back() {
    let cache = LoadCache::with_budget(10);
    let Ok(Lookup::Miss(mut guard)) = cache.lookup::<String>(key("a")) else { panic!("an empty cache") };
    guard.reserve(u64::MAX);
    drop(guard);
    set(&cache, "b", 10, Duration::ZERO);
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (10, 0));
}

#[test]
fn what_is_pinned_stays() {
    let cache = LoadCache::with_budget(1);
    assert!(!cache.pin(&key("a")) && !cache.unpin(&key("a")), "nothing is there");
    set(&cache, "a", 1, Duration::ZERO);
    assert!(cache.pin(&key("a")));
    set(&cache, "b", 1, Duration::ZERO);
    cache.trim();
    assert_eq!((cache.stats().evictions, cache.stats().bytes), (1, 1), "b went, as a is pinned");
    assert!(!cache.remove_idle(&key("a")));
    cache.set_budget(Some(0));
    assert_eq!(cache.stats().bytes, 1);
    assert!(cache.unpin(&key("a")), "it was there");
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (0, 2), "unpinned, it goes at once");
}

#[test]
fn a_pin_is_of_one_value() {
    let cache = LoadCache::new();
    set(&cache, "a", 1, Duration::ZERO);
    assert!(cache.pin(&key("a")));
    set(&cache, "a", 1, Duration::ZERO);
    cache.set_budget(Some(0));
    assert_eq!(cache.stats().entries, 0, "what replaced it is not pinned");
    cache.set_budget(None);
    set(&cache, "b", 1, Duration::ZERO);
    assert!(cache.pin(&key("b")) && cache.remove(&key("b")), "what is pinned can be removed");
    let Ok(Lookup::Miss(guard)) = cache.lookup::<String>(key("c")) else { panic!("nothing is there") };
    assert!(!cache.pin(&key("c")), "a load is not a value");
    guard.fill("c".to_owned(), 1);
}

#[test]
fn a_smaller_budget_and_trimming_drop_what_is_beyond_it() {
    let cache = LoadCache::new();
    let a = load(&cache, "a", 10);
    load(&cache, "b", 10);
    cache.trim();
    assert_eq!(cache.stats().evictions, 0, "no budget");
    cache.set_budget(Some(5));
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (10, 1));
    drop(a);
    assert_eq!(cache.stats().bytes, 10, "nobody has looked since it was let go");
    cache.trim();
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (0, 2));
}

#[test]
fn what_is_idle_can_be_removed_alone() {
    let cache = LoadCache::new();
    let a = load(&cache, "a", 10);
    assert!(!cache.remove_idle(&key("a")), "it is held");
    drop(a);
    assert!(cache.remove_idle(&key("a")));
    assert!(!cache.remove_idle(&key("a")), "it is gone");
    assert_eq!((cache.stats().bytes, cache.stats().entries, cache.stats().evictions), (0, 0, 0));
}
