//! The load-once map under a checker of schedules: the source of `src/load`, with the locks and waits of `sync.rs` beside this
//! file. A schedule in which nobody can go on is reported as a deadlock, so a lost wake-up is one.

#[path = "../../src/digest.rs"]
#[allow(dead_code, unreachable_pub)]
mod digest;
#[path = "../../src/key.rs"]
#[allow(dead_code, unreachable_pub)]
mod key;
#[path = "../../src/load/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod load;
#[allow(unreachable_pub)]
mod sync;

mod loads;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use load::{Ask, Cancel, Event, EventKind, LoadCache, LoadError, Lookup, LookupError, Weight};
use loads::{Asked, Loads, Outcome, account, key};
use shuttle::thread;

/// Schedules at random, and those with few but well placed changes of thread.
fn explored(scenario: fn()) {
    let scenario = move || {
        sync::restart_clock();
        scenario();
    };
    shuttle::check_random(scenario, 2000);
    shuttle::check_pct(scenario, 2000, 3);
}

/// All schedules, or the first so many of them.
fn enumerated(scenario: fn()) {
    let scenario = move || {
        sync::restart_clock();
        scenario();
    };
    shuttle::check_dfs(scenario, Some(5_000));
}

/// Threads that ask for one key at once, one for each outcome; what each came to.
fn ask_at_once(cache: &LoadCache, loads: &Loads, outcomes: &[Outcome]) -> Vec<Asked> {
    thread::scope(|scope| {
        let ask = |&outcome: &Outcome| scope.spawn(move || loads.ask(cache, key("a"), outcome));
        let threads: Vec<_> = outcomes.iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn shared(threads: usize) {
    let (cache, loads) = (LoadCache::new(), Loads::default());
    let came = ask_at_once(&cache, &loads, &vec![Outcome::Value; threads]);
    let first = came[0].value();
    assert!(came.iter().all(|each| Arc::ptr_eq(each.value(), first)));
    let stats = cache.stats();
    assert_eq!((loads.runs(), stats.misses, stats.entries), (1, 1, 1));
    assert_eq!(stats.hits + stats.misses + stats.waits, threads as u64, "each call is one of these: {stats:?}");
    account(&cache, &loads, &came);
}

#[test]
fn one_load_is_shared() {
    explored(|| shared(3));
    enumerated(|| shared(2));
}

fn taken_over(outcomes: &[Outcome]) {
    let (cache, loads) = (LoadCache::new(), Loads::default());
    let came = ask_at_once(&cache, &loads, outcomes);
    for (outcome, came) in outcomes.iter().zip(&came) {
        match outcome {
            Outcome::Value => assert!(matches!(came, Asked::Value(_))),
            Outcome::Error => assert!(matches!(came, Asked::Value(_) | Asked::Failed)),
            Outcome::Panic => assert!(matches!(came, Asked::Value(_) | Asked::Panicked)),
        }
    }
    let good = u64::from(outcomes.contains(&Outcome::Value));
    assert_eq!((loads.fills() as u64, cache.stats().entries), (good, good));
    account(&cache, &loads, &came);
}

#[test]
fn a_failed_load_is_taken_over_by_one_after_another() {
    use Outcome::{Error, Value};
    explored(|| taken_over(&[Error, Error, Value, Value]));
    explored(|| taken_over(&[Error, Error, Error]));
    enumerated(|| taken_over(&[Error, Value]));
}

#[test]
fn a_panicking_load_is_taken_over() {
    use Outcome::{Error, Panic, Value};
    explored(|| taken_over(&[Panic, Panic, Value]));
    explored(|| taken_over(&[Panic, Error, Value]));
    enumerated(|| taken_over(&[Panic, Value]));
}

/// Failing loads; of those who wait `cancelled` are cancelled at any time, among them whoever was woken to load.
fn cancelled(failing: usize, cancelled: usize, patient: usize) {
    let (cache, loads, cancel) = (LoadCache::new(), Loads::default(), Cancel::new());
    let came: Vec<Asked> = thread::scope(|scope| {
        let (cache, loads, cancel) = (&cache, &loads, &cancel);
        let mut threads = Vec::new();
        for _ in 0..failing {
            threads.push(scope.spawn(move || loads.ask(cache, key("a"), Outcome::Error)));
        }
        for _ in 0..cancelled {
            threads.push(scope.spawn(move || loads.ask(cache, Ask::new(key("a")).until(cancel), Outcome::Error)));
        }
        let begin = threads.len();
        for _ in 0..patient {
            threads.push(scope.spawn(move || loads.ask(cache, key("a"), Outcome::Value)));
        }
        cancel.cancel();
        let came: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        assert!(came[begin..].iter().all(|came| matches!(came, Asked::Value(_))), "the patient have it");
        came
    });
    assert_eq!(cache.stats().entries, u64::from(patient > 0));
    assert!(matches!(loads.ask(&cache, key("a"), Outcome::Value), Asked::Value(_)), "whatever was cancelled");
    account(&cache, &loads, &came);
}

#[test]
fn a_cancelled_waiter_ends() {
    // The load itself ends only after the wait was cancelled: else nothing wakes the waiter.
    explored(|| {
        let (cache, cancel) = (LoadCache::new(), Cancel::new());
        let Ok(Lookup::Miss(guard)) = cache.lookup::<usize>(key("a")) else { panic!("an empty cache") };
        thread::scope(|scope| {
            let ask = Ask::new(key("a")).until(&cancel);
            let waiter = scope.spawn(|| cache.lookup::<usize>(ask).expect_err("nobody loads it"));
            cancel.cancel();
            assert_eq!(waiter.join().expect("no panic"), LookupError::Cancelled { key: key("a") });
        });
        guard.fill(1usize, 1);
    });
}

#[test]
fn a_cancelled_waiter_that_was_woken_to_load_wakes_the_next() {
    explored(|| cancelled(1, 1, 1));
    explored(|| cancelled(1, 2, 1));
    explored(|| cancelled(1, 1, 2));
    enumerated(|| cancelled(1, 1, 1));
}

#[test]
fn a_load_that_only_cancelled_waiters_waited_for_is_gone() {
    explored(|| cancelled(1, 2, 0));
    enumerated(|| cancelled(1, 1, 0));
}

#[test]
fn removed_while_loading() {
    explored(|| {
        let (cache, loads) = (LoadCache::new(), Loads::overlapping());
        let came = thread::scope(|scope| {
            let ask = |outcome| {
                let (cache, loads) = (&cache, &loads);
                scope.spawn(move || loads.ask(cache, key("a"), outcome))
            };
            let threads = [ask(Outcome::Value), ask(Outcome::Error), ask(Outcome::Value)];
            let remover = scope.spawn(|| cache.remove(&key("a")));
            let came = threads.map(|thread| thread.join().expect("no panic"));
            remover.join().expect("no panic");
            came
        });
        assert!(matches!(came, [Asked::Value(_), Asked::Value(_) | Asked::Failed, Asked::Value(_)]));
        assert!(loads.fills() <= 2, "one before the removal, one after it");
        let stats = cache.stats();
        assert_eq!(stats.bytes, stats.entries);
        account(&cache, &loads, &came);
    });
}

#[test]
fn set_while_loading_wins() {
    let scenario = || {
        let (cache, loads) = (LoadCache::new(), Loads::overlapping());
        let set = Arc::new(9usize);
        let came = thread::scope(|scope| {
            let ask = || scope.spawn(|| loads.ask(&cache, key("a"), Outcome::Value));
            let threads = [ask(), ask()];
            cache.set(key("a"), set.clone(), 1);
            threads.map(|thread| thread.join().expect("no panic"))
        });
        assert!(loads.fills() <= 1);
        let there = cache.get::<usize>(&key("a")).expect("a usize").expect("set");
        assert!(Arc::ptr_eq(&there, &set));
        assert_eq!(cache.stats().bytes, 1);
        account(&cache, &loads, &came);
    };
    explored(scenario);
}

#[test]
fn cleared_while_loading() {
    explored(|| {
        let (cache, loads) = (LoadCache::with_budget(1), Loads::overlapping());
        let came = thread::scope(|scope| {
            let ask = |outcome| {
                let (cache, loads) = (&cache, &loads);
                scope.spawn(move || loads.ask(cache, key("a"), outcome))
            };
            let threads = [ask(Outcome::Value), ask(Outcome::Panic)];
            cache.set(key("b"), Arc::new(1usize), 1);
            cache.clear();
            threads.map(|thread| thread.join().expect("no panic"))
        });
        account(&cache, &loads, &came);
    });
}

/// Asks twice in a row while holding what came first: they are one and the same, however the others evict.
fn hold(cache: &LoadCache, loads: &Loads, name: &str) {
    let first = loads.ask(cache, key(name), Outcome::Value);
    let again = loads.ask(cache, key(name), Outcome::Value);
    assert!(Arc::ptr_eq(first.value(), again.value()), "what is held stays the one copy");
}

#[test]
fn what_is_held_stays_the_one_copy() {
    let scenario = || {
        let (cache, loads) = (LoadCache::with_budget(1), Loads::overlapping());
        thread::scope(|scope| {
            scope.spawn(|| hold(&cache, &loads, "a"));
            scope.spawn(|| hold(&cache, &loads, "a"));
            scope.spawn(|| hold(&cache, &loads, "b"));
            cache.remove_idle(&key("a"));
        });
        cache.trim();
        assert!(cache.stats().bytes <= 1, "what was let go has gone");
        account(&cache, &loads, &[]);
    };
    explored(scenario);
}

#[test]
fn what_was_used_meanwhile_is_not_evicted() {
    // "b" is used before the others, and goes whatever the time that looking at them takes.
    explored(|| {
        let cache = LoadCache::new();
        for name in ["b", "c", "d"] {
            cache.set(key(name), Arc::new(0usize), 1);
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..4 {
                    cache.get::<usize>(&key("d")).expect("a usize");
                }
            });
            cache.set_budget(Some(2));
        });
        let there = |name| cache.get::<usize>(&key(name)).expect("a usize").is_some();
        assert!(!there("b") && there("c"), "the least recently used, whatever the time it took to find it");
    });
}

