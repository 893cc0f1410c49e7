//! Where one component's groups are: a ladder of placements from all resident down to all streamed.
//!
//! The main stack (most bytes) is streamed first, group by group and evenly spaced, then the other stacks in order.
//! A rung is a position on that way, so every placement the planner makes is a rung, and demotion is going down.

use crate::{Component, Strategy, input, spacing};
use alloc::vec::Vec;
use core::cmp::Reverse;

/// Number of dtypes, as the index of a slab in `Largest`.
pub(crate) const DTYPES: usize = crate::DType::U8 as usize + 1;
/// Stacks longer than this are demoted several groups at a time, which bounds the planner's time.
const STEPS: usize = 1024;

/// The streamed groups of a component: how many, and the largest slab of each dtype.
#[derive(Clone, Copy)]
struct Streamed {
    count: usize,
    largest: [u64; DTYPES],
}

impl Streamed {
    const NONE: Self = Self { count: 0, largest: [0; DTYPES] };

    fn add(&mut self, group: &crate::Group) {
        self.count += 1;
        for slab in &group.slabs {
            let largest = &mut self.largest[slab.dtype as usize];
            *largest = slab.bytes.max(*largest);
        }
    }
}

/// Device bytes of a placement.
#[derive(Clone, Copy)]
pub(crate) struct Footprint {
    /// Bytes of resident groups.
    pub(crate) resident: u128,
    /// Slots for the streamed ones.
    pub(crate) slots: u32,
    /// Bytes of one slot.
    pub(crate) slot_bytes: u128,
    /// Rest, residents and slots.
    pub(crate) total: u128,
}

/// A position on the ladder.
#[derive(Clone, Copy)]
struct Rung {
    /// Place in `order` of the stack that is partly streamed; those before it stream, those after it are resident.
    at: usize,
    /// Residents of that stack.
    kept: usize,
    /// The stacks before it.
    before: Streamed,
    /// Bytes of the stacks after it.
    after: u128,
}

/// One component's placement.
#[derive(Clone)]
pub(crate) struct Placement<'a> {
    pub(crate) component: &'a Component,
    pub(crate) strategy: Strategy,
    /// Asked for by name and kept whole: never demoted.
    pub(crate) firm: bool,
    /// At most so many slots.
    pub(crate) slot_cap: u32,
    /// Stacks in the order in which they are demoted; empty if nothing can be streamed.
    order: Vec<usize>,
    rung: Rung,
    footprint: Footprint,
}

impl<'a> Placement<'a> {
    /// Everything resident.
    pub(crate) fn whole(component: &'a Component, strategy: Strategy, slot_cap: u32) -> Self {
        let mut order = Vec::new();
        if input::streamable(component) {
            order = (0..component.stacks.len()).filter(|i| !component.stacks[*i].groups.is_empty()).collect();
            if let Some(main) = main_stack(component) {
                order.sort_by_key(|i| *i != main);
            }
        }
        let after = order.iter().skip(1).map(|i| stack_bytes(component, *i)).sum();
        let kept = order.first().map_or(0, |i| component.stacks[*i].groups.len());
        let rung = Rung { at: 0, kept, before: Streamed::NONE, after };
        let none = Footprint { resident: 0, slots: 0, slot_bytes: 0, total: 0 };
        let mut placement = Self { component, strategy, firm: false, slot_cap, order, rung, footprint: none };
        placement.footprint = placement.measure(&placement.rung);
        placement
    }

    pub(crate) fn footprint(&self) -> Footprint {
        self.footprint
    }

    /// Groups of the main stack; zero if nothing can be streamed.
    pub(crate) fn main_len(&self) -> usize {
        self.order.first().map_or(0, |i| self.component.stacks[*i].groups.len())
    }

    /// Bytes of the main stack and of its largest group.
    pub(crate) fn main_bytes(&self) -> (u128, u128) {
        let Some(main) = self.order.first() else { return (0, 0) };
        let largest = self.component.stacks[*main].groups.iter().map(group_bytes).max().unwrap_or(0);
        (stack_bytes(self.component, *main), largest)
    }

    /// Keeps so many groups of the main stack, clamped, and all of the others.
    pub(crate) fn keep(&mut self, resident: usize) {
        self.rung.kept = resident.min(self.main_len());
        self.footprint = self.measure(&self.rung);
    }

    /// Streams every group.
    pub(crate) fn stream_all(&mut self) {
        while let Some(next) = self.next(&self.rung) {
            self.rung = Rung { kept: 0, ..next };
        }
        self.footprint = self.measure(&self.rung);
    }

    /// Caps the slots. Never takes more memory.
    pub(crate) fn cap_slots(&mut self, cap: u32) {
        self.slot_cap = self.slot_cap.min(cap);
        self.footprint = self.measure(&self.rung);
    }

    /// Goes down to the next rung that takes less memory. False: there is none.
    pub(crate) fn lower(&mut self) -> bool {
        let mut rung = self.rung;
        while let Some(next) = self.next(&rung) {
            let footprint = self.measure(&next);
            if footprint.total < self.footprint.total {
                self.rung = next;
                self.footprint = footprint;
                return true;
            }
            rung = next;
        }
        false
    }

