//! What one thing took, pass by pass, and which of it is typical.

use std::collections::VecDeque;

/// Passes remembered besides the first; older ones make room.
const KEPT: usize = 15;

/// Nanoseconds of one thing in each pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    /// The first pass touches memory and fills caches for the first time; it tells only where there is no other.
    first: Option<u64>,
    later: VecDeque<u64>,
}

impl Samples {
    pub(super) fn add(&mut self, ns: u64) {
        if self.first.is_none() {
            self.first = Some(ns);
            return;
        }
        if self.later.len() == KEPT {
            self.later.pop_front();
        }
        self.later.push_back(ns);
    }

    /// The median of the passes after the first; an interruption or two don't move it.
    pub(super) fn typical(&self) -> Option<u64> {
        median(&mut self.later.iter().copied().collect::<Vec<_>>()).or(self.first)
    }
}

/// A value that was seen: of an even number the lower of the two in the middle.
pub(super) fn median<T: Ord + Copy>(values: &mut [T]) -> Option<T> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typical(ns: &[u64]) -> Option<u64> {
        let mut samples = Samples::default();
        ns.iter().for_each(|ns| samples.add(*ns));
        samples.typical()
    }

    #[test]
    fn the_first_pass_counts_only_alone() {
        assert_eq!(typical(&[]), None);
        assert_eq!(typical(&[900]), Some(900));
        assert_eq!(typical(&[900, 10]), Some(10));
        assert_eq!(typical(&[900, 10, 12]), Some(10));
    }

    #[test]
    fn outliers_do_not_move_the_median() {
        assert_eq!(typical(&[900, 10, 11, u64::MAX, 0, 12]), Some(11));
    }

    #[test]
    fn what_is_old_makes_room() {
        let mut samples = Samples::default();
        (0..10_000).for_each(|_| samples.add(10));
        (0..KEPT).for_each(|_| samples.add(20));
        assert_eq!((samples.typical(), samples.later.len()), (Some(20), KEPT));
    }
}
