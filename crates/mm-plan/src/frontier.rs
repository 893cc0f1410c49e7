//! What one component can be had for: the best of its placements within any room, simulated only as far as that takes.

use crate::{
    HostTier, Strategy, budget,
    candidates::{self, Candidate, Candidates, Entry, SLOTS, Slabs},
    family::{Family, Set, THOROUGH},
    notes::capped,
    part::Part,
    price::Hull,
    rates::{Rates, Times},
    tree::Tree,
};
use alloc::{collections::BTreeMap, vec::Vec};
use core::cell::{Cell, RefCell};

/// To set up a simulation takes so many steps per group.
const SIMULATION: usize = 3;

/// Work that was done, and after how much the best so far is taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steps {
    pub(crate) done: usize,
    pub(crate) limit: usize,
}

impl Steps {
    pub(crate) fn are_over(&self) -> bool {
        self.done > self.limit
    }
}

/// A placement of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) set: Set,
    pub(crate) slots: u32,
    /// How many of the streamed groups have page-locked copies.
    pub(crate) locked: u32,
    /// Stays on the device between phases.
    pub(crate) keep: bool,
    /// Page-locked bytes.
    pub(crate) host: u64,
    pub(crate) score: Score,
    /// Place among the candidates; `None`: it is none of them.
    candidate: Option<u32>,
}

impl Choice {
    /// Engine bytes.
    pub(crate) fn device(&self) -> u64 {
        self.score.device
    }

    /// Its part of a request, nanoseconds.
    pub(crate) fn time(&self) -> u64 {
        self.score.time
    }
}

/// How good placements are: the fastest is best. Of equals the one that copies least: what is predicted to hide may not, and
/// takes the link and the host's memory. Of those the smallest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// Nanoseconds.
    pub(crate) time: u64,
    /// Bytes that cross the link in a request.
    pub(crate) traffic: u64,
    /// Engine bytes, all components.
    pub(crate) device: u64,
}

impl core::ops::Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            time: self.time.saturating_add(other.time),
            traffic: self.traffic.saturating_add(other.traffic),
            device: self.device.saturating_add(other.device),
        }
    }
}

/// What a component may be placed as.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// `Auto` where the planner is free.
    pub(crate) asked: Strategy,
    /// Residents of the main stack that were asked for.
    pub(crate) resident: Option<u32>,
    pub(crate) slot_cap: u32,
    /// Page-locked bytes that all may have together.
    pub(crate) lock_cap: u64,
    /// Whether groups without a page-locked copy go through the ring of staging buffers.
    pub(crate) ring: bool,
}

/// Bytes there are for one component.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// In all phases.
    pub(crate) between: u128,
    /// In those in which it is active.
    pub(crate) within: u128,
    /// Page-locked, for this component alone.
    pub(crate) host: u64,
}

/// Whether it stays, bytes that may be page-locked.
type Asked = (bool, u64);

/// A candidate, whether it stays, groups page-locked.
type Key = (u32, bool, u32);

/// One component's placements; which there are is a matter of [`Terms`].
pub(crate) struct Frontier<'p, 'a> {
    pub(crate) part: &'p Part<'a>,
    pub(crate) family: Family,
    rates: Rates,
    terms: Terms,
    /// Per group: streamed from where it is not page-locked, and page-locked.
    times: Vec<[Times; 2]>,
    candidates: Candidates,
    /// What was simulated: page-locked bytes and nanoseconds.
    known: RefCell<BTreeMap<Key, (u64, u64)>>,
    /// Which is best, by what was asked.
    trees: RefCell<Vec<(Asked, Tree)>>,
    /// What it takes at least if it stays between phases.
    pub(crate) hull: Hull,
}

impl<'p, 'a> Frontier<'p, 'a> {
    /// Lists them. `counts` bounds how many counts of a stack are tried; `all`: few groups are tried in every way.
    pub(crate) fn new(part: &'p Part<'a>, rates: Rates, mut terms: Terms, counts: usize, all: bool) -> Self {
        // Where there is too much to try, not more slots than rule `Threshold` has.
        terms.slot_cap = terms.slot_cap.clamp(1, if counts < THOROUGH { 2 } else { SLOTS });
        let family = Family::of(part, counts, all);
        let unlocked = candidates::unlocked(&terms, &rates);
        let times = |g: &crate::Group| [rates.stream(g, unlocked), rates.stream(g, HostTier::PageLocked)];
        let times: Vec<[Times; 2]> = part.groups.iter().map(|(group, _)| times(group)).collect();
        let candidates = Candidates::of(part, &rates, &terms, &family, &times);
        let hull = Hull::of(candidates.kept.iter().map(|e| (e.bound.device, e.bound.time)).collect());
        let (known, trees) = Default::default();
        Self { part, family, rates, terms, times, candidates, known, trees, hull }
    }

