//! How fast a lane is, and what each copy on it costs besides its bytes.

use super::samples::median;
use std::collections::VecDeque;

const SECOND: u128 = 1_000_000_000;

/// Bursts remembered; older ones make room.
const KEPT: usize = 256;

/// From how much smaller copies the fixed cost is told: with less, noise in the large ones would look like it.
const SPREAD: u128 = 4;

/// One copy. A device may run several at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) bytes: u64,
    /// Bytes in the stored form.
    pub(super) stored: u64,
}

/// Copies that overlapped: what the lane did in one stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Burst {
    ns: u64,
    bytes: u128,
    stored: u128,
    copies: u64,
}

/// A lane's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Speed {
    /// Bytes per second, at least one.
    pub(super) rate: u64,
    /// Nanoseconds of each copy besides its bytes.
    pub(super) fixed_ns: u64,
}

/// What a lane did.
#[derive(Clone, Debug, Default)]
pub(super) struct LaneLog {
    bursts: VecDeque<Burst>,
}

impl LaneLog {
    pub(super) fn is_empty(&self) -> bool {
        self.bursts.is_empty()
    }

    /// Adds copies that came to their end together or one after the other, in any order.
    pub(super) fn add(&mut self, copies: &mut [Moved]) {
        for burst in bursts(copies) {
            if self.bursts.len() == KEPT {
                self.bursts.pop_front();
            }
            self.bursts.push_back(burst);
        }
    }

    /// By bytes on the device; `None`: nothing tells.
    pub(super) fn speed(&self) -> Option<Speed> {
        let points: Vec<Point> = self.bursts.iter().filter_map(|burst| Point::of(burst, burst.bytes)).collect();
        fitted(&points).or_else(|| Some(Speed { rate: typical(points)?, fixed_ns: 0 }))
    }

    /// The rate by bytes in the stored form.
    pub(super) fn stored_rate(&self) -> Option<u64> {
        typical(self.bursts.iter().filter_map(|burst| Point::of(burst, burst.stored)).collect())
    }
}

fn bursts(copies: &mut [Moved]) -> Vec<Burst> {
    copies.sort_unstable_by_key(|copy| copy.start_ns);
    let mut bursts: Vec<(Burst, u64)> = Vec::new();
    for copy in copies.iter().filter(|copy| copy.end_ns > copy.start_ns) {
        if bursts.last().is_none_or(|(_, end)| copy.start_ns >= *end) {
            bursts.push((Burst::default(), copy.start_ns));
        }
        if let Some((burst, end)) = bursts.last_mut() {
            burst.ns = burst.ns.saturating_add(copy.end_ns.saturating_sub(*end));
            burst.bytes += u128::from(copy.bytes);
            burst.stored += u128::from(copy.stored);
            burst.copies += 1;
            *end = copy.end_ns.max(*end);
        }
    }
    bursts.into_iter().map(|(burst, _)| burst).collect()
}

/// A burst as so many equal copies.
#[derive(Clone, Copy)]
struct Point {
    /// Bytes of a copy.
    bytes: u128,
    /// Nanoseconds of a copy, in millionths.
    time: u128,
    /// Bytes of them all.
    weight: u128,
}

const MILLION: u128 = 1_000_000;

impl Point {
    /// `None`: a clock that stood still, or nothing that was copied, tells no rate.
    fn of(burst: &Burst, bytes: u128) -> Option<Self> {
        let (ns, copies) = (u128::from(burst.ns), u128::from(burst.copies));
        // A `u64` in millionths is below 2^84, and so many bytes of copies below 2^96.
        (ns > 0 && bytes >= copies && bytes < 1 << 96 && copies > 0).then(|| Self {
            bytes: bytes / copies,
            time: ns * MILLION / copies,
            weight: bytes,
        })
    }
}

