//! What tells one file, and one state of a file, from another.

use std::fs::Metadata;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Stamps of ctime that are whole multiples of this tell of a file system that is too coarse: FAT (2 s), ext3 and HFS+
/// (1 s), exFAT (10 ms). Elsewhere one file in ten million has such a stamp by chance, and is hashed each time.
const COARSE_NS: i128 = 10_000_000;

/// What makes two opens the same unchanged file. Paths play no part: links share one open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified_ns: i128,
    pub(crate) changed_ns: i128,
}

impl Identity {
    #[cfg(unix)]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Elsewhere the standard library names no inode.
    #[cfg(not(unix))]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let modified_ns = since.and_then(|age| i128::try_from(age.as_nanos()).ok()).unwrap_or(0);
        Self { device: 0, inode: 0, size: metadata.len(), modified_ns, changed_ns: 0 }
    }

    /// Whether it tells one file from another; where not, each open stands alone.
    pub(crate) const fn is_known(&self) -> bool {
        self.inode != 0
    }

    /// Whether these stamps, looked at at `moment`, stand for these bytes for good: whatever is written from then on
    /// leaves another ctime.
    ///
    /// Within one tick of the file system's clock, two writes leave the same stamps, so what was changed less than
    /// `margin` ago may change again unseen; git calls such files racily clean. The margin covers the tick (at most 10
    /// ms where ctime is fine enough for us) and what the clock of a file server lags behind. A stamp in the future is
    /// one of a clock that was set back, or of a server that is ahead: the same moment comes again, so it has to pass
    /// first.
    ///
    /// A coarse ctime is never believed. Such file systems keep no ctime but give out mtime as one, which anyone can set
    /// back; and make up inode numbers, so that another file may come by this one's after mounting again.
    pub(crate) fn is_settled(&self, moment: SystemTime, margin: Duration) -> bool {
        let Ok(moment) = moment.duration_since(UNIX_EPOCH) else { return false };
        // Both fit: they are at most 2^64 seconds.
        let (moment, margin) = (moment.as_nanos() as i128, margin.as_nanos() as i128);
        let is_old = |stamp: i128| moment.saturating_sub(stamp) >= margin;
        self.is_known() && self.changed_ns % COARSE_NS != 0 && is_old(self.changed_ns) && is_old(self.modified_ns)
    }

    /// Device, inode, size, mtime and ctime as a database holds them; `None` where one of them does not fit.
    pub(crate) fn numbers(&self) -> Option<[i64; 5]> {
        let size = i64::try_from(self.size).ok()?;
        let modified_ns = i64::try_from(self.modified_ns).ok()?;
        let changed_ns = i64::try_from(self.changed_ns).ok()?;
        Some([self.device.cast_signed(), self.inode.cast_signed(), size, modified_ns, changed_ns])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;

    fn stamped(modified_ns: i128, changed_ns: i128) -> Identity {
        Identity { device: 1, inode: 2, size: 3, modified_ns, changed_ns }
    }

    fn is_settled(identity: Identity) -> bool {
        identity.is_settled(UNIX_EPOCH + Duration::from_secs(100), Duration::from_secs(2))
    }

    #[test]
    fn only_stamps_that_no_later_write_can_leave_again_are_settled() {
        let old = 98 * SECOND - 1;
        assert!(is_settled(stamped(old, old)));
        assert!(is_settled(stamped(0, old)), "a restored mtime may be of any age");
        assert!(is_settled(stamped(-5 * SECOND, old)), "and lie before 1970");
        for young in [98 * SECOND + 1, 100 * SECOND, 4_000 * SECOND + 1, i128::MAX] {
            assert!(!is_settled(stamped(old, young)), "ctime {young}");
            assert!(!is_settled(stamped(young, old)), "mtime {young}");
        }
        for coarse in [0, 90 * SECOND, 90 * SECOND + COARSE_NS] {
            assert!(!is_settled(stamped(old, coarse)), "ctime {coarse}");
        }
        assert!(!is_settled(Identity { inode: 0, ..stamped(old, old) }));
        let before_1970 = UNIX_EPOCH - Duration::from_secs(1);
        assert!(!stamped(old, old).is_settled(before_1970, Duration::ZERO));
    }

    #[test]
    fn what_does_not_fit_has_no_numbers() {
        let fits = Identity { device: u64::MAX, ..stamped(-1, 5) };
        assert_eq!(fits.numbers(), Some([-1, 2, 3, -1, 5]));
        assert_eq!(Identity { size: u64::MAX, ..fits }.numbers(), None);
        assert_eq!(stamped(i128::MAX, 0).numbers(), None);
        assert_eq!(stamped(0, i128::MIN).numbers(), None);
    }
}
