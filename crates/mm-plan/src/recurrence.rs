//! One visit of a component: the recurrence that says when each copy and each compute starts and ends.
//!
//! One copy lane, one compute stream, one staging lane:
//! - copy j starts when copy j−1 has ended, its staging has ended and the compute that last used its slot has ended;
//! - compute i starts when compute i−1 has ended and its own copy, if streamed, has ended;
//! - staging j starts when staging j−1 has ended and the copy of the last but one staged group has ended (two are under way);
//! - passes follow one another, so the next pass's first copies run beside this one's last computes.
//!
//! Where each streamed group has a slot of its own it is copied once, and then stays.
//!
//! A component that stays on the device begins a visit with its slots filled and ends it when they are filled for the next;
//! another begins by loading what is not streamed and ends with its last compute. So visits do not touch each other's
//! lanes, and the times of components add up.

/// Slots that the model knows at the most.
pub(crate) const MAX_SLOTS: usize = 4;
/// Steps that are simulated before the rest of a visit is taken as going on at the same pace.
const MAX_STEPS: usize = 1 << 14;
/// Passes over which that pace is measured: a multiple of every number of slots.
const PACE: usize = 12;

/// A streamed group. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Item {
    /// Filling page-locked memory; zero: not staged.
    pub(crate) stage: u64,
    /// On the copy lane.
    pub(crate) copy: u64,
    /// Computing the residents between the streamed group before and this one.
    pub(crate) before: u64,
    /// Computing it.
    pub(crate) own: u64,
}

/// A component's streamed groups, in the order of a pass. Nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    pub(crate) items: alloc::vec::Vec<Item>,
    /// Computing the residents after the last streamed group.
    pub(crate) tail: u64,
    pub(crate) slots: usize,
}

/// What is computed and copied in a pass: the lower bound is the busiest of them. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) compute: u64,
    pub(crate) copy: u64,
    pub(crate) stage: u64,
}

impl Work {
    pub(crate) fn bound(self) -> u64 {
        self.compute.max(self.copy).max(self.stage)
    }
}

/// How often each streamed group is copied in a visit.
pub(crate) fn copied(slots: usize, streamed: usize, passes: u64, keep: bool) -> u64 {
    match (slots >= streamed, keep) {
        (false, _) => passes,
        (true, true) => 0,
        (true, false) => passes.min(1),
    }
}

/// How a visit went. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// From its begin to its end.
    pub(crate) total: u64,
    /// Its last compute ended so long after its begin.
    pub(crate) computed: u64,
    /// A pass once the lanes have settled, rounded up.
    pub(crate) pass: u64,
    /// Steps that were simulated.
    pub(crate) steps: usize,
}

/// Told of each step; costs nothing where nobody listens.
pub(crate) trait Observer {
    /// Streamed group `item` of pass `pass` was staged, copied and computed at these times (start, end). No staging or
    /// copy: it was there already.
    fn item(
        &mut self,
        pass: u64,
        item: usize,
        stage: Option<(u64, u64)>,
        copy: Option<(u64, u64)>,
        compute: (u64, u64),
    );
    /// A pass ended with its last compute.
    fn pass(&mut self, pass: u64);
    /// After `passes` passes streamed group `item` was staged and copied for the next visit.
    fn refill(&mut self, passes: u64, item: usize, stage: Option<(u64, u64)>, copy: (u64, u64));
    /// Whether it wants to hear more.
    fn listens(&self) -> bool;
}

impl Observer for () {
    #[inline]
    fn item(&mut self, _: u64, _: usize, _: Option<(u64, u64)>, _: Option<(u64, u64)>, _: (u64, u64)) {}
    #[inline]
    fn pass(&mut self, _: u64) {}
    #[inline]
    fn refill(&mut self, _: u64, _: usize, _: Option<(u64, u64)>, _: (u64, u64)) {}
    #[inline]
    fn listens(&self) -> bool {
        false
    }
}

/// When each lane is free again.
#[derive(Clone, Copy, Default)]
struct Lanes {
    compute: u64,
    copy: u64,
    stage: u64,
    /// Ends of the last two copies of staged groups, the older first.
    staged: [u64; 2],
    /// Ends of the last computes that used a slot, the oldest first.
    released: [u64; MAX_SLOTS],
}

impl Lanes {
    /// Everything that later steps look at, relative to the last compute, so that passes can be compared.
    fn relative(&self, slots: usize, stages: bool) -> [u64; MAX_SLOTS + 4] {
        let mut ages = [0; MAX_SLOTS + 4];
        for (age, released) in ages.iter_mut().zip(&self.released[MAX_SLOTS - slots..]) {
            *age = self.compute.wrapping_sub(*released);
        }
        if slots > 0 {
            ages[MAX_SLOTS] = self.compute.wrapping_sub(self.copy);
        }
        if stages {
            ages[MAX_SLOTS + 1] = self.compute.wrapping_sub(self.stage);
            ages[MAX_SLOTS + 2] = self.compute.wrapping_sub(self.staged[0]);
            ages[MAX_SLOTS + 3] = self.compute.wrapping_sub(self.staged[1]);
        }
        ages
    }