    /// The least it can take.
    pub(crate) fn least(&self) -> u64 {
        self.candidates.least
    }

    /// Residents of the main stack that were asked for.
    pub(crate) fn resident(&self) -> Option<u32> {
        self.terms.resident
    }

    pub(crate) fn asked(&self) -> Strategy {
        self.terms.asked
    }

    /// Stays on the device whatever else is active, by order.
    pub(crate) fn pinned(&self) -> bool {
        self.terms.asked == Strategy::NoOffload
    }

    /// Device bytes with everything streamed that may be.
    pub(crate) fn streaming(&self) -> u128 {
        match self.terms.asked {
            Strategy::NoOffload | Strategy::ModelOffload => self.part.bytes(),
            _ => budget::streaming(self.part, self.terms.slot_cap),
        }
    }

    /// The best placement that fits. Adds to `steps` what it looked at.
    pub(crate) fn fastest(&self, room: Room, steps: &mut Steps) -> Option<Choice> {
        let stays = self.best_of(true, room, steps);
        let leaves = self.best_of(false, room, steps);
        stays.into_iter().chain(leaves).min_by_key(|choice| choice.score)
    }

    /// The best that stays between phases, or that does not.
    ///
    /// What looks best by its bound is simulated and takes its place by its time, until the best is one that was simulated.
    pub(crate) fn best_of(&self, keep: bool, room: Room, steps: &mut Steps) -> Option<Choice> {
        let (entries, bytes) =
            if keep { (&self.candidates.kept, room.between) } else { (&self.candidates.apart, room.within) };
        let fit = entries.partition_point(|e| u128::from(e.bound.device) <= bytes);
        let mut trees = self.trees.borrow_mut();
        let asked = (keep, room.host);
        let at = trees.iter().position(|(known, _)| *known == asked).unwrap_or_else(|| {
            steps.done += entries.len();
            let bound = |e: &Entry| {
                let candidate = &self.candidates.all[e.candidate as usize];
                Some(Score { time: e.bound.time.max(self.staging(candidate, room.host)), ..e.bound })
            };
            trees.push((asked, Tree::new(entries.iter().map(bound).collect())));
            trees.len() - 1
        });
        let tree = &mut trees[at].1;
        loop {
            steps.done += 1;
            let (place, known) = tree.best(fit)?;
            if let Some(choice) = known {
                return Some(choice);
            }
            let entry = &entries[place];
            let locked = self.most_locked(entry, room.host, steps);
            let choice = self.choice(entry, keep, locked, room.host, steps);
            tree.set(place, choice);
            // Where work has run out, what looks best has to do.
            if steps.are_over() && choice.is_some() {
                return choice;
            }
        }
    }

    /// What takes least of everything; what need not stay between phases does not.
    pub(crate) fn smallest(&self) -> Option<Choice> {
        let keep = self.candidates.apart.is_empty();
        let entries = if keep { &self.candidates.kept } else { &self.candidates.apart };
        self.choice(entries.first()?, keep, 0, 0, &mut Steps::default())
    }

    /// The same placement with no more page-locked than makes it faster.
    pub(crate) fn unlocked(&self, choice: Choice) -> Choice {
        let Some(candidate) = choice.candidate.filter(|_| choice.locked > 0) else { return choice };
        let entry = Entry { bound: choice.score, candidate };
        // The fewest that are as fast: more are never slower.
        let (mut low, mut high, mut best) = (0, choice.locked, choice);
        while low < high {
            let middle = (low + high) / 2;
            match self.choice(&entry, choice.keep, middle, choice.host, &mut Steps::default()) {
                Some(fewer) if fewer.time() <= choice.time() => (high, best) = (middle, fewer),
                _ => low = middle + 1,
            }
        }
        best
    }

    /// All of it resident, staying between phases or not; whether it fits is for the caller.
    pub(crate) fn whole(&self, keep: bool) -> Option<Choice> {
        let device = u64::try_from(self.part.bytes()).ok()?;
        let load = if keep { 0 } else { self.part.load(&self.rates, |_| false) };
        let course = self.part.course(0, |_| None);
        let time = self.part.over_visits(|passes| course.visit(passes, keep, load, &mut ()).total);
        let traffic = if keep { 0 } else { self.part.over_visits(|_| device) };
        let score = Score { time, traffic, device };
        Some(Choice { set: Set::NONE, slots: 0, locked: 0, keep, host: 0, score, candidate: None })
    }

    /// Per group of a choice: where it streams from.
    pub(crate) fn placed(&self, choice: &Choice) -> Vec<Option<HostTier>> {
        let mut flags = Vec::new();
        self.family.mark(choice.set, &mut flags);
        self.tiers(&flags, choice.locked)
    }

    pub(crate) fn slot_bytes(&self, tiers: &[Option<HostTier>]) -> u64 {
        let flags: Vec<bool> = tiers.iter().map(Option::is_some).collect();
        capped(Slabs::of(self.part).slot(&flags))
    }

