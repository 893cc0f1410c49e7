//! What a copy takes: measured links and host tiers turned into nanoseconds.

use crate::{DeviceKind, Group, HostTier, Machine};

/// The ring of page-locked buffers that staged groups and loads go through: 3 × 64 MiB.
pub(crate) const RING: u64 = 3 * (64 << 20);

/// The links of one machine, as a plan uses them. Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    h2d: u64,
    /// From a mapping into page-locked memory; `None`: the device is host memory, which is filled at `h2d`.
    staging: Option<u64>,
    /// The mapping's file has to be read again each time.
    disk: Option<u64>,
    fixed_ns: u64,
}

/// Nanoseconds on the staging lane (zero: not staged) and on the copy lane.
pub(crate) type Times = (u64, u64);

impl Rates {
    /// `None`: no link was measured, or there is no device. `weights` are the stored bytes of all components.
    pub(crate) fn of(machine: &Machine, weights: u128) -> Option<Self> {
        machine.vram_free?;
        let links = machine.links.filter(|links| links.h2d > 0)?;
        let staging = (machine.device == DeviceKind::Discrete).then(|| links.staging.unwrap_or(links.h2d.div_ceil(2)));
        let from_disk = machine.ram_available > 0 && weights > machine.ram_available.into();
        Some(Self { h2d: links.h2d, staging, disk: links.disk.filter(|_| from_disk), fixed_ns: links.copy_fixed_ns })
    }

    /// Whether host tiers differ in speed.
    pub(crate) fn has_tiers(&self) -> bool {
        self.staging.is_some()
    }

    /// A streamed group's copy from its tier.
    pub(crate) fn stream(&self, group: &Group, tier: HostTier) -> Times {
        let bytes = group.bytes();
        let fixed = self.fixed_ns.saturating_mul(group.slabs.len() as u64);
        let link = nanoseconds(bytes.into(), self.h2d).saturating_add(fixed);
        let Some(staging) = self.staging else { return (0, link.max(self.read(group.host_bytes.into()))) };
        let fill = nanoseconds(bytes.into(), staging);
        let from_file = fill.max(self.read(group.host_bytes.into()));
        match tier {
            HostTier::PageLocked => (0, link),
            HostTier::Staged => (from_file, link),
            // The driver stages on the copy lane, piece by piece.
            HostTier::Mapped => (0, from_file.saturating_add(link)),
            HostTier::Pageable => (0, fill.saturating_add(link)),
        }
    }

    /// Loading `bytes` (`stored` in the file) in `copies`: staging and link run beside each other.
    pub(crate) fn load(&self, bytes: u128, stored: u128, copies: u64) -> u64 {
        let link = nanoseconds(bytes, self.h2d);
        let fill = self.staging.map_or(0, |staging| nanoseconds(bytes, staging));
        link.max(fill).max(self.read(stored)).saturating_add(self.fixed_ns.saturating_mul(copies))
    }

    /// The least that streaming `bytes` can take, of which `unlocked` cannot be page-locked.
    pub(crate) fn least(&self, bytes: u128, unlocked: u128) -> u64 {
        let fill = self.staging.map_or(0, |staging| nanoseconds(unlocked, staging));
        nanoseconds(bytes, self.h2d).max(fill)
    }

    /// The most that can cross the link in so many nanoseconds.
    pub(crate) fn bytes_in(&self, ns: u64) -> u128 {
        (u128::from(ns) * u128::from(self.h2d)).div_ceil(1_000_000_000)
    }

    fn read(&self, stored: u128) -> u64 {
        self.disk.map_or(0, |disk| nanoseconds(stored, disk))
    }
}

/// Rounded up; what never ends takes `u64::MAX`.
fn nanoseconds(bytes: u128, rate: u64) -> u64 {
    let time = match u64::try_from(bytes) {
        // The usual case without a division of 128 bits.
        Ok(bytes) if rate > 0 && bytes < u64::MAX / 1_000_000_000 => (bytes * 1_000_000_000).div_ceil(rate).into(),
        _ => bytes.saturating_mul(1_000_000_000).div_ceil(u128::from(rate).max(1)),
    };
    if rate == 0 && bytes > 0 { u64::MAX } else { u64::try_from(time).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Links;

    #[test]
    fn nanoseconds_round_up_and_never_overflow() {
        assert_eq!(nanoseconds(1, 1), 1_000_000_000);
        assert_eq!(nanoseconds(1, 3_000_000_000), 1);
        assert_eq!(nanoseconds(25_000_000_000, 25_000_000_000), 1_000_000_000);
        assert_eq!(nanoseconds(u128::MAX, 1), u64::MAX);
        assert_eq!(nanoseconds(u64::MAX.into(), u64::MAX), 1_000_000_000);
        assert_eq!((nanoseconds(0, 0), nanoseconds(1, 0)), (0, u64::MAX));
    }

    #[test]
    fn tiers_from_fast_to_slow() {
        let links = Links { h2d: 1000, staging: Some(500), disk: Some(100), copy_fixed_ns: 7 };
        let machine = Machine { vram_free: Some(1), ram_available: 10, links: Some(links), ..Machine::default() };
        let (group, second) = (Group::of_bytes(1000), 1_000_000_000);
        let rates = Rates::of(&machine, 10).unwrap();
        assert_eq!(rates.stream(&group, HostTier::PageLocked), (0, second + 7));
        assert_eq!(rates.stream(&group, HostTier::Staged), (2 * second, second + 7));
        assert_eq!(rates.stream(&group, HostTier::Mapped), (0, 3 * second + 7));
        let disk = Rates::of(&machine, 11).unwrap();
        assert_eq!(disk.stream(&group, HostTier::Staged), (10 * second, second + 7));
        assert_eq!(disk.load(1000, 2000, 2), 20 * second + 14);
        let host = Machine { device: DeviceKind::Host, ..machine };
        assert_eq!(Rates::of(&host, 10).unwrap().stream(&group, HostTier::Mapped), (0, second + 7));
        assert!(Rates::of(&Machine { vram_free: None, ..host }, 0).is_none());
    }
}
