//! How much of each pixel's time a lane is in use.

use super::sheet::{Area, LEFT, RIGHT};

/// Pixels below which bars could not be told apart.
const NARROW: f64 = 4.0;
/// Columns that have their shares in common where bars are that narrow; single ones would only show how bars and pixels
/// meet.
const BLUR: usize = 5;

/// One share per pixel column.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    columns: Vec<f64>,
    /// Added: how often, and pixels in all.
    bars: (usize, f64),
}

impl Usage {
    pub(super) fn new() -> Self {
        Self { columns: vec![0.0; (RIGHT - LEFT) as usize], bars: (0, 0.0) }
    }

    /// In use from pixel `from` to pixel `to`, for this share of the time.
    pub(super) fn add(&mut self, from: f64, to: f64, share: f64) {
        let (from, to) = ((from - LEFT).max(0.0), (to - LEFT).min(self.columns.len() as f64));
        for column in from as usize..(to.ceil().max(0.0) as usize).min(self.columns.len()) {
            let overlap = to.min(column as f64 + 1.0) - from.max(column as f64);
            self.columns[column] += overlap.max(0.0) * share;
        }
    }

    /// One bar more, from pixel `from` to pixel `to`.
    pub(super) fn bar(&mut self, from: f64, to: f64) {
        self.bars = (self.bars.0 + 1, self.bars.1 + to - from);
        self.add(from, to, 1.0);
    }

    /// Makes the shares of neighbours alike where bars are narrow.
    pub(super) fn blur(&mut self) {
        if self.bars.0 > 0 && self.bars.1 / (self.bars.0 as f64) < NARROW {
            // Where they begin and end stays.
            let first = self.columns.iter().position(|share| *share > 0.0).unwrap_or(0);
            let end = self.columns.iter().rposition(|share| *share > 0.0).map_or(first, |last| last + 1);
            for columns in self.columns[first..end].chunks_mut(BLUR) {
                let mean = columns.iter().sum::<f64>() / columns.len() as f64;
                columns.fill(mean);
            }
        }
    }

    /// The shares as areas on top of what `below` is in use, which grows by them. Columns that are alike are one.
    pub(super) fn areas(&self, below: &mut Self, y: f64, height: f64) -> Vec<Area> {
        let mut areas: Vec<Area> = Vec::new();
        let mut last = (0.0, 0.0);
        for (column, (share, base)) in self.columns.iter().zip(&mut below.columns).enumerate() {
            let share = share.min(1.0 - *base);
            // Less can't be seen.
            if share * height < 0.05 {
                last = (0.0, 0.0);
                continue;
            }
            let (x, from) = (LEFT + column as f64, *base);
            *base += share;
            let now = (from, *base);
            match areas.last_mut() {
                Some(area) if same(now, last) => area.width += 1.0,
                _ => {
                    areas.push(Area { x, y: y + (1.0 - now.1) * height, width: 1.0, height: share * height });
                    last = now;
                }
            }
        }
        areas
    }
}

fn same(a: (f64, f64), b: (f64, f64)) -> bool {
    (a.0 - b.0).abs() < 0.002 && (a.1 - b.1).abs() < 0.002
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_alike_columns_are_one() {
        let mut usage = Usage::new();
        usage.add(LEFT + 1.5, LEFT + 4.0, 1.0);
        usage.add(LEFT + 6.25, LEFT + 6.5, 1.0);
        usage.add(LEFT - 10.0, LEFT + 0.5, 0.5);
        usage.add(RIGHT - 1.0, RIGHT + 10.0, 1.0);
        let mut below = Usage::new();
        let areas = usage.areas(&mut below, 0.0, 100.0);
        let found: Vec<_> = areas.iter().map(|a| (a.x - LEFT, a.width, a.height)).collect();
        let last = RIGHT - LEFT - 1.0;
        assert_eq!(
            found,
            [(0.0, 1.0, 25.0), (1.0, 1.0, 50.0), (2.0, 2.0, 100.0), (6.0, 1.0, 25.0), (last, 1.0, 100.0)]
        );
        assert!(usage.areas(&mut below, 0.0, 100.0).iter().all(|area| area.height <= 75.0), "no more than is left");
    }

    #[test]
    fn narrow_bars_are_blurred_and_wide_ones_are_not() {
        let blurred = |width: f64| {
            let mut usage = Usage::new();
            (0..3).for_each(|i| usage.bar(LEFT + f64::from(i) * 8.0, LEFT + f64::from(i) * 8.0 + width));
            usage.blur();
            usage.areas(&mut Usage::new(), 0.0, 100.0).iter().map(|area| (area.width, area.height)).collect::<Vec<_>>()
        };
        assert_eq!(blurred(4.0), [(4.0, 100.0); 3]);
        assert_eq!(blurred(1.0), [(10.0, 20.0), (2.0, 50.0)]);
    }
}
