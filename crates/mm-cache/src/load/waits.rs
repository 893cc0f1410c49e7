//! Which thread waits for which load, to refuse a wait that would close a cycle.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::Entry;
use crate::sync::{Mutex, MutexGuard, ThreadId, this_thread};

#[derive(Default)]
pub(super) struct Waits(Mutex<Noted>);

/// Where each thread waits. A thread that waits no more may stand here for a moment longer: whether it still waits is for the
/// entry to say.
pub(super) type Noted = HashMap<ThreadId, Arc<Entry>>;

impl Waits {
    /// The notes, for this thread to begin to wait for `entry` before they are let go. `None`: it would wait for itself.
    ///
    /// A cycle always closes with a wait, never with a thread taking a load over, as that thread waits for nothing
    /// then. So checking here, under one lock for all threads, misses none.
    pub(super) fn enter(&self, entry: &Entry) -> Option<MutexGuard<'_, Noted>> {
        let me = this_thread();
        let noted = self.0.lock();
        let mut runner = entry.runner();
        while let Some(thread) = runner {
            if thread == me {
                return None;
            }
            runner = noted.get(&thread).and_then(|next| next.runner_awaited_by(thread));
        }
        Some(noted)
    }

    pub(super) fn leave(&self) {
        self.0.lock().remove(&this_thread());
    }
}
