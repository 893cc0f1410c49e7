//! What a value weighs: the memory it takes, and the time that loading it again would take.

use std::time::Duration;

/// What a value weighs. From a plain number of bytes, the time to load it again is what loading it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    pub(super) bytes: u64,
    pub(super) reload: Option<Duration>,
}

impl Weight {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self { bytes, reload: None }
    }

    /// Loading it again would take so long, whatever it took this time.
    #[must_use]
    pub const fn reload_in(self, reload: Duration) -> Self {
        Self { reload: Some(reload), ..self }
    }

    /// Nanoseconds to load it again, of which it `took` so many now.
    pub(super) fn reload_ns(self, took: u64) -> u64 {
        self.reload.map_or(took, |stated| u64::try_from(stated.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<u64> for Weight {
    fn from(bytes: u64) -> Self {
        Self::bytes(bytes)
    }
}
