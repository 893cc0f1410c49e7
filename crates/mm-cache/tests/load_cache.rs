//! One factory per load, whatever the threads and the factories do.

mod watch;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

use mm_cache::{Key, LoadCache, LoadError, LookupError, WrongType};
use proptest::prelude::*;
use watch::{key, until_waiting, watched, weigh};

#[test]
fn many_threads_share_one_factory_run() {
    watched(|| {
        const THREADS: usize = 16;
        let cache = LoadCache::new();
        let runs = AtomicUsize::new(0);
        let values: Vec<Arc<usize>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let load = || {
                            until_waiting(&cache, THREADS as u64 - 1);
                            Ok::<_, Infallible>(runs.fetch_add(1, SeqCst))
                        };
                        cache.get_or_load(key("a"), weigh, load).expect("loads")
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(runs.load(SeqCst), 1);
        assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
        let stats = cache.stats();
        assert_eq!((stats.misses, stats.waits, stats.hits, stats.entries), (1, THREADS as u64 - 1, 0, 1));
    });
}

#[test]
fn other_keys_load_while_a_factory_runs() {
    watched(|| {
        let cache = LoadCache::new();
        let outer = cache.get_or_load(key("outer"), weigh, || {
            // Many keys, so that some share a shard with the running one: no lock may be held.
            for other in 0..1000 {
                cache.get_or_load(key(&other.to_string()), weigh, || Ok::<_, Infallible>(other)).expect("loads");
            }
            assert!(!cache.remove(&key("absent")));
            Ok::<_, Infallible>(cache.stats().entries)
        });
        assert_eq!(*outer.expect("loads"), 1000);
    });
}

