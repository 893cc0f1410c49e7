//! A group's weights are in their homes only while its spans say so.
//!
//! What the engine puts there, for a pass or for a lease, is kept aside until the group is opened. So a weight that is used
//! outside its spans is refused in the first pass already, also where its group stays on the device.

use mm_engine::{AnyBuffer, Homes, Place};
use parking_lot::Mutex;
use std::sync::Arc;

/// Between the engine and the homes of a component.
pub(super) struct Gate {
    homes: Box<dyn Homes<AnyBuffer>>,
    groups: Mutex<Groups>,
}

struct Groups {
    /// All are open.
    wide: bool,
    groups: Vec<Group>,
}

#[derive(Default)]
struct Group {
    is_open: bool,
    /// Per slab, while the group is closed and on the device.
    aside: Vec<Option<AnyBuffer>>,
}

impl Gate {
    /// `slabs`: how many each group has.
    pub(super) fn new(homes: Box<dyn Homes<AnyBuffer>>, slabs: impl Iterator<Item = usize>) -> Arc<Self> {
        let group = |count| Group { is_open: true, aside: std::iter::repeat_with(|| None).take(count).collect() };
        Arc::new(Self { homes, groups: Mutex::new(Groups { wide: true, groups: slabs.map(group).collect() }) })
    }

    /// Opens all groups for good, or closes those that nobody opened.
    pub(super) fn set_wide(&self, wide: bool) -> Result<(), String> {
        let groups = &mut *self.groups.lock();
        if groups.wide == wide {
            return Ok(());
        }
        groups.wide = wide;
        let all = 0..groups.groups.len();
        all.map(|g| self.turn(g, &mut groups.groups[g], wide)).fold(Ok(()), Result::and)
    }

    pub(super) fn open(&self, group: usize) -> Result<(), String> {
        self.turn_one(group, true)
    }

    pub(super) fn close(&self, group: usize) -> Result<(), String> {
        self.turn_one(group, false)
    }

    fn turn_one(&self, index: usize, open: bool) -> Result<(), String> {
        let groups = &mut *self.groups.lock();
        match groups.groups.get_mut(index) {
            Some(group) if !groups.wide => self.turn(index, group, open),
            _ => Ok(()),
        }
    }

    fn turn(&self, index: usize, group: &mut Group, open: bool) -> Result<(), String> {
        if group.is_open == open {
            return Ok(());
        }
        let place = Place::Group(index);
        let mut outcome = Ok(());
        for (slab, aside) in group.aside.iter_mut().enumerate() {
            if !open {
                // Empty where the engine has put nothing.
                *aside = self.homes.take(place, slab).ok();
            } else if let Some(buffer) = aside.take()
                && let Err((buffer, reason)) = self.homes.put(place, slab, buffer)
            {
                *aside = Some(buffer);
                outcome = Err(reason);
            }
        }
        group.is_open = open;
        outcome
    }
}

/// What the engine is given in the homes' place.
pub(super) struct Gated(pub(super) Arc<Gate>);

impl Homes<AnyBuffer> for Gated {
    fn put(&self, place: Place, slab: usize, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        let groups = &mut *self.0.groups.lock();
        let Place::Group(group) = place else { return self.0.homes.put(place, slab, buffer) };
        match groups.groups.get_mut(group).filter(|group| !group.is_open).and_then(|group| group.aside.get_mut(slab)) {
            Some(Some(_)) => Err((buffer, format!("slab {slab} of {place:?} is there already"))),
            Some(aside) => {
                *aside = Some(buffer);
                Ok(())
            }
            None => self.0.homes.put(place, slab, buffer),
        }
    }

    fn take(&self, place: Place, slab: usize) -> Result<AnyBuffer, String> {
        let groups = &mut *self.0.groups.lock();
        let Place::Group(group) = place else { return self.0.homes.take(place, slab) };
        let aside = groups.groups.get_mut(group).and_then(|group| group.aside.get_mut(slab)?.take());
        aside.map_or_else(|| self.0.homes.take(place, slab), Ok)
    }
}
