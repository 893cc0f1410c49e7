//! When another plan is worth putting in force: small gains and small changes of memory are not.

/// How much better another plan must be, and how much memory may change before anybody looks. Permille.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hysteresis {
    /// A plan is replaced where a request is predicted to take less of its time by more than this.
    pub gain_permille: u64,
    /// Free memory that differs by no more than this from what the plan was made for is taken as the same.
    pub memory_permille: u64,
}

impl Default for Hysteresis {
    /// 5 % of the time, 10 % of the memory.
    fn default() -> Self {
        Self { gain_permille: 50, memory_permille: 100 }
    }
}

/// Device memory as it bears on the plan in force, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// What the plan needs: engine bytes, what computing takes beside them, and the reserve, in the phase that needs most.
    pub(crate) need: u64,
    /// Free memory that the plan was made for.
    pub(crate) planned: u64,
    /// Free memory now, what the engine holds included.
    pub(crate) free: u64,
}

/// What became of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The same, or as good as.
    Same,
    /// The plan can't go on.
    Short,
    /// More than before.
    More,
}

impl Hysteresis {
    /// Whether a plan of `next` nanoseconds a request replaces one of `now`. Two that take no time are equally good.
    pub(crate) fn is_worth_it(self, now: u64, next: u64) -> bool {
        let gained = u128::from(now.saturating_sub(next)) * 1000;
        gained > u128::from(now) * u128::from(self.gain_permille)
    }

    /// What the plan was made for, give or take the bound, is the same: what it holds is allocated already. Where it needs
    /// more than it was made for (computing took more than was known) not a byte may be missing.
    pub(crate) fn room(self, memory: Memory) -> Room {
        let Memory { need, planned, free } = memory;
        let differs = |by: u64| u128::from(by) * 1000 > u128::from(planned) * u128::from(self.memory_permille);
        if need > free && (need > planned || differs(planned.saturating_sub(free))) {
            return Room::Short;
        }
        if differs(free.saturating_sub(planned)) { Room::More } else { Room::Same }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_counts_beyond_the_bound_alone() {
        let worth = |now, next| Hysteresis::default().is_worth_it(now, next);
        assert!(!worth(1000, 950), "five percent is not more than five percent");
        assert!(worth(1000, 949));
        assert!(!worth(1000, 1000) && !worth(1000, 2000));
        assert!(!worth(0, 0));
        assert!(worth(u64::MAX, 0) && !worth(u64::MAX, u64::MAX) && worth(1, 0));
        let any = Hysteresis { gain_permille: 0, ..Hysteresis::default() };
        assert!(any.is_worth_it(1000, 999) && !any.is_worth_it(1000, 1000));
        let never = Hysteresis { gain_permille: u64::MAX, ..Hysteresis::default() };
        assert!(!never.is_worth_it(u64::MAX, 0));
    }

    fn room(need: u64, planned: u64, free: u64) -> Room {
        Hysteresis::default().room(Memory { need, planned, free })
    }

    #[test]
    fn memory_that_jitters_is_the_same() {
        assert_eq!(room(1000, 1000, 1000), Room::Same);
        assert_eq!((room(1000, 1000, 900), room(1000, 1000, 899)), (Room::Same, Room::Short));
        assert_eq!((room(1000, 1000, 1100), room(1000, 1000, 1101)), (Room::Same, Room::More));
        assert_eq!((room(500, 1000, 500), room(500, 1000, 499)), (Room::Same, Room::Short), "it still fits");
    }

    #[test]
    fn what_was_not_known_when_it_was_planned_must_fit_to_the_byte() {
        assert_eq!((room(1000, 1000, 1000), room(1001, 1000, 1000)), (Room::Same, Room::Short));
        assert_eq!(room(1001, 1000, 1001), Room::Same, "there is more than was planned for");
    }

    #[test]
    fn any_size_is_taken() {
        assert_eq!(room(u64::MAX, u64::MAX, u64::MAX), Room::Same);
        assert_eq!((room(u64::MAX, u64::MAX, 0), room(0, 0, u64::MAX)), (Room::Short, Room::More));
        assert_eq!((room(0, 0, 0), room(1, 0, 0)), (Room::Same, Room::Short));
    }
}
