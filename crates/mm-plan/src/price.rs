//! A price for device memory that stays taken between phases (a Lagrange multiplier): with it components can be looked at one
//! by one, and their sum is still a bound for all of them together.

use alloc::vec::Vec;

/// Fraction bits of a price.
const BITS: u32 = 20;

/// Nanoseconds per byte, times 2^20.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Price(u64);

impl Price {
    /// What so many bytes cost, nanoseconds, rounded down.
    pub(crate) fn of(self, bytes: u128) -> u128 {
        bytes.saturating_mul(self.0.into()) >> BITS
    }
}

/// What a component takes at least if it stays between phases: corners of the lower convex hull, fewest bytes first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hull {
    /// Bytes and nanoseconds.
    corners: Vec<(u64, u64)>,
}

impl Hull {
    /// The hull of these points.
    pub(crate) fn of(mut points: Vec<(u64, u64)>) -> Self {
        points.sort_unstable();
        let mut corners: Vec<(u64, u64)> = Vec::new();
        for (bytes, time) in points {
            if corners.last().is_some_and(|last| last.1 <= time) {
                continue;
            }
            // Times fall along the hull, and fall ever slower.
            while let [.., (b0, t0), (b1, t1)] = corners.as_slice() {
                let (run, rise) = (u128::from(b1 - b0), u128::from(t0 - t1));
                let (all, fall) = (u128::from(bytes - b0), u128::from(t0 - time));
                if rise.saturating_mul(all) > fall.saturating_mul(run) {
                    break;
                }
                corners.pop();
            }
            corners.push((bytes, time));
        }
        Self { corners }
    }

    /// The corner that is cheapest: bytes beyond `own` have their price.
    pub(crate) fn cheapest(&self, price: Price, own: u64) -> Option<(u64, u128)> {
        let cost =
            |(bytes, time): &(u64, u64)| (*bytes, u128::from(*time) + price.of(bytes.saturating_sub(own).into()));
        self.corners.iter().map(cost).min_by_key(|(bytes, cost)| (*cost, *bytes))
    }

    /// The prices at which another corner becomes the cheapest.
    pub(crate) fn prices(&self) -> impl Iterator<Item = Price> + '_ {
        self.corners.windows(2).map(|pair| {
            let (bytes, time) = (pair[1].0 - pair[0].0, pair[0].1 - pair[1].1);
            let price = (u128::from(time) << BITS) / u128::from(bytes.max(1));
            Price(u64::try_from(price).unwrap_or(u64::MAX))
        })
    }
}

/// The price for which `bound` is highest; it rises up to one of `prices` and falls from there on.
pub(crate) fn best(mut prices: Vec<Price>, bound: impl Fn(Price) -> i128) -> Price {
    prices.push(Price(0));
    prices.sort_unstable();
    prices.dedup();
    let (mut low, mut high) = (0, prices.len() - 1);
    while low < high {
        let middle = (low + high) / 2;
        if bound(prices[middle]) < bound(prices[middle + 1]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    prices[low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_hull_keeps_its_corners_only() {
        let hull = Hull::of(vec![(0, 100), (10, 95), (10, 50), (20, 40), (15, 46), (30, 40), (25, 60), (40, 0)]);
        assert_eq!(hull.corners, [(0, 100), (10, 50), (40, 0)]);
        assert_eq!(hull.cheapest(Price(0), 0), Some((40, 0)));
        assert_eq!(hull.cheapest(Price(2 << BITS), 0), Some((10, 70)));
        assert_eq!(hull.cheapest(Price(9 << BITS), 0), Some((0, 100)));
        assert_eq!(hull.prices().collect::<Vec<_>>(), [Price(5 << BITS), Price((50 << BITS) / 30)]);
    }

    #[test]
    fn the_best_price_is_the_top() {
        let prices = (0..50).map(|i| Price(i * 7)).collect();
        assert_eq!(best(prices, |price| -(i128::from(price.0) - 100).abs()), Price(98));
    }
}
