//! One choice per component, so that all phases fit and the request takes least: branch and bound.

use crate::frontier::Choice;
use alloc::{vec, vec::Vec};
use core::cmp::Reverse;

/// Work after which the best solution so far is taken.
const STEPS: usize = 1 << 20;
/// More components than this are placed one after the other, without going back.
const DEPTH: usize = 24;

/// A component's choices, fastest first, and the phases in which it is active.
#[derive(Clone)]
pub(crate) struct Menu<'c> {
    pub(crate) choices: &'c [Choice],
    pub(crate) phases: Vec<usize>,
}

/// What there is.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'c> {
    /// Device bytes in each phase.
    pub(crate) phases: &'c [u64],
    /// Page-locked bytes.
    pub(crate) host: u64,
}

/// One choice per component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Solution {
    pub(crate) picks: Vec<Choice>,
    /// A request, nanoseconds.
    pub(crate) time: u64,
    /// Nothing else on the menus is better.
    pub(crate) complete: bool,
}

/// The fastest combination that fits; of equals one that takes less device memory. `None`: none fits.
pub(crate) fn solve(menus: &[Menu<'_>], limits: Limits<'_>) -> Option<Solution> {
    let least: Option<Vec<Choice>> = menus.iter().map(least).collect();
    let least = least?;
    let mut order: Vec<usize> = (0..menus.len()).collect();
    let spread = |i: usize| {
        let times = || menus[i].choices.iter().map(|c| c.time);
        times().max().unwrap_or(0) - times().min().unwrap_or(0)
    };
    order.sort_by_key(|i| (Reverse(spread(*i)), *i));
    let mut search = Search {
        menus,
        limits,
        used: vec![0; limits.phases.len()],
        host: 0,
        picks: least.clone(),
        least,
        order,
        best: None,
        steps: 0,
    };
    for (menu, choice) in menus.iter().zip(&search.least) {
        occupy(&mut search.used, menu, choice);
    }
    if search.used.iter().zip(limits.phases).any(|(used, limit)| *used > u128::from(*limit)) {
        return None;
    }
    let deep = menus.len() > DEPTH;
    if deep {
        search.one_by_one();
    } else {
        search.descend(0, 0, 0);
    }
    let complete = !deep && search.steps < STEPS;
    search.best.map(|(time, _, picks)| Solution { picks, time, complete })
}

/// The choice that takes least of everything; what need not stay between phases does not.
fn least(menu: &Menu<'_>) -> Option<Choice> {
    menu.choices.iter().filter(|c| c.host == 0).min_by_key(|c| (c.keep, c.device, c.time)).copied()
}

fn occupy(used: &mut [u128], menu: &Menu<'_>, choice: &Choice) {
    if choice.keep {
        used.iter_mut().for_each(|used| *used += u128::from(choice.device));
    } else {
        menu.phases.iter().for_each(|phase| used[*phase] += u128::from(choice.device));
    }
}

fn vacate(used: &mut [u128], menu: &Menu<'_>, choice: &Choice) {
    if choice.keep {
        used.iter_mut().for_each(|used| *used -= u128::from(choice.device));
    } else {
        menu.phases.iter().for_each(|phase| used[*phase] -= u128::from(choice.device));
    }
}

struct Search<'c> {
    menus: &'c [Menu<'c>],
    limits: Limits<'c>,
    /// Per phase; components not yet decided take their least.
    used: Vec<u128>,
    host: u64,
    picks: Vec<Choice>,
    least: Vec<Choice>,
    order: Vec<usize>,
    best: Option<(u64, u128, Vec<Choice>)>,
    steps: usize,
}

impl Search<'_> {
    /// Bytes that component `i`, which takes its least, could take instead: between phases, and not.
    fn room(&self, i: usize) -> (u128, u128) {
        let least = self.least[i];
        let mut between = u128::MAX;
        let mut within = u128::MAX;
        let slack = |phase: usize| u128::from(self.limits.phases[phase]).saturating_sub(self.used[phase]);
        for phase in 0..self.used.len() {
            between = between.min(slack(phase) + if least.keep { u128::from(least.device) } else { 0 });
        }
        for phase in &self.menus[i].phases {
            within = within.min(slack(*phase) + u128::from(least.device));
        }
        if !least.keep {
            // Its own phases hold its least already; the others do not.
            let own = &self.menus[i].phases;
            let others = (0..self.used.len()).filter(|phase| !own.contains(phase)).map(slack).min();
            between = within.min(others.unwrap_or(u128::MAX));
        }
        (between, within)
    }

    fn fits(&self, choice: &Choice, room: (u128, u128)) -> bool {
        u128::from(choice.device) <= if choice.keep { room.0 } else { room.1 }
            && choice.host <= self.limits.host.saturating_sub(self.host)
    }

    /// The fastest choice that fits beside what is decided.
    fn fastest(&mut self, i: usize) -> Option<usize> {
        let room = self.room(i);
        let found = self.menus[i].choices.iter().position(|choice| self.fits(choice, room));
        self.steps += found.unwrap_or(0) + self.used.len() + 1;
        found
    }

    fn swap(&mut self, i: usize, from: &Choice, to: &Choice) {
        vacate(&mut self.used, &self.menus[i], from);
        occupy(&mut self.used, &self.menus[i], to);
        self.host = self.host - from.host + to.host;
        self.picks[i] = *to;
    }

    fn is_better(&self, time: u64, device: u128) -> bool {
        self.best.as_ref().is_none_or(|best| (time, device) < (best.0, best.1))
    }

    /// Decides the components from `level` on; those before take `time` and `device` bytes.
    fn descend(&mut self, level: usize, time: u64, device: u128) {
        if self.steps >= STEPS && self.best.is_some() {
            return;
        }
        let Some(i) = self.order.get(level).copied() else {
            if self.is_better(time, device) {
                self.best = Some((time, device, self.picks.clone()));
            }
            return;
        };
        // Each for itself: no combination is better.
        let mut fastest = Vec::with_capacity(self.order.len() - level);
        for at in level..self.order.len() {
            let Some(found) = self.fastest(self.order[at]) else { return };
            fastest.push(found);
        }
        let choice = |at: usize| self.menus[self.order[level + at]].choices[fastest[at]];
        let (rest, rest_device) = (1..fastest.len())
            .map(choice)
            .fold((0u64, 0u128), |(time, device), c| (time.saturating_add(c.time), device + u128::from(c.device)));
        for number in fastest[0]..self.menus[i].choices.len() {
            let next = self.menus[i].choices[number];
            let bound = time.saturating_add(next.time).saturating_add(rest);
            if !self.is_better(bound, 0) {
                break;
            }
            let device = device + u128::from(next.device);
            if !self.is_better(bound, device + rest_device) || !self.fits(&next, self.room(i)) {
                self.steps += 1;
                continue;
            }
            let least = self.least[i];
            self.swap(i, &least, &next);
            self.descend(level + 1, time.saturating_add(next.time), device);
            self.swap(i, &next, &least);
            if self.steps >= STEPS {
                break;
            }
        }
    }

    /// Gives each component in turn the fastest choice that fits.
    fn one_by_one(&mut self) {
        for at in 0..self.order.len() {
            let i = self.order[at];
            if let Some(found) = self.fastest(i) {
                let (least, next) = (self.least[i], self.menus[i].choices[found]);
                self.swap(i, &least, &next);
            }
        }
        let time = self.picks.iter().fold(0u64, |sum, c| sum.saturating_add(c.time));
        self.best = Some((time, 0, self.picks.clone()));
    }
}
