//! In which order a component asks for its streamed groups: assumed at first, then learned.

use std::collections::BTreeSet;

/// A trace longer than this is not learned: whoever runs that much in one pass has no steady order.
const LONGEST: usize = 1 << 16;

/// The cyclic order of streamed groups, and how far this pass has come in it.
#[derive(Debug)]
pub(crate) struct Order {
    sequence: Vec<usize>,
    cursor: usize,
    trace: Vec<usize>,
    /// No pass follows this one.
    last: bool,
}

impl Order {
    /// Assumes the order in which the groups were built.
    pub(crate) const fn new(streamed: Vec<usize>) -> Self {
        Self { sequence: streamed, cursor: 0, trace: Vec::new(), last: false }
    }

    /// A pass begins; `last`: none is expected to follow, so what comes after its end is not foreseen.
    pub(crate) const fn begin_pass(&mut self, last: bool) {
        self.last = last;
    }

    /// `group` is asked for now.
    pub(crate) fn visit(&mut self, group: usize) {
        let length = self.sequence.len();
        let ahead = (0..length).map(|step| (self.cursor + step) % length);
        if let Some(position) = ahead.into_iter().find(|p| self.sequence[*p] == group) {
            self.cursor = position + 1;
        }
        if self.trace.len() < LONGEST {
            self.trace.push(group);
        }
    }

    /// A pass starts over; `complete`: the last one ran to its end, so what it asked for is the order.
    pub(crate) fn end_pass(&mut self, complete: bool) {
        let trace = std::mem::take(&mut self.trace);
        if complete && !trace.is_empty() && trace.len() < LONGEST {
            self.sequence = trace;
        }
        self.cursor = 0;
    }

    /// The next `count` different groups, across the end of the pass unless it is the last.
    pub(crate) fn next(&self, count: usize) -> Vec<usize> {
        let (passed, ahead) = self.sequence.split_at(self.cursor.min(self.sequence.len()));
        let passed = if self.last { &[] } else { passed };
        let mut seen = BTreeSet::new();
        ahead.iter().chain(passed).copied().filter(|group| seen.insert(*group)).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_across_the_pass_boundary() {
        let mut order = Order::new(vec![0, 2, 4]);
        assert_eq!(order.next(2), [0, 2]);
        order.visit(0);
        order.visit(2);
        assert_eq!(order.next(2), [4, 0]);
    }

    #[test]
    fn nothing_follows_the_last_pass() {
        let mut order = Order::new(vec![0, 2, 4]);
        order.begin_pass(true);
        order.visit(0);
        order.visit(2);
        assert_eq!(order.next(2), [4]);
        order.visit(4);
        assert!(order.next(2).is_empty());
        order.end_pass(true);
        order.begin_pass(false);
        assert_eq!(order.next(2), [0, 2]);
    }

    #[test]
    fn learns_what_was_asked_for_and_forgets_what_was_not() {
        let mut order = Order::new(vec![0, 1, 2]);
        order.visit(1);
        order.visit(0);
        order.end_pass(true);
        assert_eq!(order.next(3), [1, 0]);
    }

    #[test]
    fn an_interrupted_pass_teaches_nothing() {
        let mut order = Order::new(vec![0, 1, 2]);
        order.visit(2);
        order.end_pass(false);
        assert_eq!(order.next(3), [0, 1, 2]);
    }

    #[test]
    fn repeats_inside_a_pass_are_followed() {
        let mut order = Order::new(vec![0, 1]);
        for group in [0, 1, 0, 1, 0, 1] {
            order.visit(group);
        }
        order.end_pass(true);
        order.visit(0);
        assert_eq!(order.next(2), [1, 0]);
    }
}
