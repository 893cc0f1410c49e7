//! What a listener is told, key by key.

mod watch;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mm_cache::{Ask, Event, EventKind, LoadCache, Lookup, Subscription, Weight};
use watch::{key, until_waiting, watched, weigh};

/// All that was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Event>>>);

impl Told {
    fn by(cache: &LoadCache) -> (Self, Subscription) {
        let told = Self::default();
        let events = told.0.clone();
        (told, cache.subscribe(move |event| events.lock().expect("no panic").push(event.clone())))
    }

    /// What was told of one key since this was last asked. How long a load took differs from run to run: it is zero here.
    fn of(&self, name: &str) -> Vec<EventKind> {
        let mut events = self.0.lock().expect("no panic");
        let (these, others) = events.drain(..).partition(|event| event.key == key(name));
        *events = others;
        let timeless = |event: Event| match event.kind {
            EventKind::Loaded { bytes, .. } => EventKind::Loaded { bytes, took: Duration::ZERO },
            kind => kind,
        };
        Vec::into_iter(these).map(timeless).collect()
    }
}

fn load(cache: &LoadCache, name: &'static str, bytes: u64) {
    cache.get_or_load(key(name), |_| bytes, || Ok::<_, Infallible>(name)).expect("loads");
}

fn loaded(bytes: u64) -> EventKind {
    EventKind::Loaded { bytes, took: Duration::ZERO }
}

use EventKind::{Evicted, Failed, Hit, Loading, Removed, Waiting};

#[test]
fn a_miss_a_hit_a_failure_and_a_removal() {
    let cache = LoadCache::new();
    let (told, _subscription) = Told::by(&cache);
    load(&cache, "a", 3);
    load(&cache, "a", 3);
    assert!(cache.get::<&str>(&key("a")).is_ok_and(|value| value.is_some()));
    assert!(cache.get::<u8>(&key("a")).is_err(), "of another type, but there");
    assert_eq!(told.of("a"), [Loading, loaded(3), Hit, Hit, Hit]);
    assert!(cache.remove(&key("a")) && !cache.remove(&key("a")));
    assert_eq!(cache.get::<&str>(&key("a")), Ok(None));
    assert_eq!(told.of("a"), [Removed]);
    cache.get_or_load::<u8, _, _>(key("a"), weigh, || Err(())).expect_err("it fails");
    assert_eq!(told.of("a"), [Loading, Failed]);
    let panicking = || cache.get_or_load::<u8, (), _>(key("a"), weigh, || resume_unwind(Box::new(())));
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    assert_eq!(told.of("a"), [Loading, Failed]);
}

#[test]
fn what_is_set_replaced_cleared_and_removed_idle() {
    let cache = LoadCache::new();
    let (told, _subscription) = Told::by(&cache);
    cache.set(key("a"), Arc::new(1), 1);
    assert_eq!(told.of("a"), []);
    cache.set(key("a"), Arc::new(2), 1);
    assert_eq!(told.of("a"), [Removed]);
    cache.clear();
    assert_eq!(told.of("a"), [Removed]);
    load(&cache, "a", 1);
    assert!(cache.remove_idle(&key("a")));
    assert_eq!(told.of("a"), [Loading, loaded(1), Removed]);
}

#[test]
fn what_is_evicted_says_what_it_weighed() {
    let cache = LoadCache::with_budget(10);
    let (told, _subscription) = Told::by(&cache);
    load(&cache, "a", 7);
    load(&cache, "b", 6);
    assert_eq!(told.of("a"), [Loading, loaded(7), Evicted { bytes: 7 }]);
    assert_eq!(told.of("b"), [Loading, loaded(6)]);
}

#[test]
fn a_wait_and_a_load_that_is_handed_on() {
    watched(|| {
        let cache = LoadCache::new();
        let (told, _subscription) = Told::by(&cache);
        let Ok(Lookup::Miss(guard)) = cache.lookup::<&str>(key("a")) else { panic!("an empty cache") };
        thread::scope(|scope| {
            let waiter = scope.spawn(|| load(&cache, "a", 1));
            until_waiting(&cache, 1);
            // The event comes after it is counted.
            while told.0.lock().expect("no panic").len() < 2 {
                thread::yield_now();
            }
            assert_eq!(told.of("a"), [Loading, Waiting]);
            drop(guard);
            waiter.join().expect("no panic");
        });
        let mut told = told.of("a");
        told.retain(|kind| *kind != Failed);
        assert_eq!(told, [Loading, loaded(1)], "told by two threads, `Failed` may come at any place");
    });
}