    fn later(&mut self, by: u64) {
        for time in [&mut self.compute, &mut self.copy, &mut self.stage].into_iter().chain(&mut self.staged) {
            *time = time.saturating_add(by);
        }
        self.released.iter_mut().for_each(|time| *time = time.saturating_add(by));
    }

    /// Stages and copies the next group into the slot that is free first. Returns both spans.
    #[inline]
    fn fetch(&mut self, item: &Item, slots: usize) -> ((u64, u64), (u64, u64)) {
        let mut start = self.copy.max(self.released[MAX_SLOTS - slots]);
        let mut staging = (0, 0);
        if item.stage > 0 {
            staging.0 = self.stage.max(self.staged[0]);
            self.stage = staging.0.saturating_add(item.stage);
            staging.1 = self.stage;
            start = start.max(self.stage);
        }
        self.copy = start.saturating_add(item.copy);
        if item.stage > 0 {
            self.staged = [self.staged[1], self.copy];
        }
        (staging, (start, self.copy))
    }

    #[inline]
    fn compute(&mut self, item: &Item, ready: u64) -> (u64, u64) {
        let start = self.compute.saturating_add(item.before).max(ready);
        self.compute = start.saturating_add(item.own);
        self.released.rotate_left(1);
        self.released[MAX_SLOTS - 1] = self.compute;
        (start, self.compute)
    }
}

impl Course {
    /// Runs a visit of `passes` passes. `keep`: it stays on the device between visits; else it begins with `load`
    /// nanoseconds of loading.
    ///
    /// Passes are simulated until they repeat, the rest follows; a visit that has not settled after `MAX_STEPS` steps
    /// goes on at the pace of its last passes.
    pub(crate) fn visit<O: Observer>(&self, passes: u64, keep: bool, load: u64, observer: &mut O) -> Outcome {
        if passes == 0 {
            return Outcome::default();
        }
        let begin = if keep { 0 } else { load };
        let mut lanes = Lanes { compute: begin, copy: begin, stage: begin, ..Lanes::default() };
        let slots = self.slots.clamp(1, MAX_SLOTS);
        let (ready, holds) = (slots.min(self.items.len()), self.holds_all());
        let stages = !holds && self.items.iter().any(|item| item.stage > 0);
        let limit = (MAX_STEPS / (self.items.len() + 1)).max(2 * PACE + 2) as u64;
        // The last passes: how the lanes stood, and when.
        let mut last = [([u64::MAX; MAX_SLOTS + 4], 0); MAX_SLOTS];
        let mut ends = [0; PACE + 1];
        let mut settled: Option<u64> = None;
        let (mut pass, mut steps) = (0, 0);
        while pass < passes {
            steps += self.items.len() + 1;
            for (index, item) in self.items.iter().enumerate() {
                let is_there = if holds { keep || pass > 0 } else { keep && pass == 0 && index < ready };
                if is_there {
                    let compute = lanes.compute(item, 0);
                    observer.item(pass, index, None, None, compute);
                } else {
                    let (stage, copy) = lanes.fetch(item, slots);
                    let compute = lanes.compute(item, copy.1);
                    observer.item(pass, index, (item.stage > 0).then_some(stage), Some(copy), compute);
                }
            }
            lanes.compute = lanes.compute.saturating_add(self.tail);
            observer.pass(pass);
            pass += 1;
            ends.rotate_left(1);
            ends[PACE] = lanes.compute;
            if settled.is_some() || observer.listens() {
                continue;
            }
            let now = lanes.relative(if holds { 0 } else { slots }, stages);
            let found = last.iter().rev().position(|(before, _)| *before == now);
            if let Some(ago) = found {
                let period = ago as u64 + 1;
                let took = lanes.compute - last[MAX_SLOTS - 1 - ago].1;
                let periods = (passes - pass) / period;
                lanes.later(took.saturating_mul(periods));
                pass += periods * period;
                settled = Some(took.div_ceil(period));
            } else if pass >= limit {
                let took = ends[PACE] - ends[0];
                let by = u128::from(took) * u128::from(passes - pass) / PACE as u128;
                lanes.later(u64::try_from(by).unwrap_or(u64::MAX));
                pass = passes;
                settled = Some(took.div_ceil(PACE as u64));
            }
            last.rotate_left(1);
            last[MAX_SLOTS - 1] = (now, lanes.compute);
        }
        let computed = lanes.compute;
        if keep && !holds {
            for (index, item) in self.items[..ready].iter().enumerate() {
                let (stage, copy) = lanes.fetch(item, slots);
                observer.refill(passes, index, (item.stage > 0).then_some(stage), copy);
                // The next slot: its group computes in the next visit.
                lanes.released.rotate_left(1);
            }
        }
        let total = lanes.compute.max(if keep && !holds { lanes.copy } else { 0 });
        Outcome { total, computed, pass: settled.unwrap_or(0), steps }
    }

