//! Which thread waits for which load, to refuse a wait that would close a cycle.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::Entry;
use crate::sync::{Mutex, ThreadId, this_thread};

#[derive(Default)]
pub(super) struct Waits(Mutex<HashMap<ThreadId, Arc<Entry>>>);

impl Waits {
    /// Notes that this thread is about to wait for `entry`. False, and not noted, where that would close a cycle.
    ///
    /// A cycle always closes with a wait, never with a thread taking a load over, as that thread waits for nothing
    /// then. So checking here, under one lock for all threads, misses none.
    pub(super) fn enter(&self, entry: &Arc<Entry>) -> bool {
        let me = this_thread();
        let mut waits = self.0.lock();
        let mut runner = entry.runner();
        while let Some(thread) = runner {
            if thread == me {
                return false;
            }
            // A thread that has just taken over the load it waited for is still noted as waiting for it: no wait.
            runner = waits.get(&thread).and_then(|next| next.runner()).filter(|&next| next != thread);
        }
        waits.insert(me, entry.clone());
        true
    }

    pub(super) fn leave(&self) {
        self.0.lock().remove(&this_thread());
    }
}
