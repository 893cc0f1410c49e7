//! What goes when there is too much.

use std::sync::Arc;

use super::LoadCache;
use super::entry::{Entry, Left, Ready, Value};
use super::events::EventKind;
use crate::sync::now;

/// Loads shorter than this are equally cheap: differences between them are noise. Nanoseconds.
const CHEAP: u64 = 1_000_000;

impl LoadCache {
    /// Drops what nobody holds, least valuable first, until the rest is within the budget.
    ///
    /// The value of an entry is what losing it is expected to cost: the time to load it again, which matters the less the
    /// longer ago it was used, for each byte that its leaving frees.
    pub fn trim(&self) {
        if self.totals.lock().excess() == 0 {
            return;
        }
        let mut leaving = Vec::new();
        // One at a time, so that two threads do not both make room for the same excess.
        let lock = self.evicting.lock();
        // One time for all of them, or those looked at later would seem older.
        let now = now();
        let idle = |entry: Arc<Entry>| Some((entry.idle(|ready| Candidate::new(ready, now))?, entry));
        let mut candidates: Vec<_> = self.directory.entries().into_iter().filter_map(idle).collect();
        candidates.sort_by(|(a, _), (b, _)| a.value.total_cmp(&b.value).then(a.used.cmp(&b.used)));
        for (candidate, entry) in candidates {
            if self.totals.lock().excess() == 0 {
                break;
            }
            // Weightless, it would make no room.
            if candidate.bytes > 0
                && let Some(left) = entry.evict(|ready| ready.used == candidate.used)
            {
                leaving.push(self.evicted(&entry, left));
            }
        }
        // Values are dropped with no lock held: freeing gigabytes takes a while, and a drop may use this cache.
        drop(lock);
        for (entry, bytes, value) in leaving {
            drop(value);
            self.events.tell(entry.key, &entry.name, EventKind::Evicted { bytes });
        }
    }

    /// Drops what is under `key` if nobody holds it and it is not pinned. True: it was there and is gone.
    pub fn remove_idle(&self, key: &crate::digest::Key) -> bool {
        let Some(entry) = self.directory.read(key, Arc::clone) else { return false };
        let Some(left) = entry.evict(|_| true) else { return false };
        self.leave(&entry, left);
        true
    }

    fn evicted(&self, entry: &Arc<Entry>, left: Left) -> (Arc<Entry>, u64, Option<Value>) {
        let bytes = left.bytes.unwrap_or(0);
        self.totals.lock().evictions += 1;
        self.directory.remove_exactly(&entry.key, entry);
        (entry.clone(), bytes, self.account(left))
    }
}

struct Candidate {
    value: f64,
    bytes: u64,
    used: u64,
}

impl Candidate {
    fn new(ready: &Ready, now: u64) -> Self {
        let age = now.saturating_sub(ready.used).saturating_add(1);
        let value = ready.reload.max(CHEAP) as f64 / (ready.bytes as f64 * age as f64);
        Self { value, bytes: ready.bytes, used: ready.used }
    }
}
