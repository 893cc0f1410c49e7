//! Which groups of a stack stay resident: spread evenly, so that each copy has compute to hide behind.

use alloc::{vec, vec::Vec};

/// Positions of `streamed` groups among `groups`: ⌊k·n/s⌋. Asking for more than there are streams them all.
pub(crate) fn positions(groups: usize, streamed: usize) -> impl Iterator<Item = usize> {
    let streamed = streamed.min(groups) as u64;
    // The planner takes at most 65,536 groups, so the product stays far below 2^64.
    (0..streamed).map(move |k| (k * groups as u64 / streamed) as usize)
}

/// Per group: resident or streamed.
pub(crate) fn flags(groups: usize, resident: usize) -> Vec<bool> {
    let mut flags = vec![true; groups];
    for position in positions(groups, groups.saturating_sub(resident)) {
        flags[position] = false;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_asked_and_no_gap_wider_than_needed() {
        for groups in 0..40 {
            for resident in 0..=groups {
                let flags = flags(groups, resident);
                assert_eq!(flags.iter().filter(|f| **f).count(), resident);
                let streamed: Vec<usize> = (0..groups).filter(|i| !flags[*i]).collect();
                let widest = streamed.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
                assert!(streamed.len() < 2 || widest <= groups.div_ceil(streamed.len()), "{groups} {resident}");
            }
        }
    }

    #[test]
    fn half_of_a_stack_alternates() {
        assert_eq!(flags(6, 3), [false, true, false, true, false, true]);
    }
}
