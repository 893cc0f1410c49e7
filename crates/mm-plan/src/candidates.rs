//! The placements of one component that are tried, with what they hold, what they copy, and a bound of their time.

use crate::{
    HostTier, Strategy,
    family::{Family, Set},
    frontier::{Score, Terms},
    notes::capped,
    part::{Load, Part},
    place,
    rates::{Rates, Times},
    recurrence::{self, MAX_SLOTS, Work},
};
use alloc::{collections::BTreeMap, vec, vec::Vec};

/// A set of streamed groups with a number of slots.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) set: Set,
    pub(crate) slots: u32,
    /// Loading what does not stream, nanoseconds.
    pub(crate) load: u64,
    pub(crate) streamed: u32,
    /// Bytes of a pass's copies.
    pub(crate) bytes: u64,
}

/// A candidate that stays between phases, or does not.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// Its part of a request takes no less time; the rest is exact.
    pub(crate) bound: Score,
    pub(crate) candidate: u32,
}

/// All that are tried, by device bytes.
pub(crate) struct Candidates {
    pub(crate) all: Vec<Candidate>,
    pub(crate) kept: Vec<Entry>,
    pub(crate) apart: Vec<Entry>,
    /// The least that any takes.
    pub(crate) least: u64,
}

impl Candidates {
    /// Of one component under its terms. `times`: per group, streamed from where it is not page-locked, and page-locked.
    pub(crate) fn of(part: &Part<'_>, rates: &Rates, terms: &Terms, family: &Family, times: &[[Times; 2]]) -> Self {
        let sets: Vec<Set> = match (terms.asked, terms.resident) {
            (Strategy::NoOffload | Strategy::ModelOffload, _) => vec![Set::NONE],
            (Strategy::GroupOffload, _) => vec![family.all()],
            (_, Some(resident)) => vec![family.rung(resident as usize)],
            _ => family.sets().to_vec(),
        };
        let mut this = Self { all: Vec::new(), kept: Vec::new(), apart: Vec::new(), least: u64::MAX };
        let (total, slabs, whole) = (part.bytes(), Slabs::of(part), Load::of(part));
        let locks = terms.lock_cap > 0 && rates.has_tiers();
        let mut computed = Vec::with_capacity(part.groups.len() + 1);
        computed.push(0u64);
        for (_, facts) in &part.groups {
            computed.push(computed[computed.len() - 1].saturating_add(facts.compute));
        }
        let (mut flags, mut streamed) = (Vec::new(), Vec::new());
        for set in sets {
            family.mark(set, &mut flags);
            streamed.clear();
            streamed.extend((0..flags.len()).filter(|i| flags[*i]).map(|i| {
                let [(stage, copy), (_, locked)] = times[i];
                let (stage, copy) = if locks { (0, locked) } else { (stage, copy) };
                (i, stage, copy)
            }));
            let pass = Pass { computed: &computed, streamed: &streamed };
            let work = pass.work();
            let bytes = streamed.iter().map(|(i, ..)| part.groups[*i].1.bytes).sum::<u128>();
            let load = whole.without(rates, streamed.iter().map(|(i, ..)| part.groups[*i].0));
            let (slot, count) = (slabs.slot(&flags), streamed.len() as u32);
            for slots in 1..=terms.slot_cap.min(count).max(1) {
                let device = total - bytes + if count == 0 { 0 } else { slot * u128::from(slots) };
                let Ok(device) = u64::try_from(device) else { continue };
                this.least = this.least.min(device);
                let candidate = this.all.len() as u32;
                this.all.push(Candidate { set, slots: slots.min(count), load, streamed: count, bytes: capped(bytes) });
                let copied = |passes: u64, keep: bool| recurrence::copied(slots as usize, streamed.len(), passes, keep);
                let score = |time: u64, keep: bool| {
                    let loaded = if keep { 0 } else { total - bytes };
                    let traffic = |passes: u64| capped(loaded + bytes * u128::from(copied(passes, keep)));
                    Score { time, traffic: part.over_visits(traffic), device }
                };
                let busiest = work.copy.max(work.stage);
                let refill = if slots < count { pass.refill(slots as usize) } else { 0 };
                let first = pass.first(slots as usize);
                if terms.asked != Strategy::ModelOffload {
                    let time = |passes: u64| {
                        let computed = work.compute.saturating_mul(passes).saturating_add(refill);
                        busiest.saturating_mul(copied(passes, true)).max(computed)
                    };
                    let bound = score(part.over_visits(time), true);
                    this.kept.push(Entry { bound, candidate });
                }
                if terms.asked != Strategy::NoOffload {
                    let time = |passes: u64| {
                        let computed = work.compute.saturating_mul(passes).saturating_add(first);
                        let copied = busiest.saturating_mul(copied(passes, false)).saturating_add(pass.last());
                        load.saturating_add(copied.max(computed))
                    };
                    let bound = score(part.over_visits(time), false);
                    this.apart.push(Entry { bound, candidate });
                }
            }
        }
        for entries in [&mut this.kept, &mut this.apart] {
            entries.sort_by_key(|e| (e.bound.device, e.bound, e.candidate));
        }
        this
    }
}

