//! Many threads that ask for few keys at once: slow loads, failing loads, panicking loads, waits that end early. Each call is
//! exactly one of: there, loaded, waited for, failed, given up; and the counters say the same.

mod watch;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mm_cache::{Ask, Cancel, EventKind, LoadCache, LoadError, LookupError};
use watch::{key, watched};

const THREADS: usize = 64;
const KEYS: usize = 8;
const ASKS: usize = 10_000;

/// How often calls came to this.
#[derive(Debug, Default, PartialEq, Eq)]
struct Came {
    there: usize,
    loaded: usize,
    waited_for: usize,
    failed: usize,
    given_up: usize,
    /// Calls that began to wait, whatever came of it.
    waits: usize,
}

#[derive(Default)]
struct PerKey {
    running: AtomicUsize,
    runs: AtomicUsize,
    fills: AtomicUsize,
}

struct Hammer {
    cache: LoadCache,
    keys: [PerKey; KEYS],
    next: AtomicUsize,
    to_cancel: Mutex<Vec<Cancel>>,
    came: Mutex<Came>,
}

/// What a factory panics with.
struct Thrown;

thread_local! {
    /// What this thread was told since it last asked.
    static TOLD: RefCell<Vec<EventKind>> = const { RefCell::new(Vec::new()) };
}

/// The `n`th of some numbers that look like chance, the same in every run.
fn chance(n: usize) -> usize {
    let mut z = (n as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 33) as usize
}

impl Hammer {
    fn new(budget: Option<u64>) -> Self {
        let cache = LoadCache::new();
        cache.set_budget(budget);
        Self {
            cache,
            keys: Default::default(),
            next: AtomicUsize::new(0),
            to_cancel: Mutex::default(),
            came: Mutex::default(),
        }
    }

    fn load(&self, at: usize, n: usize) -> Result<(usize, usize), ()> {
        let key = &self.keys[at];
        assert_eq!(key.running.fetch_add(1, SeqCst), 0, "two loads of one key at once");
        let run = key.runs.fetch_add(1, SeqCst);
        if (at, run) == (0, 0) {
            // Whatever the machine's load, some wait for this one and some are not willing to.
            while self.cache.stats().waits == 0 || self.cache.stats().given_up == 0 {
                thread::yield_now();
            }
        }
        match chance(n ^ 0x51) % 8 {
            0 => thread::sleep(Duration::from_micros(500)),
            1 => thread::yield_now(),
            _ => {}
        }
        let outcome = match chance(n ^ 0xfa11) % 4 {
            0 => Err(()),
            1 => Ok(None),
            _ if run < 4 => Err(()),
            _ => Ok(Some((at, key.fills.fetch_add(1, SeqCst)))),
        };
        key.running.fetch_sub(1, SeqCst);
        match outcome {
            Ok(None) => resume_unwind(Box::new(Thrown)),
            Ok(Some(value)) => Ok(value),
            Err(()) => Err(()),
        }
    }

    fn ask(&self, n: usize) {
        let at = chance(n) % KEYS;
        let name = key(&at.to_string());
        let ask = Ask::new(name);
        let ask = match chance(n ^ 0xca11) % 8 {
            0 => ask.within(Duration::ZERO),
            1 => ask.within(Duration::from_micros(100)),
            2 | 3 => {
                let cancel = Cancel::new();
                self.to_cancel.lock().expect("no panic").push(cancel.clone());
                ask.until(&cancel)
            }
            _ => ask,
        };
        TOLD.with_borrow_mut(Vec::clear);
        let mut ran = false;
        let load = || {
            ran = true;
            self.load(at, n)
        };
        let came = catch_unwind(AssertUnwindSafe(|| self.cache.get_or_load(ask, |_| 1, load)));
        let told = TOLD.take();
        let mut sum = self.came.lock().expect("no panic");
        sum.waits += usize::from(told.contains(&EventKind::Waiting));
        let what = match came {
            Ok(Ok(value)) => {
                assert_eq!(value.0, at);
                let again = self.cache.get::<(usize, usize)>(&name).expect("a pair").expect("it is held");
                assert!(Arc::ptr_eq(&value, &again), "what is held stays the one copy");
                match (ran, told.contains(&EventKind::Hit), told.contains(&EventKind::Waiting)) {
                    (true, false, _) => &mut sum.loaded,
                    (false, true, false) => &mut sum.there,
                    (false, false, true) => &mut sum.waited_for,
                    _ => panic!("more than one of all: {told:?}"),
                }
            }
            Ok(Err(LoadError::Factory(()))) => &mut sum.failed,
            Ok(Err(LoadError::Lookup(LookupError::TimedOut { .. } | LookupError::Cancelled { .. }))) => {
                assert!(!ran, "who loads is not interrupted");
                &mut sum.given_up
            }
            Ok(Err(other)) => panic!("{other:?}"),
            Err(cause) if cause.is::<Thrown>() => &mut sum.failed,
            Err(cause) => resume_unwind(cause),
        };
        *what += 1;
    }

