//! A component as the cost model sees it: groups in the order of a pass, and the visits a request makes to it.

use crate::{
    Component, Group,
    input::{self, Input},
    place,
    rates::{Rates, Times},
    recurrence::{Course, Item},
};
use alloc::{vec, vec::Vec};

/// A group's figures.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) bytes: u128,
    /// Nanoseconds; zero where unknown.
    pub(crate) compute: u64,
    pub(crate) is_known: bool,
}

/// A component that holds weights.
#[derive(Clone)]
pub(crate) struct Part<'a> {
    /// Its entry.
    pub(crate) index: usize,
    pub(crate) component: &'a Component,
    /// Of all stacks, one after the other.
    pub(crate) groups: Vec<(&'a Group, Facts)>,
    pub(crate) streamable: bool,
    /// Phases in which it is active, with its passes there, aliases included.
    pub(crate) visits: Vec<(usize, u64)>,
}

impl<'a> Part<'a> {
    /// One for each component that holds weights, in the order of entries.
    pub(crate) fn all(input: &Input<'a>) -> Vec<Self> {
        let mut place = vec![usize::MAX; input.entries.len()];
        let mut parts: Vec<Self> = Vec::new();
        for index in input.holders() {
            place[index] = parts.len();
            let component = input.entries[index].component;
            let facts = |g: &Group| Facts {
                bytes: place::group_bytes(g),
                compute: g.compute_ns.unwrap_or(0),
                is_known: g.compute_ns.is_some(),
            };
            let groups = component.groups().map(|g| (g, facts(g))).collect();
            let streamable = input::streamable(component);
            parts.push(Self { index, component, groups, streamable, visits: Vec::new() });
        }
        for (number, phase) in input.phases.iter().enumerate() {
            for entry in &phase.own {
                let passes = u64::from(input.entries[*entry].component.passes);
                let part = &mut parts[place[input.entries[*entry].holder]];
                match part.visits.last_mut() {
                    Some((last, sum)) if *last == number => *sum += passes,
                    _ => part.visits.push((number, passes)),
                }
            }
        }
        parts
    }

    /// Passes of a request.
    pub(crate) fn passes(&self) -> u64 {
        self.visits.iter().map(|(_, passes)| *passes).sum()
    }

    /// Device bytes of all of it.
    pub(crate) fn bytes(&self) -> u128 {
        self.groups.iter().fold(u128::from(self.component.rest), |sum, (_, facts)| sum + facts.bytes)
    }

    /// Compute of a pass, nanoseconds.
    pub(crate) fn compute(&self) -> u64 {
        self.groups.iter().fold(0, |sum, (_, facts)| sum.saturating_add(facts.compute))
    }

    /// Sums up what its visits take, each of so many passes; those of none take nothing.
    pub(crate) fn over_visits(&self, time: impl Fn(u64) -> u64) -> u64 {
        let visits = self.visits.iter().filter(|(_, passes)| *passes > 0);
        visits.fold(0, |sum: u64, (_, passes)| sum.saturating_add(time(*passes)))
    }

    /// Groups whose compute time is not known, where it matters.
    pub(crate) fn unknown(&self) -> usize {
        if self.passes() == 0 { 0 } else { self.component.groups().filter(|g| g.compute_ns.is_none()).count() }
    }

    /// A pass in which the groups stream for which `times` answers: nanoseconds on the staging and on the copy lane.
    ///
    /// Compute that is unknown counts as zero, but with one slot, where a copy and the use of what it brings can never run
    /// beside each other, as long as the copy: else one slot would always look best.
    pub(crate) fn course(&self, slots: usize, times: impl Fn(usize) -> Option<Times>) -> Course {
        let (mut items, mut before) = (Vec::with_capacity(self.groups.len()), 0u64);
        for (index, (_, facts)) in self.groups.iter().enumerate() {
            match times(index) {
                None => before = before.saturating_add(facts.compute),
                Some((stage, copy)) => {
                    let own = if facts.is_known || slots != 1 { facts.compute } else { copy };
                    items.push(Item { stage, copy, before: core::mem::take(&mut before), own });
                }
            }
        }
        Course { items, tail: before, slots }
    }

    /// Loading what does not stream, nanoseconds.
    pub(crate) fn load(&self, rates: &Rates, streams: impl Fn(usize) -> bool) -> u64 {
        Load::of(self).without(rates, (0..self.groups.len()).filter(|i| streams(*i)).map(|i| self.groups[i].0))
    }
}

/// What loading a whole component moves.
pub(crate) struct Load {
    bytes: u128,
    stored: u128,
    copies: u64,
}

impl Load {
    pub(crate) fn of(part: &Part<'_>) -> Self {
        let rest = u128::from(part.component.rest);
        let (mut stored, mut copies) = (rest, u64::from(rest > 0));
        for (group, _) in &part.groups {
            stored += u128::from(group.host_bytes);
            copies += group.slabs.len() as u64;
        }
        Self { bytes: part.bytes(), stored, copies }
    }

    /// Nanoseconds without these of its groups.
    pub(crate) fn without<'g>(&self, rates: &Rates, groups: impl Iterator<Item = &'g Group>) -> u64 {
        let Self { mut bytes, mut stored, mut copies } = *self;
        for group in groups {
            bytes -= place::group_bytes(group);
            stored -= u128::from(group.host_bytes);
            copies -= group.slabs.len() as u64;
        }
        rates.load(bytes, stored, copies)
    }
}

/// Stored bytes of all parts.
pub(crate) fn stored<'p, 'a: 'p>(parts: impl IntoIterator<Item = &'p Part<'a>>) -> u128 {
    parts.into_iter().fold(0, |sum, part| {
        let groups = part.groups.iter().map(|(group, _)| u128::from(group.host_bytes)).sum::<u128>();
        sum + u128::from(part.component.rest) + groups
    })
}
