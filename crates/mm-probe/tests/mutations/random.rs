//! The choices of one case: the same for the same number, on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub(crate) struct Random(ChaCha8Rng);

/// Values at which arithmetic breaks.
const EXTREMES: [u64; 14] = [
    0,
    1,
    7,
    8,
    u32::MAX as u64,
    (u32::MAX as u64) + 1,
    99_999_999,
    100_000_000,
    100_000_001,
    1 << 53,
    1 << 60,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

impl Random {
    pub(crate) fn of_case(case: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(case))
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.next_u32() as u8
    }

    /// Below `end`; 0 where there is nothing below it.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % (end as u64).max(1)) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// An extreme, one beside it, or anything.
    pub(crate) fn number(&mut self) -> u64 {
        let extreme = *self.pick(&EXTREMES);
        match self.below(4) {
            0 => extreme.wrapping_sub(1),
            1 => self.0.next_u64() >> self.below(64),
            _ => extreme,
        }
    }
}
