//! Waits that end early, and loads that are never filled.

mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use mm_cache::{Ask, Cancel, EventKind, LoadCache, LoadError, LoadGuard, Lookup, LookupError};
use watch::{key, until_waiting, watched, weigh};

fn begun<'a, T: Send + Sync + 'static>(cache: &'a LoadCache, name: &str) -> LoadGuard<'a, T> {
    match cache.lookup(key(name)).expect("nobody loads it") {
        Lookup::Miss(guard) => guard,
        Lookup::Hit(_) => panic!("{name} is there"),
    }
}

#[test]
fn who_will_not_wait_is_told_at_once_and_the_load_goes_on() {
    watched(|| {
        let cache = LoadCache::new();
        let guard = begun::<String>(&cache, "a");
        thread::scope(|scope| {
            let ask = || cache.lookup::<String>(Ask::new(key("a")).within(Duration::ZERO)).expect_err("it is loading");
            let error = scope.spawn(ask).join().expect("no panic");
            assert_eq!(error, LookupError::TimedOut { key: key("a") });
        });
        assert_eq!((cache.stats().waits, cache.stats().given_up), (0, 1), "it did not even begin to wait");
        let value = guard.fill("a".to_owned(), 1);
        let again = cache.get::<String>(&key("a")).expect("a String").expect("loaded");
        assert!(Arc::ptr_eq(&value, &again));
        assert!(
            cache.lookup::<String>(Ask::new(key("a")).within(Duration::ZERO)).is_ok(),
            "there is nothing to wait for"
        );
    });
}

#[test]
fn a_wait_that_times_out_leaves_the_load_to_the_others() {
    watched(|| {
        let cache = LoadCache::new();
        let guard = begun::<String>(&cache, "a");
        thread::scope(|scope| {
            let patient = scope.spawn(|| cache.get_or_load(key("a"), weigh, || Ok::<_, Infallible>("mine".to_owned())));
            until_waiting(&cache, 1);
            let hasty =
                scope.spawn(|| cache.lookup::<String>(Ask::new(key("a")).within(Duration::from_millis(1))).err());
            assert_eq!(hasty.join().expect("no panic"), Some(LookupError::TimedOut { key: key("a") }));
            drop(guard);
            assert_eq!(*patient.join().expect("no panic").expect("taken over"), "mine");
        });
        let stats = cache.stats();
        assert_eq!((stats.misses, stats.failures, stats.waits, stats.given_up), (2, 1, 2, 1));
    });
}

#[test]
fn a_timeout_beyond_all_clocks_is_none() {
    watched(|| {
        let cache = LoadCache::new();
        let guard = begun::<String>(&cache, "a");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| cache.lookup::<String>(Ask::new(key("a")).within(Duration::MAX)).is_ok());
            until_waiting(&cache, 1);
            guard.fill("a".to_owned(), 1);
            assert!(waiter.join().expect("no panic"));
        });
    });
}

#[test]
fn cancelling_ends_all_waits_that_were_asked_for_with_it_and_no_other() {
    watched(|| {
        let (cache, cancel) = (LoadCache::new(), Cancel::new());
        let (a, b) = (begun::<String>(&cache, "a"), begun::<String>(&cache, "b"));
        thread::scope(|scope| {
            let ask = |name: &str, cancel: &Cancel| {
                let ask = Ask::new(key(name)).until(cancel);
                let cache = &cache;
                scope.spawn(move || cache.lookup::<String>(ask).map(|found| matches!(found, Lookup::Hit(_))))
            };
            let cancelled = [ask("a", &cancel), ask("a", &cancel.clone()), ask("b", &cancel)];
            let other = ask("a", &Cancel::new());
            until_waiting(&cache, 4);
            cancel.cancel();
            for (waiter, name) in cancelled.into_iter().zip(["a", "a", "b"]) {
                assert_eq!(waiter.join().expect("no panic"), Err(LookupError::Cancelled { key: key(name) }));
            }
            a.fill("a".to_owned(), 1);
            assert_eq!(other.join().expect("no panic"), Ok(true));
        });
        drop(b);
        assert!(cancel.is_cancelled());
        assert_eq!(cache.stats().given_up, 3);
    });
}