#[test]
fn what_is_used_while_room_is_made_stays() {
    explored(|| {
        let cache = LoadCache::new();
        for name in ["a", "b"] {
            cache.set(key(name), Arc::new(0usize), 1);
        }
        let there = |name| cache.get::<usize>(&key(name)).expect("a usize").is_some();
        let used = thread::scope(|scope| {
            // "a" would have to go, but is the last used if it was there.
            let user = scope.spawn(|| there("a"));
            cache.set_budget(Some(1));
            user.join().expect("no panic")
        });
        assert_eq!((there("a"), there("b") && cache.stats().bytes == 1), (used, !used));
    });
}

#[test]
fn cost_is_weighed_against_how_long_ago_it_was_used() {
    let costs = [("dear", 10), ("cheap", 1)];
    for (ticks, stays) in [(0, "dear"), (1000, "cheap")] {
        let scenario = move || {
            let cache = LoadCache::new();
            for (name, cost) in costs {
                let weight = Weight::bytes(1).reload_in(Duration::from_millis(cost));
                cache.set(key(name), Arc::new(0usize), weight);
                (0..ticks).for_each(|_| _ = sync::now());
            }
            cache.get::<usize>(&key("cheap")).expect("a usize");
            cache.set_budget(Some(1));
            assert!(cache.get::<usize>(&key(stays)).expect("a usize").is_some(), "after {ticks}");
        };
        shuttle::check(scenario);
    }
}

