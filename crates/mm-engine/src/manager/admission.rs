//! Who may run beside whom: the rules alone, with no lock and no clock, so that they can be tried out in every order.
//!
//! - What is on the device never takes more than the plan's peak.
//! - A component has one run at a time. Who asks for one first gets it first.
//! - A later one may pass an earlier one that still waits for memory, and one that is on the device already may pass the one
//!   that would drive it out (weights would go back and forth with every pass of two loops), but only [`PASSES`] times: then it
//!   is the earlier one's turn. Passing one that has its room all the same costs nothing.
//! - A thread that runs something and asks for more is served before all others, as they wait for it to end.
//! - Nobody waits for what can never happen: he is told, by whom he waits for.

use std::collections::{BTreeMap, BTreeSet};

/// A component, whatever it is called.
pub(super) type Id = u64;

/// A place in the queue.
pub(super) type Ticket = u64;

/// How often one that waits for memory may be passed.
pub(super) const PASSES: u32 = 8;

/// What a plan grants.
#[derive(Clone, Default)]
pub(super) struct Shares {
    /// The most that may be on the device.
    pub(super) capacity: u64,
    pub(super) of: BTreeMap<Id, Share>,
}

/// What a plan grants one component.
#[derive(Clone, Default)]
pub(super) struct Share {
    pub(super) bytes: u64,
    /// It stays on the device between phases: the last to leave.
    pub(super) keep: bool,
    /// In which phases it is active.
    pub(super) phases: Vec<usize>,
}

pub(super) enum Answer {
    /// Go ahead; these leave the device first.
    Granted(Vec<Id>),
    Wait,
    Never(Never),
}

/// Why waiting would never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Never {
    /// Who asks runs this one himself.
    Own(Id),
    /// Threads that each run something wait for each other.
    Circle,
    /// It takes more than there is.
    TooLarge,
}

struct Held {
    bytes: u64,
    used: u64,
}

#[derive(PartialEq, Eq)]
enum Want {
    /// It has only just come, or was just served.
    Nothing,
    Run(Id),
    Change(Change),
}

/// Another plan that is to be put in force.
#[derive(PartialEq, Eq)]
struct Change {
    touched: BTreeSet<Id>,
    capacity: u64,
}

struct Waiting<W> {
    ticket: Ticket,
    who: W,
    want: Want,
    passed: u32,
}

/// `W` tells threads apart.
pub(super) struct Admission<W> {
    shares: Shares,
    held: BTreeMap<Id, Held>,
    runs: BTreeMap<Id, W>,
    /// First come, first.
    waiting: Vec<Waiting<W>>,
    tickets: Ticket,
    clock: u64,
}

impl<W> Default for Admission<W> {
    fn default() -> Self {
        Self {
            shares: Shares::default(),
            held: BTreeMap::new(),
            runs: BTreeMap::new(),
            waiting: Vec::new(),
            tickets: 0,
            clock: 0,
        }
    }
}

impl<W: Copy + PartialEq> Admission<W> {
    /// Gets in line.
    pub(super) fn join(&mut self, who: W) -> Ticket {
        self.tickets += 1;
        self.waiting.push(Waiting { ticket: self.tickets, who, want: Want::Nothing, passed: 0 });
        self.tickets
    }

