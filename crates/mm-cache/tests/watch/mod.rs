//! What tests of the load-once map share.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mm_cache::{Key, LoadCache, component_hash};

/// Fails instead of hanging the test run; the bound is far beyond what any test here needs.
pub(crate) fn watched(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let runner = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a waiter was lost: the test never ended"),
        _ => {
            if let Err(cause) = runner.join() {
                std::panic::resume_unwind(cause);
            }
        }
    }
}

pub(crate) fn key(name: &str) -> Key {
    component_hash(name)
}

/// Every value is one byte.
pub(crate) fn weigh<T>(_: &T) -> u64 {
    1
}

/// Returns once `count` calls wait in the cache, so that a test knows they all share one load.
pub(crate) fn until_waiting(cache: &LoadCache, count: u64) {
    while cache.stats().waits < count {
        thread::yield_now();
    }
}
