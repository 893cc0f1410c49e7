//! What a cache has done and holds.

/// What a cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Asked for and there; what was waited for is not counted here.
    pub hits: u64,
    /// Loads begun, those that failed included.
    pub misses: u64,
    /// Loads that failed or panicked.
    pub failures: u64,
    /// Calls that waited for another thread's load.
    pub waits: u64,
    /// Calls that ended by a timeout or by cancelling, with or without a wait.
    pub given_up: u64,
    /// Entries dropped to keep within the budget.
    pub evictions: u64,
    /// Entries held now.
    pub entries: u64,
    /// What those entries weigh, bytes; saturating.
    pub bytes: u64,
}

/// What is counted outside the entries, off the path of a hit.
#[derive(Default)]
pub(super) struct Totals {
    /// `None`: no bound.
    pub(super) budget: Option<u64>,
    pub(super) bytes: u128,
    /// Room that loads under way have asked for.
    pub(super) reserved: u128,
    /// Of entries that are gone.
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) failures: u64,
    pub(super) waits: u64,
    pub(super) given_up: u64,
    pub(super) evictions: u64,
}

impl Totals {
    /// Bytes beyond the budget.
    pub(super) fn excess(&self) -> u128 {
        let budget = self.budget.map_or(u128::MAX, u128::from);
        self.bytes.saturating_add(self.reserved).saturating_sub(budget)
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits,
            misses: self.misses,
            failures: self.failures,
            waits: self.waits,
            given_up: self.given_up,
            evictions: self.evictions,
            entries: 0,
            bytes: u64::try_from(self.bytes).unwrap_or(u64::MAX),
        }
    }
}