/// Bytes per second; what exceeds 64 bits is capped, and nothing is stopped altogether.
fn rate(bytes: u128, time: u128) -> u64 {
    let rate = bytes.saturating_mul(SECOND).saturating_mul(MILLION) / time.max(1);
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

/// Half of all bytes went at this rate or a higher one.
fn typical(mut points: Vec<Point>) -> Option<u64> {
    points.sort_unstable_by_key(|point| std::cmp::Reverse(rate(point.bytes, point.time)));
    let half = points.iter().map(|point| point.weight).sum::<u128>().div_ceil(2);
    let mut passed = 0;
    points.iter().find_map(|point| {
        passed += point.weight;
        (passed >= half).then(|| rate(point.bytes, point.time))
    })
}

/// The line through copies of different sizes, by medians (Theil and Sen): its slope is the rate, where it begins the fixed
/// cost. `None`: there are no sizes that differ enough, or larger ones were no slower.
fn fitted(points: &[Point]) -> Option<Speed> {
    let mut slopes = Vec::new();
    for (at, small) in points.iter().enumerate() {
        for other in &points[at + 1..] {
            let (small, large) = if small.bytes < other.bytes { (small, other) } else { (other, small) };
            if large.bytes >= small.bytes.saturating_mul(SPREAD) {
                let time = large.time.saturating_sub(small.time);
                slopes.push(if time == 0 { u64::MAX } else { rate(large.bytes - small.bytes, time) });
            }
        }
    }
    let rate = median(&mut slopes).filter(|rate| *rate < u64::MAX)?;
    let fixed = |point: &Point| {
        let moving = point.bytes.saturating_mul(SECOND).saturating_mul(MILLION) / u128::from(rate);
        point.time.saturating_sub(moving)
    };
    let fixed = median(&mut points.iter().map(fixed).collect::<Vec<_>>())?;
    let least = points.iter().map(|point| point.time).min()?;
    Some(Speed { rate, fixed_ns: u64::try_from(fixed.min(least) / MILLION).unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn copy(start_ns: u64, ns: u64, bytes: u64) -> Moved {
        Moved { start_ns, end_ns: start_ns + ns, bytes, stored: bytes / 2 }
    }

    fn log(copies: &[Moved]) -> LaneLog {
        let mut log = LaneLog::default();
        log.add(&mut copies.to_vec());
        log
    }

    fn speed(copies: &[Moved]) -> Option<(u64, u64)> {
        log(copies).speed().map(|speed| (speed.rate, speed.fixed_ns))
    }

    #[test]
    fn equal_copies_tell_a_rate() {
        // 1 MB in 1 ms: 1 GB/s.
        assert_eq!(speed(&[copy(0, 1000, 1000), copy(5000, 1000, 1000)]), Some((1_000_000_000, 0)));
        assert_eq!(log(&[copy(0, 1000, 1000)]).stored_rate(), Some(500_000_000));
        assert_eq!(speed(&[]), None);
    }

    #[test]
    fn copies_that_overlap_are_one_stretch() {
        let burst = |ns, bytes, copies| Burst { ns, bytes, stored: bytes / 2, copies };
        let of = |copies: &[Moved]| bursts(&mut copies.to_vec());
        assert_eq!(of(&[copy(0, 10, 100), copy(5, 10, 100)]), [burst(15, 200, 2)]);
        assert_eq!(of(&[copy(5, 10, 100), copy(0, 30, 100), copy(29, 1, 100)]), [burst(30, 300, 3)]);
        assert_eq!(of(&[copy(0, 10, 100), copy(10, 10, 100)]), [burst(10, 100, 1), burst(10, 100, 1)], "one by one");
        // Four at once, each at a quarter of the speed: the link is as fast as ever.
        let four: Vec<Moved> = (0..4).map(|_| copy(0, 4000, 1000)).collect();
        assert_eq!(speed(&four), Some((1_000_000_000, 0)));
    }

    #[test]
    fn a_clock_that_stands_still_tells_nothing() {
        assert_eq!(speed(&[copy(7, 0, 1000)]), None);
        assert_eq!(speed(&[copy(7, 10, 0)]), None);
        assert_eq!(speed(&[copy(7, 0, 1000), copy(9, 1000, 1000)]), Some((1_000_000_000, 0)));
    }

    #[test]
    fn outliers_do_not_move_it() {
        let mut copies: Vec<Moved> = (0..9).map(|i| copy(i * 100_000, 1000, 1000)).collect();
        copies[3] = copy(300_000, 90_000, 1000);
        copies[6] = copy(600_000, 1, 1000);
        assert_eq!(speed(&copies), Some((1_000_000_000, 0)));
    }

    #[test]
    fn copies_of_different_sizes_tell_the_fixed_cost() {
        // 5 µs each and 2 bytes a nanosecond.
        let time = |bytes: u64| 5_000 + bytes / 2;
        let copies: Vec<Moved> = (0..10).map(|i| copy(i * 100 * MB, time(MB << (i % 4)), MB << (i % 4))).collect();
        assert_eq!(speed(&copies), Some((2_000_000_000, 5_000)));
        // Two together: one burst of two copies, with twice the fixed cost.
        let burst = LaneLog {
            bursts: [1, 8]
                .map(|n| Burst { ns: 10_000 + n * MB, bytes: (n * 2 * MB).into(), stored: 0, copies: 2 })
                .into(),
        };
        assert_eq!(burst.speed(), Some(Speed { rate: 2_000_000_000, fixed_ns: 5_000 }));
    }

    #[test]
    fn sizes_that_hardly_differ_tell_no_fixed_cost() {
        let copies = [copy(0, 1_100, 1000), copy(MB, 3_100, 3000)];
        assert_eq!(speed(&copies).map(|speed| speed.1), Some(0));
        let copies = [copy(0, 1_100, 1000), copy(MB, 4_100, 4000)];
        assert_eq!(speed(&copies), Some((1_000_000_000, 100)));
    }

    #[test]
    fn large_copies_that_are_no_slower_give_a_rate_all_the_same() {
        let copies = [copy(0, 1000, 1000), copy(MB, 1000, 9000)];
        assert_eq!(speed(&copies), Some((9_000_000_000, 0)), "most bytes went at it");
    }

    #[test]
    fn any_size_is_taken() {
        let all = [copy(0, u64::MAX, u64::MAX), copy(0, 1, u64::MAX), copy(u64::MAX - 1, 1, 1), copy(1, 1, 1)];
        assert!(speed(&all).is_some());
        assert_eq!(speed(&[copy(0, 1, u64::MAX)]), Some((u64::MAX, 0)));
        assert_eq!(speed(&[copy(0, u64::MAX, 1)]), Some((1, 0)), "slow is not stopped");
        let mut log = LaneLog::default();
        (0..KEPT as u64 * 3).for_each(|i| log.add(&mut [copy(i * 10, 5, 5)]));
        assert_eq!(log.bursts.len(), KEPT);
    }
}
