//! What one component can be had for: placements of which none is both larger and slower than another.

use crate::{
    HostTier, Strategy, budget,
    family::{Family, Set},
    part::Part,
    place,
    rates::{Rates, Times},
    recurrence::{Course, MAX_SLOTS, Work},
};
use alloc::{collections::BTreeMap, vec::Vec};

/// Streamed groups are page-locked in quarters of their number.
pub(crate) const QUARTERS: u8 = 4;

/// A placement of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) set: Set,
    pub(crate) slots: u32,
    /// Quarters of the streamed groups that have page-locked copies.
    pub(crate) locked: u8,
    /// Stays on the device between phases.
    pub(crate) keep: bool,
    /// Engine bytes.
    pub(crate) device: u64,
    /// Page-locked bytes.
    pub(crate) host: u64,
    /// Its part of a request, nanoseconds.
    pub(crate) time: u64,
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
    /// Whether the ring of staging buffers fits the host; without it nothing is page-locked either.
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
    /// A pass: compute, link, and staging where nothing is page-locked.
    work: Work,
    load: u64,
}

/// One component's candidates; which of them are tried is a matter of [`Terms`].
pub(crate) struct Frontier<'p, 'a> {
    pub(crate) part: &'p Part<'a>,
    pub(crate) family: Family,
    rates: Rates,
    terms: Terms,
    /// Per group: streamed from where it is not page-locked, and page-locked.
    times: Vec<[Times; 2]>,
    candidates: Vec<Candidate>,
    /// The least it can take, and the least with which copies run beside compute.
    pub(crate) least: u64,
    pub(crate) least_overlapped: u64,
    lone: Option<Candidate>,
}

