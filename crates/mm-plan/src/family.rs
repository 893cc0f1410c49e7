//! Which sets of groups are tried as streamed ones.
//!
//! The family depends on the component alone, never on the machine: so more memory or faster links only ever add to what
//! fits or speed up what is there, and the best plan never gets worse.
//!
//! - Up to [`EXHAUSTIVE`] groups: every set.
//! - Groups of one or two kinds (equal bytes and compute): every count of each kind, evenly spaced.
//! - Always: the ladder that rule `Threshold` goes down (the main stack evenly spaced, then the others).
//! - Groups of more kinds: those up to a size, in proportion to compute, so that copies have compute to hide behind.

use crate::{Group, part::Part, place, spacing};
use alloc::{vec, vec::Vec};

/// Components with so many groups are tried in every way.
pub(crate) const EXHAUSTIVE: usize = 10;
/// Sizes of groups above which they stay resident, at the most.
const SIZES: usize = 3;
/// Counts that are tried for each of them, about.
const SHARES: usize = 24;

/// Counts of a stack from which on there is time to try everything else as well.
pub(crate) const THOROUGH: usize = 64;

/// A set of streamed groups of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// The groups whose bits are set.
    Mask(u32),
    /// So many of the first and of the second kind, evenly spaced.
    Kinds(u32, u32),
    /// All stacks before this place in the ladder's order, and so many groups of that one, evenly spaced.
    Ladder(u32, u32),
    /// Of the groups not larger than the size at this place, about `count` of `of` parts of their bytes.
    Spread { size: u32, count: u32, of: u32 },
}

impl Set {
    /// Nothing streams.
    pub(crate) const NONE: Self = Self::Mask(0);
}

/// The sets that are tried for one component.
pub(crate) struct Family {
    /// Per group its kind; empty if there are more than two.
    kinds: Vec<u8>,
    counts: [u32; 2],
    /// Stacks in the ladder's order: where each starts and how many groups it has.
    ladder: Vec<(usize, usize)>,
    /// Largest first.
    sizes: Vec<u128>,
    /// Cumulative share of the pass that each group's compute ends at, in 2^20ths; of its bytes where compute is unknown.
    shares: Vec<u64>,
    bytes: Vec<u128>,
    /// Every set is tried.
    pub(crate) exhaustive: bool,
    sets: Vec<Set>,
}

impl Family {
    /// `limit`: about so many counts of a stack are tried, the largest and the smallest among them. `all`: every set may
    /// be tried where groups are few.
    pub(crate) fn of(part: &Part<'_>, limit: usize, all: bool) -> Self {
        let groups = part.groups.len();
        let mut family = Self {
            kinds: Vec::new(),
            counts: [0; 2],
            ladder: Vec::new(),
            sizes: Vec::new(),
            shares: Vec::new(),
            bytes: part.groups.iter().map(|(_, facts)| facts.bytes).collect(),
            exhaustive: !part.streamable || (all && groups <= EXHAUSTIVE),
            sets: vec![Set::NONE],
        };
        if !part.streamable {
            return family;
        }
        family.ladder = ladder(part);
        if family.exhaustive {
            family.sets.extend((1..1u32 << groups).map(Set::Mask));
            return family;
        }
        if let Some(kinds) = kinds(part) {
            kinds.iter().for_each(|kind| family.counts[usize::from(*kind)] += 1);
            family.kinds = kinds;
            let [first, second] = family.counts;
            // Together about as many as two of one kind alone.
            let each = if second == 0 { limit } else { root(limit * 8) };
            for a in counts(first as usize, each) {
                family
                    .sets
                    .extend(counts(second as usize, each).map(|b| Set::Kinds(a, b)).filter(|s| *s != Set::Kinds(0, 0)));
            }
        } else {
            family.spread(part, limit);
        }
        if family.stacks_are_kinds() {
            return family;
        }
        let rungs: usize = family.ladder.iter().map(|(_, length)| length).sum();
        let step = rungs.div_ceil(limit.max(1)).max(1);
        let mut at = 0;
        for (place, (_, length)) in family.ladder.iter().enumerate() {
            // Every so many rungs, and the last one.
            let tried = (1..=*length).filter(|count| (at + count) % step == 0 || at + count == rungs);
            family.sets.extend(tried.map(|count| Set::Ladder(place as u32, count as u32)));
            at += length;
        }
        family
    }

    /// Each stack has a kind of its own: counts of kinds are counts of stacks.
    fn stacks_are_kinds(&self) -> bool {
        let kind = |(start, length): &(usize, usize)| {
            let kinds = self.kinds.get(*start..start + length)?;
            kinds.iter().all(|kind| *kind == kinds[0]).then(|| kinds[0])
        };
        let kinds: Option<Vec<u8>> = self.ladder.iter().map(kind).collect();
        kinds.is_some_and(|mut kinds| {
            let stacks = kinds.len();
            kinds.sort_unstable();
            kinds.dedup();
            kinds.len() == stacks
        })
    }