#[test]
fn what_was_removed_while_it_was_waited_for_is_given_out() {
    // Whether the waiter waited before the removal is the schedule's choice; in some of them it did.
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    explored(|| {
        let cache = LoadCache::new();
        let Ok(Lookup::Miss(guard)) = cache.lookup::<usize>(key("a")) else { panic!("an empty cache") };
        thread::scope(|scope| {
            let waiter = scope.spawn(|| match cache.lookup::<usize>(key("a")).expect("no cycle") {
                Lookup::Hit(value) => Some(value),
                Lookup::Miss(_) => None,
            });
            cache.remove(&key("a"));
            let value = guard.fill(1usize, 1);
            if let Some(waited) = waiter.join().expect("no panic") {
                assert!(Arc::ptr_eq(&value, &waited));
                GIVEN.fetch_add(1, SeqCst);
            }
            let weak = Arc::downgrade(&value);
            drop(value);
            assert!(weak.upgrade().is_none(), "kept by nobody");
        });
        loads::nothing_is_left(&cache);
    });
    assert!(GIVEN.load(SeqCst) > 0);
}

#[test]
fn a_failed_load_leaves_nothing_behind() {
    explored(|| {
        let (cache, loads, name) = (LoadCache::new(), Loads::default(), Arc::<str>::from("a"));
        let ask = || drop(loads.ask(&cache, Ask::new(key("a")).named(name.clone()), Outcome::Error));
        thread::scope(|scope| {
            scope.spawn(ask);
            scope.spawn(ask);
        });
        assert_eq!(Arc::strong_count(&name), 1, "an entry is left");
    });
}

#[test]
fn two_threads_that_make_room_make_it_once() {
    let scenario = || {
        let cache = LoadCache::new();
        for name in ["a", "b", "c"] {
            cache.set(key(name), Arc::new(0usize), 1);
        }
        thread::scope(|scope| {
            scope.spawn(|| cache.trim());
            cache.set_budget(Some(2));
        });
        assert_eq!((cache.stats().evictions, cache.stats().bytes), (1, 2));
    };
    explored(scenario);
    enumerated(scenario);
}

