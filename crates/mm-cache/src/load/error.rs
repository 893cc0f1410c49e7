//! Why there is no value to give.

use crate::digest::Key;

/// The value under a key has another type than was asked for: two callers use one identifier for different things.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cache entry {key} holds a {found}, not a {expected}: use one identifier per kind of value")]
pub struct WrongType {
    /// The key.
    pub key: Key,
    /// The type asked for.
    pub expected: &'static str,
    /// The type that is there.
    pub found: &'static str,
}

/// Why nothing can be had or loaded under a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The key holds another type.
    #[error(transparent)]
    WrongType(#[from] WrongType),
    /// The load asked for the very entry it is to load, directly or through other threads' loads.
    #[error("loading {key} waits for itself: its factory must not ask for the entry that it loads")]
    Cycle {
        /// The key.
        key: Key,
    },
    /// Another thread still loads it; ask again, or for longer.
    #[error("{key} was still being loaded by another thread when the time to wait for it was over")]
    TimedOut {
        /// The key.
        key: Key,
    },
    /// The wait was cancelled.
    #[error("waiting for {key} was cancelled")]
    Cancelled {
        /// The key.
        key: Key,
    },
}

/// Why [`LoadCache::get_or_load`](super::LoadCache::get_or_load) has no value to give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// This caller's factory failed; the next call runs a factory again.
    #[error("loading failed: {0}")]
    Factory(#[source] E),
    /// It could be neither had nor loaded.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}