    /// The least this component can take: everything streamed through one slot. Any residents would hold at least
    /// what they save of the slot.
    pub(crate) fn minimum(&self) -> u128 {
        if self.firm {
            return self.footprint.total;
        }
        let mut least = self.clone();
        least.slot_cap = 1;
        least.stream_all();
        least.footprint.total
    }

    /// Residents, all stacks.
    pub(crate) fn resident_count(&self) -> usize {
        self.residents().iter().sum()
    }

    /// Per stack, per group: resident or streamed.
    pub(crate) fn flags(&self) -> Vec<Vec<bool>> {
        let stacks = self.component.stacks.iter().zip(self.residents());
        stacks.map(|(stack, resident)| spacing::flags(stack.groups.len(), resident)).collect()
    }

    /// Residents per stack.
    fn residents(&self) -> Vec<usize> {
        let mut residents: Vec<usize> = self.component.stacks.iter().map(|s| s.groups.len()).collect();
        for (place, stack) in self.order.iter().take(self.rung.at + 1).enumerate() {
            residents[*stack] = if place == self.rung.at { self.rung.kept } else { 0 };
        }
        residents
    }

    /// One step down the ladder.
    fn next(&self, rung: &Rung) -> Option<Rung> {
        let stack = &self.component.stacks[*self.order.get(rung.at)?];
        if rung.kept > 0 {
            let step = stack.groups.len().div_ceil(STEPS);
            return Some(Rung { kept: rung.kept.saturating_sub(step), ..*rung });
        }
        let next = *self.order.get(rung.at + 1)?;
        let mut before = rung.before;
        stack.groups.iter().for_each(|group| before.add(group));
        let kept = self.component.stacks[next].groups.len();
        Some(Rung { at: rung.at + 1, kept, before, after: rung.after - stack_bytes(self.component, next) })
    }

    fn measure(&self, rung: &Rung) -> Footprint {
        let mut streamed = rung.before;
        let mut resident = rung.after;
        if let Some(at) = self.order.get(rung.at) {
            let groups = &self.component.stacks[*at].groups;
            resident += stack_bytes(self.component, *at);
            for position in spacing::positions(groups.len(), groups.len() - rung.kept) {
                streamed.add(&groups[position]);
                resident -= group_bytes(&groups[position]);
            }
        } else {
            resident += self.component.groups().map(group_bytes).sum::<u128>();
        }
        let slots = streamed.count.min(self.slot_cap as usize) as u32;
        let slot_bytes: u128 = streamed.largest.iter().map(|bytes| u128::from(*bytes)).sum();
        let total = u128::from(self.component.rest) + resident + u128::from(slots) * slot_bytes;
        Footprint { resident, slots, slot_bytes, total }
    }
}

/// The stack with the most bytes; of equals the one with the most groups, then the first.
pub(crate) fn main_stack(component: &Component) -> Option<usize> {
    let stacks = 0..component.stacks.len();
    stacks.max_by_key(|i| (stack_bytes(component, *i), component.stacks[*i].groups.len(), Reverse(*i)))
}

fn stack_bytes(component: &Component, stack: usize) -> u128 {
    component.stacks[stack].groups.iter().map(group_bytes).sum()
}

/// Device bytes of a group without saturation.
pub(crate) fn group_bytes(group: &crate::Group) -> u128 {
    group.slabs.iter().map(|slab| u128::from(slab.bytes)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Group, Stack};
    use alloc::vec;

    fn stack(name: &str, sizes: &[u64]) -> Stack {
        Stack { name: name.into(), groups: sizes.iter().map(|b| Group::of_bytes(*b)).collect() }
    }

    #[test]
    fn going_down_ends_at_the_minimum() {
        let component = Component::blocks("t", 7, vec![stack("a", &[5, 1, 9]), stack("b", &[40; 6]), stack("c", &[])]);
        let mut placement = Placement::whole(&component, Strategy::ModelOffload, 2);
        assert_eq!(placement.footprint().total, 7 + 15 + 240);
        let least = placement.minimum();
        assert_eq!(least, 7 + 40);
        let mut last = placement.footprint().total;
        while placement.lower() {
            assert!(placement.footprint().total < last);
            last = placement.footprint().total;
        }
        placement.cap_slots(1);
        while placement.lower() {}
        assert_eq!(placement.footprint().total, least);
        assert_eq!(placement.resident_count(), 0);
    }

    #[test]
    fn two_groups_and_two_slots_save_nothing_but_one_slot_does() {
        let component = Component::blocks("t", 0, vec![stack("a", &[10, 10])]);
        let mut placement = Placement::whole(&component, Strategy::BlockPin, 2);
        assert!(!placement.lower());
        placement.cap_slots(1);
        assert!(placement.lower());
        assert_eq!(placement.footprint().total, 10);
    }
}
