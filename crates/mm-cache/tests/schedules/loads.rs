//! What every scenario asks, and what has to be true of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::digest::Key;
use crate::key::component_hash;
use crate::load::{Ask, LoadCache, LoadError, LookupError};
use shuttle::thread;

pub(crate) fn key(name: &str) -> Key {
    component_hash(name)
}

/// What a factory does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Value,
    Error,
    Panic,
}

/// What a factory panics with.
struct Thrown;

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Asked {
    Value(Arc<usize>),
    /// Its own factory failed.
    Failed,
    Panicked,
    Cancelled,
}

impl Asked {
    pub(crate) fn value(&self) -> &Arc<usize> {
        let Self::Value(value) = self else { panic!("no value: {self:?}") };
        value
    }
}

/// Runs factories and watches that loads of one key do not overlap.
#[derive(Default)]
pub(crate) struct Loads {
    asks: AtomicUsize,
    running: AtomicUsize,
    runs: AtomicUsize,
    fills: AtomicUsize,
    may_overlap: bool,
}

impl Loads {
    /// For scenarios with several keys, or in which a load is forgotten while it runs.
    pub(crate) fn overlapping() -> Self {
        Self { may_overlap: true, ..Self::default() }
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(SeqCst)
    }

    pub(crate) fn fills(&self) -> usize {
        self.fills.load(SeqCst)
    }

    /// Asks with a factory that comes to `outcome`.
    pub(crate) fn ask(&self, cache: &LoadCache, ask: impl Into<Ask>, outcome: Outcome) -> Asked {
        self.asks.fetch_add(1, SeqCst);
        let factory = || {
            let others = self.running.fetch_add(1, SeqCst);
            assert!(self.may_overlap || others == 0, "two loads of one key at once");
            let run = self.runs.fetch_add(1, SeqCst);
            thread::yield_now();
            self.running.fetch_sub(1, SeqCst);
            match outcome {
                Outcome::Value => {
                    self.fills.fetch_add(1, SeqCst);
                    Ok(run)
                }
                Outcome::Error => Err(()),
                // No hook: a schedule is printed where a test fails, not for this.
                Outcome::Panic => resume_unwind(Box::new(Thrown)),
            }
        };
        match catch_unwind(AssertUnwindSafe(|| cache.get_or_load(ask, |_| 1, factory))) {
            Ok(Ok(value)) => Asked::Value(value),
            Ok(Err(LoadError::Factory(()))) => Asked::Failed,
            Ok(Err(LoadError::Lookup(LookupError::Cancelled { .. }))) => Asked::Cancelled,
            Ok(Err(other)) => panic!("{other:?}"),
            Err(cause) if cause.is::<Thrown>() => Asked::Panicked,
            Err(cause) => resume_unwind(cause),
        }
    }
}

/// Everything adds up once all has ended, and nothing is left once it is cleared.
pub(crate) fn account(cache: &LoadCache, loads: &Loads, came: &[Asked]) {
    let stats = cache.stats();
    assert_eq!(stats.misses as usize, loads.runs(), "{stats:?}");
    assert_eq!(stats.failures as usize, loads.runs() - loads.fills(), "{stats:?}");
    assert_eq!(stats.given_up as usize, came.iter().filter(|came| matches!(came, Asked::Cancelled)).count());
    // Not always equal: a call may wait and then load, or wait and give up.
    let counted = stats.hits + stats.misses + stats.waits + stats.given_up;
    assert!(counted >= loads.asks.load(SeqCst) as u64, "a call is counted nowhere: {stats:?}");
    cache.clear();
    nothing_is_left(cache);
}

/// No bytes are counted, and no room is kept for loads that have ended.
pub(crate) fn nothing_is_left(cache: &LoadCache) {
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.bytes), (0, 0));
    cache.set_budget(Some(1));
    cache.set(key("of the whole budget"), Arc::new(0usize), 1);
    cache.trim();
    assert_eq!(cache.stats().entries, 1, "a reservation is left");
}
