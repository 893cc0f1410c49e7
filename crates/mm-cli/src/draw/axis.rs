//! Axes with figures for people.

use super::sheet::{Anchor, LEFT, RIGHT, Sheet};

/// Time from left to right. Nanoseconds to pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeAxis {
    start: u64,
    length: u64,
}

impl TimeAxis {
    pub(super) fn new(start: u64, end: u64) -> Self {
        Self { start, length: end.saturating_sub(start).max(1) }
    }

    /// Where a time is; what lies outside is at the edge.
    pub(super) fn x(self, at: u64) -> f64 {
        let share = at.saturating_sub(self.start) as f64 / self.length as f64;
        LEFT + share.min(1.0) * (RIGHT - LEFT)
    }

    /// Lines from `top` to `bottom`, and their times below.
    pub(super) fn draw(self, sheet: &mut Sheet, top: f64, bottom: f64) {
        let unit = unit(self.length, &[(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns")]);
        for (value, text) in ticks(self.length, unit, 10) {
            let x = LEFT + value / self.length as f64 * (RIGHT - LEFT);
            sheet.line("grid", (x, top), (x, bottom + 4.0));
            sheet.text("tick", (x, bottom + 17.0), Anchor::Middle, &text);
        }
    }
}

/// Bytes from bottom to top.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByteAxis {
    pub(super) most: u64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl ByteAxis {
    pub(super) fn y(self, bytes: u64) -> f64 {
        self.bottom - (bytes as f64 / self.most.max(1) as f64).min(1.0) * (self.bottom - self.top)
    }

    /// Lines, and their bytes to the left.
    pub(super) fn draw(self, sheet: &mut Sheet) {
        let unit = unit(self.most, &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")]);
        for (value, text) in ticks(self.most, unit, 4) {
            let y = self.bottom - value / self.most.max(1) as f64 * (self.bottom - self.top);
            sheet.line("grid", (LEFT, y), (RIGHT, y));
            sheet.text("tick", (LEFT - 8.0, y + 4.0), Anchor::End, &text);
        }
    }
}

/// The largest unit of which there is one at least.
fn unit(most: u64, units: &[(u64, &'static str)]) -> (u64, &'static str) {
    units.iter().find(|(size, _)| most >= *size).or(units.last()).copied().unwrap_or((1, ""))
}

/// At most `wanted` + 1 round values from zero to `most`, with their texts.
fn ticks(most: u64, (unit, name): (u64, &str), wanted: u32) -> Vec<(f64, String)> {
    let most = most as f64 / unit as f64;
    let least = most / f64::from(wanted);
    let power = 10f64.powi(least.log10().floor() as i32);
    let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= least * 0.999_999);
    // Units have no fractions.
    let step = step.unwrap_or(10.0 * power).max(if unit == 1 { 1.0 } else { 0.0 });
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let ticks = (0..=wanted).map(|i| f64::from(i) * step).take_while(|value| *value <= most * 1.000_001);
    ticks.map(|value| (value * unit as f64, format!("{value:.decimals$} {name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let texts =
            |most, unit, wanted| ticks(most, unit, wanted).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(2_500, (1_000, "µs"), 5), ["0.0 µs", "0.5 µs", "1.0 µs", "1.5 µs", "2.0 µs", "2.5 µs"]);
        assert_eq!(texts(24 << 30, (1 << 30, "GiB"), 4), ["0 GiB", "10 GiB", "20 GiB"]);
        assert_eq!(texts(3, (1, "ns"), 10), ["0 ns", "1 ns", "2 ns", "3 ns"]);
        for most in [1, 7, 999, 1_001, 1 << 40, u64::MAX] {
            let count = texts(most, unit(most, &[(1_000, "µs"), (1, "ns")]), 10).len();
            assert!((2..=11).contains(&count), "{most}: {count}");
        }
    }
}
