//! What one component can be had for: its placements by the least time they could take, simulated when somebody asks.

use crate::{
    HostTier, Strategy, budget,
    family::{Family, Set},
    notes::capped,
    part::Part,
    place,
    price::Hull,
    rates::{Rates, Times},
    recurrence::{MAX_SLOTS, Work},
};
use alloc::{collections::BTreeMap, vec::Vec};
use core::cell::RefCell;

/// Streamed groups are page-locked in sixteenths of their number.
const SHARES: u8 = 16;
/// A simulation takes so many steps per group.
const SIMULATION: usize = 4;

/// A placement of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) set: Set,
    pub(crate) slots: u32,
    /// Sixteenths of the streamed groups that have page-locked copies.
    pub(crate) locked: u8,
    /// Stays on the device between phases.
    pub(crate) keep: bool,
    /// Engine bytes.
    pub(crate) device: u64,
    /// Page-locked bytes.
    pub(crate) host: u64,
    /// Its part of a request, nanoseconds.
    pub(crate) time: u64,
    /// Bytes that cross the link in a request.
    pub(crate) traffic: u64,
}

impl Choice {
    pub(crate) fn score(&self) -> Score {
        Score { time: self.time, traffic: self.traffic, device: self.device }
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

impl Terms {
    /// Where groups stream from that have no page-locked copy.
    fn unlocked(&self, rates: &Rates) -> HostTier {
        if rates.has_tiers() && self.ring { HostTier::Staged } else { HostTier::Mapped }
    }
}

/// A set with a number of slots.
#[derive(Clone, Copy)]
struct Candidate {
    set: Set,
    slots: u32,
    device: u64,
    load: u64,
    streamed: u32,
    /// Bytes of a pass's copies.
    bytes: u64,
}

/// A candidate that stays between phases, or not.
pub(crate) struct Entry {
    /// Its part of a request takes no less time; the rest is exact.
    pub(crate) bound: Score,
    pub(crate) keep: bool,
    /// One slot for groups of unknown compute: for where two do not fit.
    lone: bool,
    candidate: u32,
}

/// Whether it stays, whether one slot may do, whether everything may be page-locked (else nothing), bytes.
type Asked = (bool, bool, bool, u64);

/// A candidate, whether it stays, sixteenths page-locked.
type Key = (u32, bool, u8);

/// Bytes there are for one component.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// In all phases.
    pub(crate) between: u128,
    /// In those in which it is active.
    pub(crate) within: u128,
    /// Page-locked.
    pub(crate) host: u64,
    /// One slot may do where compute is unknown.
    pub(crate) lone: bool,
}

/// One component's placements; which there are is a matter of [`Terms`].
pub(crate) struct Frontier<'p, 'a> {
    pub(crate) part: &'p Part<'a>,
    pub(crate) family: Family,
    rates: Rates,
    terms: Terms,
    /// Per group: streamed from where it is not page-locked, and page-locked.
    times: Vec<[Times; 2]>,
    candidates: Vec<Candidate>,
    /// The best first, as far as one can tell without simulating.
    entries: Vec<Entry>,
    /// What was simulated: page-locked bytes and nanoseconds.
    known: RefCell<BTreeMap<Key, (u64, u64)>>,
    /// Both what stays between phases and what does not are among them.
    both: bool,
    /// What was best: for all room from the key's bytes up to these.
    best: RefCell<BTreeMap<Asked, (u64, Option<Choice>)>>,
    /// What it takes at least if it stays between phases.
    pub(crate) hull: Hull,
    /// The entry that takes least, without and with those of one slot for unknown compute.
    smallest: [Option<usize>; 2],
    /// The least it can take, and the least with which copies run beside compute.
    pub(crate) least: u64,
    pub(crate) least_overlapped: u64,
}

impl<'p, 'a> Frontier<'p, 'a> {
    /// Lists them. `counts` bounds how many counts of a stack are tried; `all`: few groups are tried in every way.
    pub(crate) fn new(part: &'p Part<'a>, rates: Rates, mut terms: Terms, counts: usize, all: bool) -> Self {
        terms.slot_cap = terms.slot_cap.clamp(1, MAX_SLOTS as u32);
        let family = Family::of(part, counts, all);
        let unlocked = terms.unlocked(&rates);
        let times = |g: &crate::Group| [rates.stream(g, unlocked), rates.stream(g, HostTier::PageLocked)];
        let mut this = Self {
            part,
            family,
            rates,
            terms,
            times: part.groups.iter().map(|(group, _)| times(group)).collect(),
            candidates: Vec::new(),
            entries: Vec::new(),
            known: RefCell::default(),
            both: false,
            best: RefCell::default(),
            hull: Hull::default(),
            smallest: [None; 2],
            least: u64::MAX,
            least_overlapped: u64::MAX,
        };
        let keeps: &[bool] = match this.terms.asked {
            Strategy::NoOffload => &[true],
            Strategy::ModelOffload => &[false],
            _ => &[true, false],
        };
        this.both = keeps.len() > 1;
        this.list(keeps);
        this
    }