/// `THREADS` callers gather at one load; the first `failing` factories fail or panic, each with the rest waiting.
fn failures_pass_on(failing: usize, panics: bool) {
    const THREADS: usize = 8;
    let cache = LoadCache::new();
    let (runs, running, worst) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let load = || {
                    worst.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                    until_waiting(&cache, THREADS as u64 - 1);
                    let run = runs.fetch_add(1, SeqCst);
                    running.fetch_sub(1, SeqCst);
                    match run < failing {
                        true if panics => std::panic::resume_unwind(Box::new("factory")),
                        true => Err("no such file"),
                        false => Ok(run),
                    }
                };
                match catch_unwind(AssertUnwindSafe(|| cache.get_or_load(key("a"), weigh, load))) {
                    Ok(Ok(value)) => assert_eq!(*value, failing),
                    Ok(Err(error)) => {
                        assert!(matches!(error, LoadError::Factory("no such file")) && !panics);
                        failed.fetch_add(1, SeqCst);
                    }
                    Err(_) => {
                        assert!(panics);
                        failed.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(failed.load(SeqCst), failing, "each failure reaches its own caller only");
    assert_eq!(worst.load(SeqCst), 1, "factories of one key never overlap");
    assert_eq!(runs.load(SeqCst), (failing + 1).min(THREADS));
    let stats = cache.stats();
    assert_eq!(stats.misses as usize, runs.load(SeqCst));
    assert_eq!(stats.entries, u64::from(failing < THREADS));
}

#[test]
fn a_failed_load_is_retried_by_one_waiter_after_another() {
    for failing in 0..=8 {
        watched(move || failures_pass_on(failing, false));
    }
}

#[test]
fn a_panicking_load_is_retried_by_one_waiter_after_another() {
    for failing in 0..=8 {
        watched(move || failures_pass_on(failing, true));
    }
}

#[test]
fn a_failure_is_not_remembered() {
    let cache = LoadCache::new();
    let error = cache.get_or_load::<u8, _, _>(key("a"), weigh, || Err("offline")).expect_err("fails");
    assert_eq!(error.to_string(), "loading failed: offline");
    assert_eq!(cache.stats().entries, 0);
    assert_eq!(*cache.get_or_load(key("a"), weigh, || Ok::<_, Infallible>(3u8)).expect("loads"), 3);
}

#[test]
fn a_factory_that_asks_for_itself_is_refused() {
    watched(|| {
        let cache = LoadCache::new();
        let inner = |name: &str| cache.get_or_load(key(name), weigh, || Ok::<u8, Infallible>(1)).map(|v| *v);
        let direct = cache.get_or_load(key("a"), weigh, || inner("a"));
        assert!(
            matches!(direct, Err(LoadError::Factory(LoadError::Lookup(LookupError::Cycle { key: at }))) if at == key("a"))
        );
        let indirect = cache
            .get_or_load(key("a"), weigh, || cache.get_or_load(key("b"), weigh, || inner("a")).map(|value| *value));
        assert!(matches!(
            indirect,
            Err(LoadError::Factory(LoadError::Factory(LoadError::Lookup(LookupError::Cycle { .. }))))
        ));
        assert_eq!(inner("a").expect("the refused loads left nothing behind"), 1);
    });
}

#[test]
fn two_threads_that_wait_for_each_other_are_told() {
    watched(|| {
        let cache = LoadCache::new();
        let both_run = Barrier::new(2);
        let load = |mine: &str, other: &str| {
            let outer = cache.get_or_load(key(mine), weigh, || {
                both_run.wait();
                cache.get_or_load(key(other), weigh, || Ok::<u8, Infallible>(7)).map(|value| *value)
            });
            outer.map(|value| *value)
        };
        let (one, two) = thread::scope(|scope| {
            let one = scope.spawn(|| load("a", "b"));
            let two = scope.spawn(|| load("b", "a"));
            (one.join().expect("no panic"), two.join().expect("no panic"))
        });
        let refused =
            |r: &Result<_, _>| matches!(r, Err(LoadError::Factory(LoadError::Lookup(LookupError::Cycle { .. }))));
        assert_ne!(refused(&one), refused(&two), "one is refused, {one:?} {two:?}");
        assert_eq!(one.or(two).expect("and the other loads"), 7);
    });
}

#[test]
fn another_type_under_a_key_is_an_error() {
    let cache = LoadCache::new();
    cache.set(key("a"), Arc::new(5u32), 4);
    let wrong = WrongType { key: key("a"), expected: "u64", found: "u32" };
    assert_eq!(cache.get::<u64>(&key("a")), Err(wrong.clone()));
    let loaded = cache.get_or_load::<u64, Infallible, _>(key("a"), weigh, || Ok(1));
    assert!(matches!(loaded, Err(LoadError::Lookup(LookupError::WrongType(e))) if e == wrong));
    assert_eq!(cache.get::<u32>(&key("a")).expect("right type").as_deref(), Some(&5));
}

#[test]
fn removed_while_loading_is_given_out_but_not_kept() {
    let cache = LoadCache::new();
    let value = cache.get_or_load(key("a"), weigh, || {
        assert!(!cache.remove(&key("a")), "a load is not a value");
        Ok::<_, Infallible>(1)
    });
    assert_eq!(*value.expect("loads"), 1);
    assert_eq!(cache.get::<i32>(&key("a")), Ok(None));
}

#[test]
fn set_while_loading_wins() {
    let cache = LoadCache::new();
    let value = cache.get_or_load(key("a"), weigh, || {
        cache.set(key("a"), Arc::new(2), 1);
        Ok::<_, Infallible>(1)
    });
    assert_eq!(*value.expect("loads"), 1);
    assert_eq!(cache.get::<i32>(&key("a")).expect("an i32").as_deref(), Some(&2));
}

#[test]
fn a_value_may_use_the_cache_while_it_is_dropped() {
    struct Nosy(Arc<LoadCache>, Key, Arc<AtomicUsize>);
    impl Drop for Nosy {
        fn drop(&mut self) {
            // Takes the very lock that the value's own entry lies under.
            self.0.set(self.1, Arc::new("gone"), 0);
            self.2.fetch_add(1, SeqCst);
        }
    }
    watched(|| {
        let cache = Arc::new(LoadCache::with_budget(1));
        let dropped = Arc::new(AtomicUsize::new(0));
        let set = |name: &str| {
            cache.set(key(name), Arc::new(Nosy(cache.clone(), key(name), dropped.clone())), 1);
        };
        set("evicted");
        set("cleared");
        assert_eq!((dropped.load(SeqCst), cache.stats().evictions), (1, 1));
        cache.clear();
        assert_eq!(dropped.load(SeqCst), 2);
        set("removed");
        assert!(cache.remove(&key("removed")));
        assert_eq!(dropped.load(SeqCst), 3);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Threads mixing every call on few keys, some factories failing: nothing hangs and no load of a key overlaps
    /// another of the same key while nobody removes it.
    #[test]
    fn any_mix_of_calls_ends(calls in prop::collection::vec((0..4u8, 0..3u8, any::<bool>()), 1..60)) {
        watched(move || {
            let cache = LoadCache::with_budget(2);
            thread::scope(|scope| {
                for thread in 0..4 {
                    let (cache, calls) = (&cache, &calls);
                    scope.spawn(move || {
                        for (call, name, fails) in calls.iter().cycle().skip(thread * 7).take(calls.len() * 3) {
                            let at = key(&name.to_string());
                            match call {
                                0 | 1 => {
                                    let load = || if *fails { Err(()) } else { Ok(*name) };
                                    if let Ok(value) = cache.get_or_load(at, weigh, load) {
                                        assert_eq!(*value, *name);
                                    }
                                }
                                2 => cache.set(at, Arc::new(*name), 1),
                                _ => drop(cache.remove(&at)),
                            }
                        }
                    });
                }
            });
            cache.set(key("last"), Arc::new(0u8), 1);
            assert!(cache.stats().bytes <= 2);
            cache.clear();
            assert_eq!((cache.stats().bytes, cache.stats().entries), (0, 0));
        });
    }
}