#[test]
fn a_load_makes_room_and_gives_back_what_it_did_not_take() {
    explored(|| {
        let (cache, loads) = (LoadCache::with_budget(2), Loads::default());
        cache.set(key("idle"), Arc::new(0usize), 2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let Ok(Lookup::Miss(mut guard)) = cache.lookup::<usize>(key("a")) else { panic!("nobody else asks") };
                guard.reserve(2);
                assert_eq!(cache.get::<usize>(&key("idle")), Ok(None), "room was made");
                guard.reserve(1);
                guard.fill(1usize, 1);
            });
            scope.spawn(|| {
                let Ok(Lookup::Miss(mut guard)) = cache.lookup::<usize>(key("b")) else { panic!("nobody else asks") };
                guard.reserve(1);
            });
        });
        assert_eq!((cache.stats().bytes, cache.stats().failures), (1, 1));
        cache.clear();
        assert_eq!(loads.runs(), 0);
        loads::nothing_is_left(&cache);
    });
}

#[test]
fn what_is_pinned_stays_until_it_is_not() {
    explored(|| {
        let (cache, loads) = (LoadCache::with_budget(1), Loads::default());
        let pinned = Arc::new(7usize);
        cache.set(key("a"), pinned.clone(), 1);
        assert!(cache.pin(&key("a")));
        let address = Arc::downgrade(&pinned);
        drop(pinned);
        thread::scope(|scope| {
            scope.spawn(|| drop(loads.ask(&cache, key("b"), Outcome::Value)));
            scope.spawn(|| {
                cache.remove_idle(&key("a"));
                assert!(address.upgrade().is_some(), "pinned");
                assert!(cache.unpin(&key("a")));
            });
        });
        cache.trim();
        assert!(cache.stats().bytes <= 1);
        account(&cache, &loads, &[]);
    });
}

/// Two loads, each of which asks for the other's.
fn crossed(cache: &LoadCache) {
    let refused = AtomicUsize::new(0);
    let load = |mine: &str, other: &str| {
        let inner = || match cache.get_or_load(key(other), |_| 1, || Ok::<usize, Infallible>(2)) {
            Ok(value) => Ok(*value),
            Err(LoadError::Lookup(LookupError::Cycle { .. })) => {
                refused.fetch_add(1, SeqCst);
                Err(())
            }
            Err(other) => panic!("{other:?}"),
        };
        cache.get_or_load(key(mine), |_| 1, inner).is_ok()
    };
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| load("x", "y"));
        let two = scope.spawn(|| load("y", "x"));
        (one.join().expect("no panic"), two.join().expect("no panic"))
    });
    assert!((one || two) && refused.load(SeqCst) == usize::from(!one) + usize::from(!two));
}

#[test]
fn two_loads_that_wait_for_each_other_are_told() {
    explored(|| crossed(&LoadCache::new()));
    enumerated(|| crossed(&LoadCache::new()));
}

#[test]
fn a_listener_that_waits_hides_no_cycle() {
    explored(|| {
        let cache = Arc::new(LoadCache::new());
        let listening = Arc::downgrade(&cache);
        let listener = move |event: &Event| {
            if event.kind == EventKind::Waiting && event.key == key("x") {
                let cache = listening.upgrade().expect("it tells of something");
                cache.get_or_load(key("z"), |_| 1, || Ok::<usize, Infallible>(3)).expect("loads");
            }
        };
        let _subscription = cache.subscribe(listener);
        let other = cache.clone();
        let third = thread::spawn(move || other.get_or_load(key("z"), |_| 1, || Ok::<usize, Infallible>(3)).is_ok());
        crossed(&cache);
        assert!(third.join().expect("no panic"));
    });
}

#[test]
fn a_value_that_uses_the_cache_when_it_is_dropped_is_dropped_with_no_lock_held() {
    struct Nosy(Arc<LoadCache>);
    impl Drop for Nosy {
        fn drop(&mut self) {
            self.0.set(key("dropped"), Arc::new(0usize), 1);
            self.0.trim();
        }
    }
    explored(|| {
        let cache = Arc::new(LoadCache::new());
        cache.set(key("a"), Arc::new(Nosy(cache.clone())), 1);
        cache.set(key("b"), Arc::new(Nosy(cache.clone())), 1);
        thread::scope(|scope| {
            scope.spawn(|| cache.remove(&key("a")));
            scope.spawn(|| cache.get::<Nosy>(&key("b")).map(drop));
            cache.set_budget(Some(1));
        });
        cache.clear();
        cache.remove(&key("dropped"));
        loads::nothing_is_left(&cache);
    });
}