#[test]
fn the_first_to_ask_names_an_entry() {
    let cache = LoadCache::new();
    let names = Arc::new(Mutex::new(Vec::new()));
    let told = names.clone();
    let _subscription = cache.subscribe(move |event| told.lock().expect("no panic").push(event.name.clone()));
    for name in ["first", "second"] {
        let ask = Ask::new(key("a")).named(name);
        cache.get_or_load(ask, weigh, || Ok::<_, Infallible>(1)).expect("loads");
    }
    let names = names.lock().expect("no panic");
    assert_eq!(names.iter().map(Option::as_deref).collect::<Vec<_>>(), [Some("first"); 3]);
}

#[test]
fn a_listener_that_panics_harms_neither_the_load_nor_other_listeners() {
    let cache = LoadCache::with_budget(1);
    let _panicking = cache.subscribe(|_| resume_unwind(Box::new("listener")));
    let (told, _subscription) = Told::by(&cache);
    load(&cache, "a", 1);
    load(&cache, "b", 1);
    cache.get_or_load::<u8, _, _>(key("c"), weigh, || Err(())).expect_err("it fails");
    // The listener panics while the load's panic is under way.
    let panicking = || cache.get_or_load::<u8, (), _>(key("c"), weigh, || resume_unwind(Box::new(())));
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    assert_eq!(told.of("a"), [Loading, loaded(1), Evicted { bytes: 1 }]);
    assert_eq!(told.of("b"), [Loading, loaded(1)]);
    assert_eq!(told.of("c"), [Loading, Failed, Loading, Failed]);
    assert_eq!(cache.stats().bytes, 1);
}

#[test]
fn a_listener_may_use_the_cache() {
    watched(|| {
        let cache = Arc::new(LoadCache::with_budget(4));
        let listening = Arc::downgrade(&cache);
        let _subscription = cache.subscribe(move |event| {
            let Some(cache) = listening.upgrade() else { return };
            let of = |kind: &str| component(kind, &event.key);
            match event.kind {
                // Once per key, or it would go on forever.
                Loading if cache.lookup::<u8>(event.key).is_err() => cache.set(of("loading"), Arc::new(1u8), 1),
                EventKind::Loaded { .. } => drop(cache.pin(&event.key)),
                Hit => drop(cache.unpin(&event.key)),
                Evicted { .. } | Removed => drop(cache.remove(&of("loading"))),
                _ => cache.trim(),
            }
        });
        load(&cache, "a", 2);
        load(&cache, "a", 2);
        load(&cache, "b", 2);
        load(&cache, "c", 2);
        load(&cache, "d", 2);
        cache.get_or_load::<u8, _, _>(key("e"), weigh, || Err(())).expect_err("it fails");
        cache.clear();
        assert_eq!(cache.stats().bytes, cache.stats().entries);
    });

    fn component(kind: &str, key: &mm_cache::Key) -> mm_cache::Key {
        mm_cache::component_hash(&format!("{kind} {key}"))
    }
}

#[test]
fn nothing_is_told_before_a_subscription_and_after_it() {
    let cache = LoadCache::new();
    load(&cache, "a", 1);
    let (told, subscription) = Told::by(&cache);
    let (other, other_subscription) = Told::by(&cache);
    load(&cache, "a", 1);
    drop(subscription);
    load(&cache, "a", 1);
    assert_eq!(told.of("a"), [Hit]);
    assert_eq!(other.of("a"), [Hit, Hit], "its own goes on");
    drop(other_subscription);
    load(&cache, "a", 1);
    assert_eq!(other.of("a"), []);
    let (_, outliving) = Told::by(&cache);
    drop(cache);
    drop(outliving);
}

#[test]
fn a_weight_is_told_as_it_was_stated() {
    let cache = LoadCache::new();
    let (told, _subscription) = Told::by(&cache);
    let weigh = |_: &u8| Weight::bytes(u64::MAX).reload_in(Duration::MAX);
    cache.get_or_load(key("a"), weigh, || Ok::<_, Infallible>(1)).expect("loads");
    assert_eq!(told.of("a"), [Loading, loaded(u64::MAX)]);
}