impl<'p, 'a> Frontier<'p, 'a> {
    /// Lists candidates. `counts` bounds how many counts of a stack are tried.
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
            least: u64::MAX,
            least_overlapped: u64::MAX,
            lone: None,
        };
        this.list();
        this
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

    fn list(&mut self) {
        let sets: Vec<Set> = match (self.terms.asked, self.terms.resident) {
            (Strategy::NoOffload | Strategy::ModelOffload, _) => Vec::from([Set::NONE]),
            (Strategy::GroupOffload, _) => Vec::from([self.family.all()]),
            (_, Some(resident)) => Vec::from([self.family.rung(resident as usize)]),
            _ => self.family.sets().to_vec(),
        };
        let (compute, total, slabs) = (self.part.compute(), self.part.bytes(), Slabs::of(self.part));
        let unknown = self.part.unknown() > 0;
        let mut flags = Vec::new();
        for set in sets {
            self.family.mark(set, &mut flags);
            let (mut bytes, mut count, mut work) = (0, 0, Work { compute, ..Work::default() });
            for (index, _) in flags.iter().enumerate().filter(|(_, streams)| **streams) {
                bytes += self.part.groups[index].1.bytes;
                count += 1;
                work.stage = work.stage.saturating_add(self.times[index][0].0);
                work.copy = work.copy.saturating_add(self.times[index][0].1);
            }
            let load = self.part.load(&self.rates, |i| flags[i]);
            let slot = slabs.slot(&flags);
            for slots in 1..=self.terms.slot_cap.min(count).max(1) {
                let device = total - bytes + if count == 0 { 0 } else { slot * u128::from(slots) };
                let Ok(device) = u64::try_from(device) else { continue };
                let candidate = Candidate { set, slots: slots.min(count), device, work, load };
                self.least = self.least.min(device);
                // Compute counts as zero where it is unknown, so one slot would always look best, and yet copies could
                // hide behind nothing. It is for where two slots do not fit.
                if unknown && slots == 1 && count > 1 && self.terms.slot_cap > 1 {
                    if self.lone.is_none_or(|lone| device < lone.device) {
                        self.lone = Some(candidate);
                    }
                } else {
                    self.least_overlapped = self.least_overlapped.min(device);
                    self.candidates.push(candidate);
                }
            }
        }
        self.candidates.sort_by_key(|c| (c.device, c.work.bound(), c.slots));
    }

    /// The placements worth having, fastest first. `lone`: two slots do not fit somewhere.
    pub(crate) fn choices(&self, keep_cap: Option<u64>, load_cap: Option<u64>, lone: bool) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (keep, cap) in [(true, keep_cap), (false, load_cap)] {
            let Some(cap) = cap else { continue };
            let mut kept: Vec<Choice> = Vec::new();
            let mut flags = Vec::new();
            for candidate in self.candidates.iter().take_while(|c| c.device <= cap) {
                self.weigh(candidate, keep, &mut flags, &mut kept);
            }
            if let Some(candidate) = self.lone.filter(|c| lone && c.device <= cap) {
                let mut alone = Vec::new();
                self.weigh(&candidate, keep, &mut flags, &mut alone);
                kept.extend(alone);
            }
            choices.append(&mut kept);
        }
        choices.sort_by_key(|c| (c.time, c.device, c.host));
        choices
    }

    /// Adds what a candidate is worth having for.
    fn weigh(&self, candidate: &Candidate, keep: bool, flags: &mut Vec<bool>, kept: &mut Vec<Choice>) {
        let beaten = |time, host, kept: &[Choice]| kept.iter().rev().any(|c| c.time <= time && c.host <= host);
        // Page-locking saves the staging, at the most.
        let tiers = candidate.slots > 0 && self.terms.lock_cap > 0 && self.rates.has_tiers();
        let locked = Work { stage: 0, ..candidate.work };
        let bound = self.bound(candidate, if tiers { locked } else { candidate.work }, keep);
        if beaten(bound, 0, kept) {
            return;
        }
        self.family.mark(candidate.set, flags);
        let (mut quota, mut most) = (usize::MAX, if tiers { QUARTERS } else { 0 });
        for locked in 0..=QUARTERS {
            if locked > most || quota == self.quota(flags, locked) {
                continue;
            }
            quota = self.quota(flags, locked);
            let tiers = self.tiers(flags, locked);
            let host = tiers.iter().zip(&self.part.groups).filter(|(t, _)| **t == Some(HostTier::PageLocked));
            let host = host.map(|(_, (_, facts))| facts.bytes).sum::<u128>();
            if host > self.terms.lock_cap.into() {
                break;
            }
            let host = host as u64;
            let times = |i: usize| tiers[i].map(|t| self.times[i][usize::from(t == HostTier::PageLocked)]);
            let time = self.time(&self.part.course(candidate.slots as usize, times), candidate, keep);
            if time <= bound {
                // Nothing is left to save.
                most = locked;
            }
            if !beaten(time, host, kept) {
                let Candidate { set, slots, device, .. } = *candidate;
                kept.push(Choice { set, slots, locked, keep, device, host, time });
            }
        }
    }

    /// No order of copies is faster.
    fn bound(&self, candidate: &Candidate, work: Work, keep: bool) -> u64 {
        let load = if keep { 0 } else { candidate.load };
        self.part.visits.iter().filter(|(_, passes)| *passes > 0).fold(0, |sum: u64, (_, passes)| {
            sum.saturating_add(load).saturating_add(work.bound().saturating_mul(*passes))
        })
    }

    fn time(&self, course: &Course, candidate: &Candidate, keep: bool) -> u64 {
        let load = if keep { 0 } else { candidate.load };
        let mut last = (0, 0);
        self.part.visits.iter().filter(|(_, passes)| *passes > 0).fold(0, |sum: u64, (_, passes)| {
            if last.0 != *passes {
                last = (*passes, course.visit(*passes, keep, load, &mut ()).total);
            }
            sum.saturating_add(last.1)
        })
    }

    /// How many of the streamed groups so many quarters are.
    fn quota(&self, flags: &[bool], locked: u8) -> usize {
        flags.iter().filter(|streams| **streams).count() * usize::from(locked) / usize::from(QUARTERS)
    }

    /// Where each group streams from, given which stream; the page-locked ones are spread evenly among them.
    fn tiers(&self, flags: &[bool], locked: u8) -> Vec<Option<HostTier>> {
        let count = flags.iter().filter(|streams| **streams).count();
        let (quota, unlocked) = (self.quota(flags, locked), self.terms.unlocked(&self.rates));
        let mut at = 0;
        let tier = |streams: &bool| {
            streams.then(|| {
                // Bresenham's line: `quota` of `count`.
                let (before, after) = (at * quota / count, (at + 1) * quota / count);
                at += 1;
                if after > before { HostTier::PageLocked } else { unlocked }
            })
        };
        flags.iter().map(tier).collect()
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
        let candidate = Candidate { set: Set::NONE, slots: 0, device, work: Work::default(), load };
        let course = self.part.course(0, |_| None);
        let time = self.time(&course, &candidate, keep);
        Some(Choice { set: Set::NONE, slots: 0, locked: 0, keep, device, host: 0, time })
    }

    pub(crate) fn slot_bytes(&self, tiers: &[Option<HostTier>]) -> u64 {
        let flags: Vec<bool> = tiers.iter().map(Option::is_some).collect();
        crate::notes::capped(Slabs::of(self.part).slot(&flags))
    }
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