    /// How many page-locked copies the host has room for.
    fn most_locked(&self, entry: &Entry, host: u64, steps: &mut Steps) -> u32 {
        let candidate = self.candidates.all[entry.candidate as usize];
        if host == 0 || !self.rates.has_tiers() || self.terms.lock_cap == 0 {
            return 0;
        }
        if candidate.bytes <= host {
            return candidate.streamed;
        }
        steps.done += self.part.groups.len();
        let mut flags = Vec::new();
        self.family.mark(candidate.set, &mut flags);
        let streamed: Vec<usize> = (0..flags.len()).filter(|i| flags[*i]).collect();
        let mut left = u128::from(host);
        let fits = |place: &usize| {
            let bytes = self.part.groups[streamed[*place]].1.bytes;
            let fits = bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        };
        spread(streamed.len()).take_while(fits).count() as u32
    }

    /// What filling page-locked memory takes at the least with so many bytes of copies: a bound too, nanoseconds.
    fn staging(&self, candidate: &Candidate, host: u64) -> u64 {
        match candidate.bytes.saturating_sub(host) {
            0 => 0,
            // Each has a slot of its own.
            _ if candidate.slots == candidate.streamed => 0,
            bytes => self.rates.least(0, bytes.into()).saturating_mul(self.part.passes()),
        }
    }

    /// What an entry is with so many groups page-locked; `None`: that is more than the host has.
    fn choice(&self, entry: &Entry, keep: bool, locked: u32, host: u64, steps: &mut Steps) -> Option<Choice> {
        let candidate = self.candidates.all[entry.candidate as usize];
        let key = (entry.candidate, keep, locked);
        let known = self.known.borrow().get(&key).copied();
        let (page_locked, time) = known.unwrap_or_else(|| {
            let found = self.simulate(&candidate, keep, locked, steps);
            self.known.borrow_mut().insert(key, found);
            found
        });
        let Candidate { set, slots, .. } = candidate;
        let (score, candidate) = (Score { time, ..entry.bound }, Some(entry.candidate));
        (page_locked <= host).then_some(Choice { set, slots, locked, keep, host: page_locked, score, candidate })
    }

    /// Page-locked bytes and nanoseconds.
    fn simulate(&self, candidate: &Candidate, keep: bool, locked: u32, steps: &mut Steps) -> (u64, u64) {
        let mut flags = Vec::new();
        self.family.mark(candidate.set, &mut flags);
        // Mostly all or nothing is page-locked.
        let (page_locked, course) = if locked == 0 || locked == candidate.streamed {
            let tier = usize::from(locked > 0);
            let times = |i: usize| flags[i].then(|| self.times[i][tier]);
            (if locked > 0 { candidate.bytes } else { 0 }, self.part.course(candidate.slots as usize, times))
        } else {
            let tiers = self.tiers(&flags, locked);
            let is_locked = |tier: &Option<HostTier>| *tier == Some(HostTier::PageLocked);
            let copies = tiers.iter().zip(&self.part.groups).filter(|(tier, _)| is_locked(tier));
            let times = |i: usize| tiers[i].map(|_| self.times[i][usize::from(is_locked(&tiers[i]))]);
            let bytes = capped(copies.map(|(_, (_, facts))| facts.bytes).sum::<u128>());
            (bytes, self.part.course(candidate.slots as usize, times))
        };
        let load = if keep { 0 } else { candidate.load };
        let simulated = Cell::new(SIMULATION * self.part.groups.len());
        let time = self.part.over_visits(|passes| {
            let outcome = course.visit(passes, keep, load, &mut ());
            simulated.set(simulated.get() + outcome.steps);
            outcome.total
        });
        steps.done += simulated.get();
        (page_locked, time)
    }

    /// Where each group streams from, given which stream. The page-locked ones are spread among them, and fewer are among
    /// more: page-locking more is never slower.
    fn tiers(&self, flags: &[bool], locked: u32) -> Vec<Option<HostTier>> {
        let unlocked = candidates::unlocked(&self.terms, &self.rates);
        let mut tiers: Vec<_> = flags.iter().map(|streams| streams.then_some(unlocked)).collect();
        if locked > 0 {
            let streamed: Vec<usize> = (0..flags.len()).filter(|i| flags[*i]).collect();
            for place in spread(streamed.len()).take(locked as usize) {
                tiers[streamed[place]] = Some(HostTier::PageLocked);
            }
        }
        tiers
    }
}

/// The numbers below `count`, any first ones of them far apart: with their bits reversed.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let size = count.next_power_of_two();
    let reversed = move |i: usize| if size == 1 { 0 } else { i.reverse_bits() >> (size.leading_zeros() + 1) };
    (0..size).map(reversed).filter(move |place| *place < count)
}
