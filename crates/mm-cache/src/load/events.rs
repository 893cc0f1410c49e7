//! Who is told what the cache does.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::digest::Key;
use crate::sync::{AtomicBool, Mutex, Relaxed};

/// Something that happened to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Key,
    /// What the first to ask called it.
    pub name: Option<Arc<str>>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// Asked for and there.
    Hit,
    /// A thread waits for another's load.
    Waiting,
    /// A load begins.
    Loading,
    /// A load ended well.
    Loaded {
        /// What the value weighs.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// A load failed or panicked.
    Failed,
    /// Dropped to keep within the budget.
    Evicted {
        /// What it weighed.
        bytes: u64,
    },
    /// Removed or replaced.
    Removed,
}

type Listener = dyn Fn(&Event) + Send + Sync;

/// Hears events until it is dropped.
#[must_use = "dropping it ends the subscription"]
pub struct Subscription {
    listener: Arc<Listener>,
    events: Weak<Events>,
}

#[derive(Default)]
pub(super) struct Events {
    any: AtomicBool,
    listeners: Mutex<Vec<Arc<Listener>>>,
}

impl Events {
    pub(super) fn subscribe(self: &Arc<Self>, listener: Arc<Listener>) -> Subscription {
        let mut listeners = self.listeners.lock();
        listeners.push(listener.clone());
        self.any.store(true, Relaxed);
        Subscription { listener, events: Arc::downgrade(self) }
    }

    /// Called with no lock held: a listener may use the cache.
    pub(super) fn tell(&self, key: Key, name: &Option<Arc<str>>, kind: EventKind) {
        if !self.any.load(Relaxed) {
            return;
        }
        let listeners = self.listeners.lock().clone();
        let event = Event { key, name: name.clone(), kind };
        for listener in listeners {
            // A listener's panic is its own affair: a load that went well must not fail by it.
            let _ = catch_unwind(AssertUnwindSafe(|| listener(&event)));
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(events) = self.events.upgrade() {
            let mut listeners = events.listeners.lock();
            listeners.retain(|other| !Arc::ptr_eq(other, &self.listener));
            events.any.store(!listeners.is_empty(), Relaxed);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
