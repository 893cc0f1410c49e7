//! What is asked for, and how long to wait for it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::entry::Entry;
use crate::digest::Key;
use crate::sync::{AtomicBool, Mutex, Relaxed};

/// A key, and how to ask for it. A [`Key`] alone asks with no name and waits as long as it takes.
#[derive(Clone, Debug)]
pub struct Ask {
    pub(super) key: Key,
    pub(super) name: Option<Arc<str>>,
    timeout: Option<Duration>,
    cancel: Option<Cancel>,
}

impl Ask {
    /// Asks for `key`.
    pub const fn new(key: Key) -> Self {
        Self { key, name: None, timeout: None, cancel: None }
    }

    /// What events call it: `text_encoder`. The first to ask names an entry.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Waits at most so long for another thread's load; a load of the caller's own is not bounded.
    #[must_use]
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Neither waits nor begins to load once `cancel` says so.
    #[must_use]
    pub fn until(self, cancel: &Cancel) -> Self {
        Self { cancel: Some(cancel.clone()), ..self }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }
}

impl From<Key> for Ask {
    fn from(key: Key) -> Self {
        Self::new(key)
    }
}

/// Ends waits from another thread. Clones are one and the same.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Cancelling>);

#[derive(Default)]
struct Cancelling {
    cancelled: AtomicBool,
    waiting: Mutex<Vec<Weak<Entry>>>,
}

impl Cancel {
    /// Nothing is cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every wait that was asked for with this, also those to come.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Relaxed);
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        waiting.iter().filter_map(Weak::upgrade).for_each(|entry| entry.nudge());
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Relaxed)
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

/// One call's wait, whatever number of loads it meets: when it has to end, and whether it was told of.
pub(super) struct Wait<'a> {
    deadline: Option<Instant>,
    ask: &'a Ask,
    pub(super) told: bool,
}

impl<'a> Wait<'a> {
    pub(super) fn starting(ask: &'a Ask) -> Self {
        // A deadline that no clock reaches is none.
        let deadline = ask.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { deadline, ask, told: false }
    }

    /// Calls `tell` the first time.
    pub(super) fn tell(&mut self, tell: impl FnOnce()) {
        if !std::mem::replace(&mut self.told, true) {
            tell();
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.ask.is_cancelled()
    }

    pub(super) fn is_over(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }

    pub(super) fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// From now on cancelling wakes who waits at `entry`.
    pub(super) fn listen(&self, entry: &Arc<Entry>) {
        if let Some(cancel) = &self.ask.cancel {
            cancel.0.waiting.lock().push(Arc::downgrade(entry));
        }
    }

    pub(super) fn leave(&self, entry: &Arc<Entry>) {
        if let Some(cancel) = &self.ask.cancel {
            let mut waiting = cancel.0.waiting.lock();
            if let Some(at) = waiting.iter().position(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(entry))) {
                waiting.swap_remove(at);
            }
        }
    }
}
