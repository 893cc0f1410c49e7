//! Helpers for notes: exact figures for programs, readable ones for people.

use alloc::{format, string::String};

/// A figure for a note; what exceeds 64 bits is capped.
pub(crate) fn capped(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Bytes for people, to a hundredth of the unit: `12.30 GiB`.
pub(crate) fn size(bytes: impl Into<u128>) -> String {
    let bytes = bytes.into();
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let hundredths = bytes % unit * 100 / unit;
            return format!("{}.{hundredths:02} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

/// A factor in permille for people: `1.5`.
pub(crate) fn factor(permille: u64) -> String {
    let text = format!("{}.{:03}", permille / 1000, permille % 1000);
    String::from(text.trim_end_matches('0').trim_end_matches('.'))
}

/// Nanoseconds for people, to a hundredth of the unit: `1.25 s`.
pub(crate) fn time(ns: u64) -> String {
    for (unit, name) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")] {
        if ns >= unit {
            let hundredths = ns % unit / (unit / 100);
            return format!("{}.{hundredths:02} {name}", ns / unit);
        }
    }
    format!("{ns} ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        assert_eq!(size(0u64), "0 B");
        assert_eq!(size(1023u64), "1023 B");
        assert_eq!(size(1u64 << 30), "1.00 GiB");
        assert_eq!(size((5u64 << 30) / 4), "1.25 GiB");
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(1_250_000), "1.25 ms");
        assert_eq!(time(61_050_000_000), "61.05 s");
        assert_eq!(factor(1500), "1.5");
        assert_eq!(factor(10_000), "10");
        assert_eq!(factor(850), "0.85");
    }
}