    /// A pass once the lanes have settled, nanoseconds, rounded up.
    pub(crate) fn settled_pass(&self) -> u64 {
        self.visit(1 << 32, true, 0, &mut ()).pass
    }

    /// Each streamed group has a slot of its own.
    fn holds_all(&self) -> bool {
        self.slots >= self.items.len()
    }

    /// Of a pass among many.
    pub(crate) fn work(&self) -> Work {
        self.visit_work(1, true)
    }

    /// Of a visit of `passes` passes, what is loaded at its begin left out.
    pub(crate) fn visit_work(&self, passes: u64, keep: bool) -> Work {
        let mut pass = Work { compute: self.tail, ..Work::default() };
        for item in &self.items {
            pass.compute = pass.compute.saturating_add(item.before).saturating_add(item.own);
            pass.copy = pass.copy.saturating_add(item.copy);
            pass.stage = pass.stage.saturating_add(item.stage);
        }
        let copied = copied(self.slots, self.items.len(), passes, keep);
        Work {
            compute: pass.compute.saturating_mul(passes),
            copy: pass.copy.saturating_mul(copied),
            stage: pass.stage.saturating_mul(copied),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    /// `n` blocks of compute 1000 of which those at `streamed` are copied in `copy`.
    fn course(n: usize, streamed: &[usize], copy: u64, slots: usize) -> Course {
        let mut course = Course { items: vec![], tail: 0, slots };
        let mut residents = 0;
        for i in 0..n {
            if streamed.contains(&i) {
                course.items.push(Item { stage: 0, copy, before: residents * 1000, own: 1000 });
                residents = 0;
            } else {
                residents += 1;
            }
        }
        course.tail = residents * 1000;
        course
    }

    /// From the design: 48 equal blocks, two slots, memory for 24.
    #[test]
    fn even_spacing_beats_a_prefix_by_the_known_factors() {
        let even: Vec<usize> = (0..26).map(|k| k * 48 / 26).collect();
        let prefix: Vec<usize> = (22..48).collect();
        for (copy, expect_even, expect_prefix) in
            [(1500, 48_000, 60_000), (2000, 52_000, 72_000), (3000, 78_000, 96_000)]
        {
            let close = |found: u64, expected: u64| found >= expected && found * 1000 <= expected * 1001;
            let found = (course(48, &even, copy, 2).settled_pass(), course(48, &prefix, copy, 2).settled_pass());
            assert!(close(found.0, expect_even) && close(found.1, expect_prefix), "{copy}: {found:?}");
        }
    }

    /// A long visit is a short one and as many passes more.
    #[test]
    fn what_repeats_is_not_simulated_and_comes_out_the_same() {
        struct Ear;
        impl Observer for Ear {
            fn item(&mut self, _: u64, _: usize, _: Option<(u64, u64)>, _: Option<(u64, u64)>, _: (u64, u64)) {}
            fn pass(&mut self, _: u64) {}
            fn refill(&mut self, _: u64, _: usize, _: Option<(u64, u64)>, _: (u64, u64)) {}
            fn listens(&self) -> bool {
                true
            }
        }
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..3000 {
            let item = |random: &mut dyn FnMut(u64) -> u64| Item {
                stage: random(2) * random(50),
                copy: random(50),
                before: random(3) * random(30),
                own: random(40),
            };
            let items = (0..random(7)).map(|_| item(&mut random)).collect();
            let course = Course { items, tail: random(40), slots: 1 + random(4) as usize };
            let (passes, keep, load) = (random(60), random(2) == 0, random(100));
            // An observer that listens has every pass simulated.
            let (fast, slow) = (course.visit(passes, keep, load, &mut ()), course.visit(passes, keep, load, &mut Ear));
            assert_eq!((fast.total, fast.computed), (slow.total, slow.computed), "{course:?} {passes} {keep}");
        }
    }

    #[test]
    fn extremes_end() {
        let item = Item { stage: u64::MAX, copy: u64::MAX, before: u64::MAX, own: u64::MAX };
        let course = Course { items: vec![item; 9], tail: u64::MAX, slots: 2 };
        assert_eq!(course.visit(u64::MAX, false, u64::MAX, &mut ()).total, u64::MAX);
        let none = Course { items: vec![], tail: 5, slots: 0 };
        assert_eq!(none.visit(u64::MAX / 2, true, 0, &mut ()).total, u64::MAX);
        assert_eq!(none.visit(3, false, 7, &mut ()).total, 22);
    }
}