    /// Whether both what stays between phases and what does not are to be had.
    pub(crate) fn both(&self) -> bool {
        self.both
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

    fn list(&mut self, keeps: &[bool]) {
        let sets: Vec<Set> = match (self.terms.asked, self.terms.resident) {
            (Strategy::NoOffload | Strategy::ModelOffload, _) => Vec::from([Set::NONE]),
            (Strategy::GroupOffload, _) => Vec::from([self.family.all()]),
            (_, Some(resident)) => Vec::from([self.family.rung(resident as usize)]),
            _ => self.family.sets().to_vec(),
        };
        let (compute, total, slabs) = (self.part.compute(), self.part.bytes(), Slabs::of(self.part));
        let unknown = self.part.unknown() > 0;
        let mut flags = Vec::new();
        let tiers = self.terms.lock_cap > 0 && self.rates.has_tiers();
        for set in sets {
            self.family.mark(set, &mut flags);
            let (mut bytes, mut count, mut work) = (0, 0, Work { compute, ..Work::default() });
            for (index, _) in flags.iter().enumerate().filter(|(_, streams)| **streams) {
                bytes += self.part.groups[index].1.bytes;
                count += 1;
                let [(stage, copy), (_, locked)] = self.times[index];
                work.stage = work.stage.saturating_add(if tiers { 0 } else { stage });
                work.copy = work.copy.saturating_add(if tiers { locked } else { copy });
            }
            let load = self.part.load(&self.rates, |i| flags[i]);
            let slot = slabs.slot(&flags);
            for slots in 1..=self.terms.slot_cap.min(count).max(1) {
                let device = total - bytes + if count == 0 { 0 } else { slot * u128::from(slots) };
                let Ok(device) = u64::try_from(device) else { continue };
                self.least = self.least.min(device);
                // Compute counts as zero where it is unknown, so one slot would always look best, and yet copies could
                // hide behind nothing. It is for where two slots do not fit.
                let lone = unknown && slots == 1 && count > 1 && self.terms.slot_cap > 1;
                if !lone {
                    self.least_overlapped = self.least_overlapped.min(device);
                }
                let candidate = self.candidates.len() as u32;
                let bytes = capped(bytes);
                self.candidates.push(Candidate { set, slots: slots.min(count), device, load, streamed: count, bytes });
                for keep in keeps {
                    let bound = self.over_visits(|passes| {
                        let load = if *keep { 0 } else { load };
                        load.saturating_add(work.bound().saturating_mul(passes))
                    });
                    let loaded = if *keep { 0 } else { total - u128::from(bytes) };
                    let traffic = self.over_visits(|passes| capped(loaded + u128::from(bytes) * u128::from(passes)));
                    let bound = Score { time: bound, traffic, device };
                    self.entries.push(Entry { bound, keep: *keep, lone, candidate });
                }
            }
        }
        self.entries.sort_by_key(|e| (e.bound, e.keep, e.candidate));
        let kept = self.entries.iter().filter(|e| e.keep);
        self.hull = Hull::of(kept.map(|e| (e.bound.device, e.bound.time)).collect());
        for lone in [false, true] {
            let allowed = (0..self.entries.len()).filter(|i| lone || !self.entries[*i].lone);
            let size = |i: &usize| (self.entries[*i].keep, self.entries[*i].bound.device, *i);
            self.smallest[usize::from(lone)] = allowed.min_by_key(size);
        }
    }

    /// Sums up what a visit of so many passes takes.
    fn over_visits(&self, time: impl Fn(u64) -> u64) -> u64 {
        let visits = self.part.visits.iter().filter(|(_, passes)| *passes > 0);
        visits.fold(0, |sum: u64, (_, passes)| sum.saturating_add(time(*passes)))
    }

    /// The best first, as far as one can tell without simulating.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether an entry fits without page-locked copies.
    pub(crate) fn fits(&self, entry: &Entry, room: Room) -> bool {
        u128::from(entry.bound.device) <= if entry.keep { room.between } else { room.within }
            && (!entry.lone || room.lone)
    }

    /// What an entry is with so many sixteenths of its streamed groups page-locked; `None`: as fewer, or more than the host
    /// has.
    pub(crate) fn choice(&self, entry: &Entry, locked: u8, host: u64, steps: &mut usize) -> Option<Choice> {
        let candidate = self.candidates[entry.candidate as usize];
        if locked > 0
            && (host == 0
                || !self.rates.has_tiers()
                || self.quota(&candidate, locked) == self.quota(&candidate, locked - 1))
        {
            return None;
        }
        self.share(entry, locked, host, steps)
    }

    /// The most sixteenths for which the host has room; of those with as many groups the fewest.
    pub(crate) fn most_locked(&self, entry: &Entry, host: u64, steps: &mut usize) -> u8 {
        let candidate = self.candidates[entry.candidate as usize];
        if candidate.slots == 0 || host == 0 || !self.rates.has_tiers() || self.terms.lock_cap == 0 {
            return 0;
        }
        let mut most = SHARES;
        if candidate.bytes > host {
            *steps += self.part.groups.len();
            let mut flags = Vec::new();
            self.family.mark(candidate.set, &mut flags);
            let streamed: Vec<usize> = (0..flags.len()).filter(|i| flags[*i]).collect();
            let mut left = u128::from(host);
            let mut fits = |place: &usize| {
                let bytes = self.part.groups[streamed[*place]].1.bytes;
                let fits = bytes <= left;
                left = left.saturating_sub(bytes);
                fits
            };
            let count = spread(streamed.len()).take_while(&mut fits).count() as u32;
            most = (1..=SHARES).rev().find(|locked| self.quota(&candidate, *locked) <= count).unwrap_or(0);
        }
        while most > 0 && self.quota(&candidate, most - 1) == self.quota(&candidate, most) {
            most -= 1;
        }
        most
    }

    fn quota(&self, candidate: &Candidate, locked: u8) -> u32 {
        candidate.streamed * u32::from(locked) / u32::from(SHARES)
    }

    fn share(&self, entry: &Entry, locked: u8, host: u64, steps: &mut usize) -> Option<Choice> {
        let candidate = self.candidates[entry.candidate as usize];
        let key = (entry.candidate, entry.keep, locked);
        let known = self.known.borrow().get(&key).copied();
        let (page_locked, time) = match known {
            Some(known) => known,
            None => {
                let known = self.simulate(&candidate, entry.keep, locked, host, steps)?;
                self.known.borrow_mut().insert(key, known);
                known
            }
        };
        if page_locked > host {
            return None;
        }
        let Candidate { set, slots, device, .. } = candidate;
        let (traffic, keep) = (entry.bound.traffic, entry.keep);
        Some(Choice { set, slots, locked, keep, device, host: page_locked, time, traffic })
    }

    /// Some of an entry's times were simulated already.
    pub(crate) fn is_known(&self, entry: &Entry) -> bool {
        let from = (entry.candidate, entry.keep, 0);
        self.known.borrow().range(from..=(entry.candidate, entry.keep, SHARES)).next().is_some()
    }

    /// Page-locked bytes and nanoseconds; `None`: more bytes than the host has.
    fn simulate(
        &self,
        candidate: &Candidate,
        keep: bool,
        locked: u8,
        host: u64,
        steps: &mut usize,
    ) -> Option<(u64, u64)> {
        let mut flags = Vec::new();
        self.family.mark(candidate.set, &mut flags);
        let tiers = self.tiers(&flags, locked);
        let copies = tiers.iter().zip(&self.part.groups).filter(|(t, _)| **t == Some(HostTier::PageLocked));
        let page_locked = capped(copies.map(|(_, (_, facts))| facts.bytes).sum::<u128>());
        *steps += self.part.groups.len();
        if page_locked > host {
            return None;
        }
        let times = |i: usize| tiers[i].map(|t| self.times[i][usize::from(t == HostTier::PageLocked)]);
        let course = self.part.course(candidate.slots as usize, times);
        let load = if keep { 0 } else { candidate.load };
        *steps += SIMULATION * self.part.groups.len();
        Some((page_locked, self.over_visits(|passes| course.visit(passes, keep, load, &mut ()).total)))
    }

    /// The best placement that fits. Adds to `steps` what it looked at.
    pub(crate) fn fastest(&self, room: Room, steps: &mut usize) -> Option<Choice> {
        let stays = self.best_of(true, room, steps);
        let leaves = self.best_of(false, room, steps);
        stays.into_iter().chain(leaves).min_by_key(Choice::score)
    }

    /// The best that stays between phases, or that does not.
    pub(crate) fn best_of(&self, keep: bool, room: Room, steps: &mut usize) -> Option<Choice> {
        *steps += 1;
        if self.entries[0].keep != keep && !self.both {
            return None;
        }
        let bytes = if keep { room.between } else { room.within };
        let locks = match room.host {
            0 => Some(false),
            host => (self.part.bytes() <= host.into()).then_some(true),
        };
        // What is best with much room is best with all less that it still fits in.
        let key = |bytes: u64| (keep, room.lone, locks == Some(true), bytes);
        let most = u64::try_from(bytes).unwrap_or(u64::MAX);
        if locks.is_some()
            && let Some((_, (tried, best))) = self.best.borrow().range(key(0)..=key(most)).next_back()
            && most <= *tried
        {
            return *best;
        }
        let best = self.search(keep, room, steps);
        if locks.is_some() {
            let from = best.map_or(0, |best| best.device);
            self.best.borrow_mut().insert(key(from), (most, best));
        }
        best
    }

    fn search(&self, keep: bool, room: Room, steps: &mut usize) -> Option<Choice> {
        let mut best: Option<Choice> = None;
        let entries = || self.entries.iter().filter(|entry| entry.keep == keep);
        if self.rates.has_tiers() && self.part.bytes() > room.host.into() {
            // Where staging rules, their order says little: a good one to begin with leaves few to look at.
            *steps += self.entries.len();
            let promising = entries().filter(|entry| self.fits(entry, room));
            let promising =
                promising.min_by_key(|entry| (entry.bound.time.max(self.staged(entry, room.host)), entry.bound));
            best = promising.and_then(|e| self.choice(e, self.most_locked(e, room.host, steps), room.host, steps));
        }
        for entry in entries() {
            *steps += 1;
            if best.is_some_and(|best| entry.bound >= best.score()) {
                // The others are no better either.
                break;
            }
            if !self.fits(entry, room) || best.is_some_and(|best| self.staged(entry, room.host) > best.time) {
                continue;
            }
            // More page-locked is never slower.
            let found = self.choice(entry, self.most_locked(entry, room.host, steps), room.host, steps);
            best = best.into_iter().chain(found).min_by_key(Choice::score);
        }
        best
    }

    /// What filling page-locked memory takes at the least with so many bytes of copies: a bound too, nanoseconds.
    pub(crate) fn staged(&self, entry: &Entry, host: u64) -> u64 {
        match self.candidates[entry.candidate as usize].bytes.saturating_sub(host) {
            0 => 0,
            bytes => self.rates.least(0, bytes.into()).saturating_mul(self.part.passes()),
        }
    }

    /// What takes least of everything; what need not stay between phases does not.
    pub(crate) fn smallest(&self, lone: bool) -> Option<Choice> {
        self.choice(&self.entries[self.smallest[usize::from(lone)]?], 0, 0, &mut 0)
    }

    /// The same placement with no more page-locked than makes it faster.
    pub(crate) fn unlocked(&self, choice: Choice) -> Choice {
        let same = |e: &&Entry| {
            let candidate = &self.candidates[e.candidate as usize];
            e.keep == choice.keep && candidate.set == choice.set && candidate.slots == choice.slots
        };
        let Some(entry) = self.entries.iter().find(same) else { return choice };
        // The fewest sixteenths that are as fast: more are never slower.
        let (mut low, mut high, mut best) = (0, choice.locked, choice);
        while low < high {
            let middle = (low + high) / 2;
            match self.share(entry, middle, choice.host, &mut 0) {
                Some(fewer) if fewer.time <= choice.time => (high, best) = (middle, fewer),
                _ => low = middle + 1,
            }
        }
        best
    }

    /// Where each group streams from, given which stream. The page-locked ones are spread among them, and those of fewer
    /// sixteenths are among those of more: page-locking more is never slower.
    fn tiers(&self, flags: &[bool], locked: u8) -> Vec<Option<HostTier>> {
        let unlocked = self.terms.unlocked(&self.rates);
        let mut tiers: Vec<_> = flags.iter().map(|streams| streams.then_some(unlocked)).collect();
        if locked > 0 {
            let streamed: Vec<usize> = (0..flags.len()).filter(|i| flags[*i]).collect();
            let quota = streamed.len() * usize::from(locked) / usize::from(SHARES);
            for place in spread(streamed.len()).take(quota) {
                tiers[streamed[place]] = Some(HostTier::PageLocked);
            }
        }
        tiers
    }

    /// Per choice: where each group streams from.
    pub(crate) fn placed(&self, choice: &Choice) -> Vec<Option<HostTier>> {
        let mut flags = Vec::new();
        self.family.mark(choice.set, &mut flags);
        self.tiers(&flags, choice.locked)
    }

    /// All of it resident, staying between phases or not; whether it fits is for the caller.
    pub(crate) fn whole(&self, keep: bool) -> Option<Choice> {
        let device = u64::try_from(self.part.bytes()).ok()?;
        let load = self.part.load(&self.rates, |_| false);
        let load = if keep { 0 } else { load };
        let course = self.part.course(0, |_| None);
        let time = self.over_visits(|passes| course.visit(passes, keep, load, &mut ()).total);
        let traffic = if keep { 0 } else { self.over_visits(|_| device) };
        Some(Choice { set: Set::NONE, slots: 0, locked: 0, keep, device, host: 0, time, traffic })
    }

    pub(crate) fn slot_bytes(&self, tiers: &[Option<HostTier>]) -> u64 {
        let flags: Vec<bool> = tiers.iter().map(Option::is_some).collect();
        capped(Slabs::of(self.part).slot(&flags))
    }
}

/// The numbers below `count`, any first ones of them far apart: with their bits reversed.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let size = count.next_power_of_two();
    let reversed = move |i: usize| if size == 1 { 0 } else { i.reverse_bits() >> (size.leading_zeros() + 1) };
    (0..size).map(reversed).filter(move |place| *place < count)
}

/// Sizes of slots: the largest streamed slab per dtype.
enum Slabs {
    /// All groups have one slab of one dtype.
    One(Vec<u64>),
    Many(Vec<Vec<(usize, u64)>>),
}

impl Slabs {
    fn of(part: &Part<'_>) -> Self {
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

    fn slot(&self, flags: &[bool]) -> u128 {
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