#[test]
fn what_is_cancelled_begins_no_load_but_has_what_is_there() {
    let (cache, cancel) = (LoadCache::new(), Cancel::new());
    cancel.cancel();
    let ask = || Ask::new(key("a")).until(&cancel);
    let load = || -> Result<String, Infallible> { unreachable!("it is cancelled") };
    let error = cache.get_or_load(ask(), weigh, load).expect_err("nothing is there");
    assert!(matches!(error, LoadError::Lookup(LookupError::Cancelled { key: at }) if at == key("a")));
    assert_eq!((cache.stats().misses, cache.stats().given_up), (0, 1));
    cache.set(key("a"), Arc::new("a".to_owned()), 1);
    assert_eq!(*cache.get_or_load(ask(), weigh, load).expect("there"), "a");
}

#[test]
fn a_guard_dropped_unfilled_is_a_failed_load() {
    let cache = LoadCache::new();
    drop(begun::<String>(&cache, "a"));
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.failures, stats.entries), (1, 1, 0));
    begun::<String>(&cache, "a").fill("again".to_owned(), 1);
    assert_eq!(cache.stats().entries, 1);
}

#[test]
fn who_holds_a_guard_and_asks_for_the_same_is_refused() {
    let cache = LoadCache::new();
    let guard = begun::<String>(&cache, "a");
    let error = cache.lookup::<String>(key("a")).expect_err("it would wait for itself");
    assert_eq!(error, LookupError::Cycle { key: key("a") });
    guard.fill("a".to_owned(), 1);
    assert_eq!(cache.stats().waits, 0, "it did not begin to wait");
}

#[test]
fn a_guard_dropped_hands_the_load_to_one_who_waits() {
    watched(|| {
        let cache = LoadCache::new();
        let guard = begun::<String>(&cache, "a");
        thread::scope(|scope| {
            let ask = || match cache.lookup::<String>(key("a")).expect("no cycle") {
                Lookup::Hit(_) => false,
                Lookup::Miss(guard) => {
                    guard.fill("a".to_owned(), 1);
                    true
                }
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            until_waiting(&cache, 4);
            drop(guard);
            let loaded = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            assert_eq!(loaded.filter(|&loaded| loaded).count(), 1);
        });
    });
}

#[test]
fn a_value_removed_while_it_was_waited_for_is_kept_by_nobody_but_its_holders() {
    watched(|| {
        let cache = LoadCache::new();
        let guard = begun::<String>(&cache, "a");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| match cache.lookup::<String>(key("a")).expect("no cycle") {
                Lookup::Hit(value) => Some(value),
                Lookup::Miss(_) => None,
            });
            until_waiting(&cache, 1);
            // As a waiter is one for sure only once it waits, the load is forgotten either way.
            cache.remove(&key("a"));
            let value = guard.fill("a".to_owned(), 1);
            let waited = waiter.join().expect("no panic");
            let weak = Arc::downgrade(&value);
            drop((value, waited));
            assert!(weak.upgrade().is_none(), "kept alive by nobody who holds it");
        });
        assert_eq!(cache.stats().bytes, 0);
    });
}

#[test]
fn a_listener_that_waits_hides_no_cycle() {
    watched(|| {
        let cache = Arc::new(LoadCache::new());
        let (listening, listened) = (Arc::downgrade(&cache), Arc::new(AtomicBool::new(false)));
        let tell = listened.clone();
        // Who begins to wait for x waits for z first, and from then on for x.
        let _subscription = cache.subscribe(move |event| {
            if event.kind == EventKind::Waiting && event.key == key("x") {
                let cache = listening.upgrade().expect("it tells of something");
                cache.get_or_load(key("z"), weigh, || Ok::<_, Infallible>(1u8)).expect("loads");
                tell.store(true, SeqCst);
            }
        });
        let (x, z) = (begun::<String>(&cache, "x"), begun(&cache, "z"));
        thread::scope(|scope| {
            let y = || {
                cache.get_or_load(key("y"), weigh, || {
                    cache.get_or_load(key("x"), weigh, || Ok::<_, Infallible>("x".to_owned())).map(|_| 1u8)
                })
            };
            let y = scope.spawn(y);
            until_waiting(&cache, 2);
            z.fill(1u8, 1);
            while !listened.load(SeqCst) {
                thread::yield_now();
            }
            // This thread loads x, which is waited for by the load of y.
            let refused = cache.lookup::<u8>(key("y")).expect_err("y cannot end before x");
            assert_eq!(refused, LookupError::Cycle { key: key("y") });
            x.fill("x".to_owned(), 1);
            assert!(y.join().expect("no panic").is_ok());
        });
    });
}
