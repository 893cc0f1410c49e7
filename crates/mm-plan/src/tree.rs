//! Which of the first entries of a list is best, while what is known of them changes.

use crate::frontier::{Choice, Score};
use alloc::{vec, vec::Vec};

/// A tournament over a list of scores.
pub(crate) struct Tree {
    /// `None`: out of the question.
    scores: Vec<Option<Score>>,
    /// Those whose score is no longer a bound but a fact: place in `choices`, from 1.
    known: Vec<u32>,
    choices: Vec<Choice>,
    /// Winners: the leaves are the second half, each other place has the better of its two below.
    winners: Vec<u32>,
}

impl Tree {
    /// Of bounds.
    pub(crate) fn new(scores: Vec<Option<Score>>) -> Self {
        let size = scores.len().next_power_of_two();
        let (known, winners) = (vec![0; scores.len()], vec![u32::MAX; 2 * size]);
        let mut tree = Self { known, choices: Vec::new(), winners, scores };
        for leaf in 0..tree.scores.len() {
            tree.winners[size + leaf] = leaf as u32;
        }
        for node in (1..size).rev() {
            tree.winners[node] = tree.better(tree.winners[2 * node], tree.winners[2 * node + 1]);
        }
        tree
    }

    /// The best of the first `count`, and what it is, if that is known. `None`: none is in question.
    pub(crate) fn best(&self, count: usize) -> Option<(usize, Option<Choice>)> {
        let size = self.winners.len() / 2;
        let (mut low, mut high) = (size, size + count.min(self.scores.len()));
        let mut winner = u32::MAX;
        while low < high {
            if low & 1 == 1 {
                winner = self.better(winner, self.winners[low]);
                low += 1;
            }
            if high & 1 == 1 {
                high -= 1;
                winner = self.better(winner, self.winners[high]);
            }
            (low, high) = (low / 2, high / 2);
        }
        let place = winner as usize;
        let known = (*self.known.get(place)? as usize).checked_sub(1).map(|known| self.choices[known]);
        self.scores[place].map(|_| (place, known))
    }

    /// What an entry really is; `None`: it is out of the question.
    pub(crate) fn set(&mut self, place: usize, choice: Option<Choice>) {
        self.scores[place] = choice.map(|choice| choice.score);
        self.choices.extend(choice);
        self.known[place] = if choice.is_some() { self.choices.len() as u32 } else { 0 };
        let mut node = (self.winners.len() / 2 + place) / 2;
        while node > 0 {
            self.winners[node] = self.better(self.winners[2 * node], self.winners[2 * node + 1]);
            node /= 2;
        }
    }

    /// The better of two, of equals the first.
    fn better(&self, a: u32, b: u32) -> u32 {
        let score = |place: u32| self.scores.get(place as usize).copied().flatten().map(|score| (score, place));
        match (score(a), score(b)) {
            (Some(one), Some(other)) if other < one => b,
            (None, Some(_)) => b,
            _ => a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_the_first_few() {
        let score = |time| Some(Score { time, ..Score::default() });
        for count in 1..20usize {
            let times: Vec<u64> = (0..count as u64).map(|i| (i * 7 + 3) % 11).collect();
            let mut tree = Tree::new(times.iter().map(|time| score(*time)).collect());
            for first in 0..=count {
                let best = (0..first).min_by_key(|i| (times[*i], *i));
                assert_eq!(tree.best(first), best.map(|best| (best, None)), "{count} {first}");
            }
            tree.set(0, None);
            assert_eq!(tree.best(1), None);
        }
        assert_eq!(Tree::new(Vec::new()).best(3), None);
    }
}