    /// Gets out of line, unless it was served already.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.waiting.retain(|w| w.ticket != ticket);
    }

    /// Who runs it.
    pub(super) fn runner(&self, id: Id) -> Option<W> {
        self.runs.get(&id).copied()
    }

    /// What this thread runs.
    pub(super) fn runs_of(&self, who: W) -> impl Iterator<Item = Id> {
        self.runs.iter().filter(move |(_, w)| **w == who).map(|(id, _)| *id)
    }

    /// What runs.
    pub(super) fn running(&self) -> impl Iterator<Item = Id> {
        self.runs.keys().copied()
    }

    /// What is on the device.
    pub(super) fn held(&self) -> impl Iterator<Item = Id> {
        self.held.keys().copied()
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().filter(|w| w.want != Want::Nothing).count()
    }

    /// Bytes on the device.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held.values().fold(0, |sum, held| sum.saturating_add(held.bytes))
    }

    /// What was used last of all that is on the device and doesn't stay there between phases.
    pub(super) fn last_used(&self) -> Option<Id> {
        self.held.iter().filter(|(id, _)| !self.keeps(**id)).max_by_key(|(_, held)| held.used).map(|(id, _)| *id)
    }

    /// Asks for a run. Once granted, the place in the queue is given up and the component counts as on the device.
    pub(super) fn run(&mut self, ticket: Ticket, id: Id) -> Answer {
        let Some(at) = self.waiting.iter().position(|w| w.ticket == ticket) else { return Answer::Wait };
        self.waiting[at].want = Want::Run(id);
        let who = self.waiting[at].who;
        if self.runner(id) == Some(who) {
            return Answer::Never(Never::Own(id));
        }
        if self.bytes(id) > self.shares.capacity {
            return Answer::Never(Never::TooLarge);
        }
        let running: BTreeSet<Id> = self.running().collect();
        if running.contains(&id) || !self.fits(&running, &[id], self.shares.capacity) {
            return self.wait(at);
        }
        if self.runs_of(who).next().is_none() {
            let delayed = |w: &Waiting<W>| match &w.want {
                Want::Nothing => false,
                Want::Run(other) => !self.fits(&running, &[id, *other], self.shares.capacity),
                Want::Change(change) => change.touched.contains(&id) || !self.fits(&running, &[id], change.capacity),
            };
            // Its turn has come, and it was woken.
            let is_next = |w: &Waiting<W>| match &w.want {
                Want::Run(other) => !running.contains(other) && self.fits(&running, &[*other], self.shares.capacity),
                Want::Nothing | Want::Change(_) => false,
            };
            let there = self.held.contains_key(&id);
            let bars = |w: &Waiting<W>| delayed(w) && (w.passed >= PASSES || (is_next(w) && !there));
            let ahead = &self.waiting[..at];
            if ahead.iter().any(|w| w.want == Want::Run(id) || bars(w)) {
                return Answer::Wait;
            }
            let passed: Vec<bool> = ahead.iter().map(delayed).collect();
            for (w, passed) in self.waiting.iter_mut().zip(passed) {
                w.passed += u32::from(passed);
            }
        }
        self.waiting.remove(at);
        let bytes = self.bytes(id);
        self.clock += 1;
        self.runs.insert(id, who);
        self.held.insert(id, Held { bytes, used: self.clock });
        Answer::Granted(self.leaving(&BTreeSet::new(), self.shares.capacity, id))
    }

    /// Asks whether another plan may be put in force: what it places differently (`touched`) doesn't run, what runs is
    /// within its peak, and no thread that runs something waits for more by the old one. Nothing changes until
    /// [`Admission::put_in_force`].
    pub(super) fn change(&mut self, ticket: Ticket, touched: BTreeSet<Id>, capacity: u64) -> Answer {
        let Some(at) = self.waiting.iter().position(|w| w.ticket == ticket) else { return Answer::Wait };
        let change = Change { touched, capacity };
        let running = self.running().collect();
        if !self.can_change(&change, &running, &self.waiting.iter().collect::<Vec<_>>()) {
            self.waiting[at].want = Want::Change(change);
            return self.wait(at);
        }
        self.waiting[at].want = Want::Nothing;
        Answer::Granted(self.leaving(&change.touched, capacity, Id::MAX))
    }

    /// These shares are granted from now on.
    pub(super) fn put_in_force(&mut self, shares: Shares) {
        self.shares = shares;
    }

    /// A run is over.
    pub(super) fn end(&mut self, id: Id) {
        self.runs.remove(&id);
    }

    /// It is no longer on the device.
    pub(super) fn dropped(&mut self, id: Id) {
        self.held.remove(&id);
    }

    fn wait(&mut self, at: usize) -> Answer {
        let asks = &self.waiting[at];
        let own: BTreeSet<Id> = self.runs_of(asks.who).collect();
        let never = match own.first() {
            Some(first) if !self.can_be_served(asks, &own, &[asks]) => Never::Own(*first),
            _ if self.is_stuck(asks.ticket) => Never::Circle,
            _ => return Answer::Wait,
        };
        // It waits no longer.
        self.waiting[at].want = Want::Nothing;
        Answer::Never(never)
    }

    /// Whoever doesn't wait ends his runs sooner or later; then some of those who wait are served, and end theirs.
    /// Whether this one is never among them.
    fn is_stuck(&self, ticket: Ticket) -> bool {
        let mut waiting: Vec<&Waiting<W>> = self.waiting.iter().filter(|w| w.want != Want::Nothing).collect();
        let waits = |who: &W| waiting.iter().any(|w| w.who == *who);
        let mut running: BTreeSet<Id> = self.runs.iter().filter(|(_, who)| waits(who)).map(|(id, _)| *id).collect();
        loop {
            let Some(next) = waiting.iter().position(|w| self.can_be_served(w, &running, &waiting)) else {
                return true;
            };
            let served = waiting.swap_remove(next);
            if served.ticket == ticket {
                return false;
            }
            running.retain(|id| self.runner(*id) != Some(served.who));
        }
    }

    fn can_be_served(&self, waiting: &Waiting<W>, running: &BTreeSet<Id>, all: &[&Waiting<W>]) -> bool {
        match &waiting.want {
            Want::Nothing => true,
            // He will be told that it is gone.
            Want::Run(id) if !self.shares.of.contains_key(id) => true,
            Want::Run(id) => !running.contains(id) && self.fits(running, &[*id], self.shares.capacity),
            Want::Change(change) => self.can_change(change, running, all),
        }
    }

    fn can_change(&self, change: &Change, running: &BTreeSet<Id>, waiting: &[&Waiting<W>]) -> bool {
        let needs_the_old = |w: &&Waiting<W>| {
            matches!(w.want, Want::Run(_)) && running.iter().any(|id| self.runner(*id) == Some(w.who))
        };
        running.is_disjoint(&change.touched)
            && self.fits(running, &[], change.capacity)
            && !waiting.iter().any(needs_the_old)
    }

    /// Whether these may be on the device together.
    fn fits(&self, running: &BTreeSet<Id>, more: &[Id], capacity: u64) -> bool {
        let all: BTreeSet<Id> = running.iter().chain(more).copied().collect();
        all.into_iter().fold(0u64, |sum, id| sum.saturating_add(self.bytes(id))) <= capacity
    }

    /// What it holds, or will hold.
    fn bytes(&self, id: Id) -> u64 {
        let share = || self.shares.of.get(&id).map(|share| share.bytes);
        self.held.get(&id).map(|held| held.bytes).or_else(share).unwrap_or(0)
    }

    fn keeps(&self, id: Id) -> bool {
        self.shares.of.get(&id).is_some_and(|share| share.keep)
    }

    /// What idle components leave so that all others fit: those of `touched`, then, least recently used first, those
    /// active in no phase of `guest`'s before those beside it, and those that are to be kept last.
    fn leaving(&self, touched: &BTreeSet<Id>, capacity: u64, guest: Id) -> Vec<Id> {
        let phases = |id: Id| self.shares.of.get(&id).map_or(&[][..], |share| &share.phases);
        let beside = |id: Id| phases(id).iter().any(|phase| phases(guest).contains(phase));
        let mut idle: Vec<(&Id, &Held)> = self.held.iter().filter(|(id, _)| !self.runs.contains_key(id)).collect();
        idle.sort_by_key(|(id, held)| (!touched.contains(id), self.keeps(**id), beside(**id), held.used));
        let (mut bytes, mut leaving) = (self.held_bytes(), Vec::new());
        for (id, held) in idle {
            if touched.contains(id) || bytes > capacity {
                bytes = bytes.saturating_sub(held.bytes);
                leaving.push(*id);
            }
        }
        leaving
    }
}