/// A pass with its streamed groups: place, staging and copy, nanoseconds.
struct Pass<'p> {
    /// Compute up to each group.
    computed: &'p [u64],
    streamed: &'p [(usize, u64, u64)],
}

impl Pass<'_> {
    fn work(&self) -> Work {
        let mut work = Work { compute: self.computed[self.computed.len() - 1], ..Work::default() };
        for (_, stage, copy) in self.streamed {
            work.stage = work.stage.saturating_add(*stage);
            work.copy = work.copy.saturating_add(*copy);
        }
        work
    }

    /// How much later than its last compute a visit ends at the least, because slots are filled again for the next: each
    /// refill waits for the compute that used its slot last.
    fn refill(&self, slots: usize) -> u64 {
        let (count, end) = (self.streamed.len(), self.computed[self.computed.len() - 1]);
        let slots = slots.min(count);
        let mut copies = 0u64;
        let late = (0..slots).rev().map(|slot| {
            copies = copies.saturating_add(self.streamed[slot].2);
            let user = self.streamed[count - slots + slot].0;
            copies.saturating_sub(end - self.computed[user + 1])
        });
        late.max().unwrap_or(0)
    }

    /// How much compute waits at the least for the first copies, with nothing copied before.
    fn first(&self, slots: usize) -> u64 {
        let mut copies = 0u64;
        let late = self.streamed.iter().take(slots).map(|(group, _, copy)| {
            copies = copies.saturating_add(*copy);
            copies.saturating_sub(self.computed[*group])
        });
        late.max().unwrap_or(0)
    }

    /// Compute that comes after the last copy.
    fn last(&self) -> u64 {
        self.streamed.last().map_or(0, |(group, ..)| self.computed[self.computed.len() - 1] - self.computed[*group])
    }
}

/// Sizes of slots: the largest streamed slab per dtype.
pub(crate) enum Slabs {
    /// All groups have one slab of one dtype.
    One(Vec<u64>),
    Many(Vec<Vec<(usize, u64)>>),
}

impl Slabs {
    pub(crate) fn of(part: &Part<'_>) -> Self {
        let mut dtypes = BTreeMap::new();
        for (group, _) in &part.groups {
            for slab in &group.slabs {
                let next = dtypes.len();
                dtypes.entry(slab.dtype).or_insert(next);
            }
        }
        if dtypes.len() <= 1 {
            return Self::One(part.groups.iter().map(|(group, _)| group.bytes()).collect());
        }
        let slabs = |g: &crate::Group| g.slabs.iter().map(|s| (dtypes[&s.dtype], s.bytes)).collect();
        Self::Many(part.groups.iter().map(|(group, _)| slabs(group)).collect())
    }

    pub(crate) fn slot(&self, flags: &[bool]) -> u128 {
        match self {
            Self::One(bytes) => bytes.iter().zip(flags).filter(|(_, f)| **f).map(|(b, _)| *b).max().unwrap_or(0).into(),
            Self::Many(groups) => {
                let mut largest = [0u64; place::DTYPES];
                for slab in groups.iter().zip(flags).filter(|(_, f)| **f).flat_map(|(slabs, _)| slabs) {
                    largest[slab.0] = largest[slab.0].max(slab.1);
                }
                largest.iter().map(|bytes| u128::from(*bytes)).sum()
            }
        }
    }
}

/// The most slots that are tried.
pub(crate) const SLOTS: u32 = MAX_SLOTS as u32;

/// Where groups stream from that have no page-locked copy.
pub(crate) fn unlocked(terms: &Terms, rates: &Rates) -> HostTier {
    if rates.has_tiers() && terms.ring { HostTier::Staged } else { HostTier::Mapped }
}
