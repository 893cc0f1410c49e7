//! What each lease took by itself: leases may be held inside each other, and compute may stand still inside one.

use std::cmp::Reverse;

/// A stretch in which a group was leased, or (`None`) compute stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) group: Option<usize>,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// Adds to `times` what each group took. Each moment counts for what began last of all that had not ended, so it counts
/// once, and for no group while compute stood still.
pub(super) fn own_times(spans: &mut [Held], times: &mut [u64]) {
    // Of those that begin together the longest is the outermost; of those that are one stretch the last group, which is the
    // rest, and a stall the innermost.
    spans.sort_unstable_by_key(|span| (span.start_ns, Reverse(span.end_ns), Reverse(span.group)));
    let mut open: Vec<Held> = Vec::new();
    let mut now = 0;
    let mut spend = |span: &Held, now: &mut u64, until: u64| {
        if until > *now {
            if let Some(time) = span.group.and_then(|group| times.get_mut(group)) {
                *time = time.saturating_add(until - *now);
            }
            *now = until;
        }
    };
    for span in spans.iter() {
        while let Some(last) = open.pop_if(|last| last.end_ns <= span.start_ns) {
            spend(&last, &mut now, last.end_ns);
        }
        if let Some(last) = open.last() {
            spend(last, &mut now, span.start_ns);
        }
        now = now.max(span.start_ns);
        open.push(*span);
    }
    while let Some(last) = open.pop() {
        spend(&last, &mut now, last.end_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(spans: &[(Option<usize>, u64, u64)]) -> [u64; 3] {
        let mut times = [0; 3];
        let mut held: Vec<Held> = spans
            .iter()
            .map(|(group, start_ns, end_ns)| Held { group: *group, start_ns: *start_ns, end_ns: *end_ns })
            .collect();
        own_times(&mut held, &mut times);
        held.reverse();
        let mut again = [0; 3];
        own_times(&mut held, &mut again);
        assert_eq!(times, again, "the order in which they are told doesn't matter");
        times
    }

    #[test]
    fn one_after_the_other() {
        assert_eq!(times(&[(Some(0), 10, 20), (Some(1), 25, 40), (Some(0), 40, 41)]), [11, 15, 0]);
        assert_eq!(times(&[(Some(2), 5, 5)]), [0, 0, 0]);
        assert_eq!(times(&[]), [0, 0, 0]);
    }

    #[test]
    fn a_stall_is_nobodys_compute() {
        assert_eq!(times(&[(None, 0, 10), (Some(0), 10, 20)]), [10, 0, 0]);
        // The next group is waited for while this one is still held.
        assert_eq!(times(&[(Some(0), 0, 30), (None, 10, 20), (Some(1), 20, 40)]), [10, 20, 0]);
        assert_eq!(times(&[(Some(0), 0, 30), (None, 10, 20)]), [20, 0, 0]);
    }

    #[test]
    fn a_moment_counts_once() {
        assert_eq!(times(&[(Some(0), 0, 30), (Some(1), 10, 20)]), [20, 10, 0]);
        assert_eq!(times(&[(Some(0), 0, 20), (Some(1), 10, 30)]), [10, 20, 0]);
        assert_eq!(times(&[(Some(0), 0, 100), (Some(1), 10, 30), (Some(2), 20, 40)]), [70, 10, 20]);
        assert_eq!(times(&[(Some(0), 0, 10), (Some(1), 0, 5)]), [5, 5, 0]);
        assert_eq!(times(&[(Some(0), 0, 10), (Some(2), 0, 10)]), [10, 0, 0]);
        assert_eq!(times(&[(Some(0), 0, 10), (None, 0, 10)]), [0, 0, 0]);
    }

    #[test]
    fn what_cannot_be_is_harmless() {
        assert_eq!(times(&[(Some(9), 0, 10), (Some(0), u64::MAX - 1, u64::MAX), (Some(0), 7, 3)]), [1, 0, 0]);
    }
}