    fn hammer(&self) {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(SeqCst) {
                    let to_cancel = std::mem::take(&mut *self.to_cancel.lock().expect("no panic"));
                    to_cancel.iter().for_each(Cancel::cancel);
                    thread::yield_now();
                }
            });
            let ask_on = || {
                loop {
                    match self.next.fetch_add(1, SeqCst) {
                        n if n < ASKS => self.ask(n),
                        _ => break,
                    }
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask_on)).collect();
            let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            ended.store(true, SeqCst);
            for end in ends {
                end.unwrap_or_else(|cause| resume_unwind(cause));
            }
        });
    }

    fn all_adds_up(&self) {
        let (stats, came) = (self.cache.stats(), self.came.lock().expect("no panic"));
        let sum = |count: fn(&PerKey) -> &AtomicUsize| self.keys.iter().map(|key| count(key).load(SeqCst)).sum();
        let (runs, fills): (usize, usize) = (sum(|key| &key.runs), sum(|key| &key.fills));
        assert_eq!(came.there + came.loaded + came.waited_for + came.failed + came.given_up, ASKS, "{came:?}");
        assert_eq!((came.loaded, came.failed), (fills, runs - fills), "every fill is one call's own");
        // What this test asked again for what it held was there, too.
        let again = came.there + came.loaded + came.waited_for;
        assert_eq!(stats.hits as usize, came.there + again);
        assert_eq!((stats.misses as usize, stats.failures as usize), (runs, runs - fills));
        assert_eq!((stats.waits as usize, stats.given_up as usize), (came.waits, came.given_up));
        assert_eq!(fills as u64, stats.entries + stats.evictions, "what was loaded is there or was evicted");
        assert_eq!(stats.bytes, stats.entries);
        assert!(came.waits > 0 && came.failed >= 4 * KEYS && came.given_up > 0, "the mix was one: {came:?}");
    }
}

fn hammered(budget: Option<u64>) -> Hammer {
    let hammer = Hammer::new(budget);
    let subscription = hammer.cache.subscribe(|event| {
        if !matches!(event.kind, EventKind::Evicted { .. }) {
            TOLD.with_borrow_mut(|told| told.push(event.kind));
        }
    });
    hammer.hammer();
    drop(subscription);
    hammer.all_adds_up();
    hammer
}

#[test]
fn each_key_is_loaded_once_however_many_ask() {
    watched(|| {
        let hammer = hammered(None);
        assert!(hammer.keys.iter().all(|key| key.fills.load(SeqCst) == 1), "nothing goes, so one fill a key");
    });
}

#[test]
fn each_key_is_loaded_once_for_each_time_it_was_evicted() {
    watched(|| {
        let hammer = hammered(Some(2));
        hammer.cache.trim();
        let stats = hammer.cache.stats();
        assert!(stats.evictions > 0 && stats.bytes <= 2, "{stats:?}");
        hammer.cache.clear();
        assert_eq!((hammer.cache.stats().entries, hammer.cache.stats().bytes), (0, 0));
    });
}