    fn spread(&mut self, part: &Part<'_>, limit: usize) {
        let mut sizes = self.bytes.clone();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        let some = sizes.len().min((limit * SIZES / THOROUGH).clamp(1, SIZES));
        self.sizes = (0..some).map(|i| sizes[i * sizes.len() / some]).collect();
        let known = part.compute() > 0;
        let weight = |i: usize| if known { u128::from(part.groups[i].1.compute) } else { self.bytes[i] };
        let total = (0..self.bytes.len()).map(weight).sum::<u128>().max(1);
        let mut sum = 0;
        self.shares = (0..self.bytes.len())
            .map(|i| {
                sum += weight(i);
                (sum.saturating_mul(1 << 20) / total) as u64
            })
            .collect();
        for (place, size) in self.sizes.iter().enumerate() {
            let of = self.bytes.iter().filter(|bytes| *bytes <= size).count() as u32;
            let tried = counts(of as usize, limit.min(SHARES)).filter(|c| *c > 0);
            self.sets.extend(tried.map(|count| Set::Spread { size: place as u32, count, of }));
        }
    }

    /// All sets, the empty one first.
    pub(crate) fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// The set in which everything streams that can.
    pub(crate) fn all(&self) -> Set {
        match self.ladder.len() {
            0 => Set::NONE,
            stacks => Set::Ladder(stacks as u32 - 1, self.ladder[stacks - 1].1 as u32),
        }
    }

    /// Groups of the main stack; zero if nothing can be streamed.
    pub(crate) fn main_len(&self) -> usize {
        self.ladder.first().map_or(0, |(_, length)| *length)
    }

    /// The ladder's rung on which `resident` groups of the main stack stay, clamped, and all of the others.
    pub(crate) fn rung(&self, resident: usize) -> Set {
        match self.ladder.first() {
            Some((_, length)) if resident < *length => Set::Ladder(0, (length - resident) as u32),
            _ => Set::NONE,
        }
    }

    /// Marks the groups of a set in `flags`, which is as long as there are groups.
    pub(crate) fn mark(&self, set: Set, flags: &mut Vec<bool>) {
        flags.clear();
        flags.resize(self.bytes.len(), false);
        match set {
            Set::Mask(mask) => flags.iter_mut().enumerate().take(32).for_each(|(i, f)| *f = mask >> i & 1 == 1),
            Set::Kinds(a, b) => {
                for (kind, count) in [(0, a), (1, b)] {
                    let mut members = self.kinds.iter().enumerate().filter(|(_, k)| **k == kind).map(|(i, _)| i);
                    let mut at = 0;
                    for position in spacing::positions(self.counts[usize::from(kind)] as usize, count as usize) {
                        if let Some(group) = members.nth(position - at) {
                            flags[group] = true;
                        }
                        at = position + 1;
                    }
                }
            }
            Set::Ladder(place, count) => {
                for (at, (start, length)) in self.ladder.iter().enumerate().take(place as usize + 1) {
                    let count = if at == place as usize { count as usize } else { *length };
                    spacing::positions(*length, count).for_each(|position| flags[start + position] = true);
                }
            }
            Set::Spread { size, count, of } => self.proportional(self.sizes[size as usize], count, of, flags),
        }
    }

    /// Streams `count` of `of` parts of the bytes of groups up to `size`, so that at each point of a pass about as large a
    /// share of them has been copied as has been computed.
    fn proportional(&self, size: u128, count: u32, of: u32, flags: &mut [bool]) {
        let small = || self.bytes.iter().filter(|bytes| **bytes <= size);
        if count >= of {
            self.bytes.iter().zip(flags).for_each(|(bytes, flag)| *flag = *bytes <= size);
            return;
        }
        let wanted = small().sum::<u128>() * u128::from(count) / u128::from(of.max(1));
        let mut copied = 0;
        for ((bytes, share), flag) in self.bytes.iter().zip(&self.shares).zip(flags) {
            if *bytes <= size && copied + bytes / 2 <= (wanted * u128::from(*share)) >> 20 {
                *flag = true;
                copied += bytes;
            }
        }
    }
}

/// Numbers from 0 to `n`, both included, about `limit` of them.
fn counts(n: usize, limit: usize) -> impl Iterator<Item = u32> + Clone {
    let step = n.div_ceil(limit.max(1)).max(1);
    (0..n).step_by(step).chain([n]).map(|count| count as u32)
}

fn root(n: usize) -> usize {
    (1..).take_while(|i| i * i <= n).last().unwrap_or(1)
}

/// The kind of each group, if there are no more than two.
fn kinds(part: &Part<'_>) -> Option<Vec<u8>> {
    let mut known: Vec<&Group> = Vec::new();
    let mut kinds = Vec::with_capacity(part.groups.len());
    let mut start = 0;
    for stack in &part.component.stacks {
        for (group, _) in &part.groups[start..start + stack.groups.len()] {
            let same = |k: &&Group| {
                k.slabs == group.slabs && k.compute_ns == group.compute_ns && k.host_bytes == group.host_bytes
            };
            let kind = match known.iter().position(same) {
                Some(kind) => kind,
                None if known.len() < 2 => {
                    known.push(group);
                    known.len() - 1
                }
                None => return None,
            };
            kinds.push(kind as u8);
        }
        start += stack.groups.len();
    }
    Some(kinds)
}

/// Stacks as rule `Threshold` demotes them: the one with most bytes first, then in order; empty ones left out.
fn ladder(part: &Part<'_>) -> Vec<(usize, usize)> {
    let mut start = 0;
    let mut stacks = Vec::new();
    let main = place::main_stack(part.component);
    for (index, stack) in part.component.stacks.iter().enumerate() {
        if !stack.groups.is_empty() {
            stacks.push((Some(index) != main, start, stack.groups.len()));
        }
        start += stack.groups.len();
    }
    stacks.sort_by_key(|(other, start, _)| (*other, *start));
    stacks.into_iter().map(|(_, start, length)| (start, length)).collect()
}
