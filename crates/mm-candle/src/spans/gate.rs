//! A group's weights are in their homes only while its spans say so.
//!
//! What the engine puts there, for a pass or for a lease, is kept aside until the group is opened. So a weight that is used
//! outside its spans is refused in the first pass already, also where its group stays on the device.

use mm_engine::{AnyBuffer, Homes, Place};
use parking_lot::Mutex;
use std::sync::Arc;

/// Between the engine and the homes of a component.
pub(super) struct Gate(Mutex<State>);

struct State {
    homes: Arc<dyn Homes<AnyBuffer>>,
    /// All are open.
    wide: bool,
    groups: Vec<Group>,
}

struct Group {
    is_open: bool,
    /// Per slab, while the group is closed and on the device.
    aside: Vec<Option<AnyBuffer>>,
}

impl Gate {
    /// All open. `slabs`: how many each group has.
    pub(super) fn new(homes: Box<dyn Homes<AnyBuffer>>, slabs: &[usize]) -> Arc<Self> {
        let groups = groups(slabs, true);
        Arc::new(Self(Mutex::new(State { homes: homes.into(), wide: true, groups })))
    }

    /// Opens all groups for good, or closes those that nobody opened.
    pub(super) fn set_wide(&self, wide: bool) -> Result<(), String> {
        let state = &mut *self.0.lock();
        if state.wide == wide {
            return Ok(());
        }
        state.wide = wide;
        let all = state.groups.iter_mut().enumerate();
        all.map(|(index, group)| group.turn(index, state.homes.as_ref(), wide)).fold(Ok(()), Result::and)
    }

    pub(super) fn open(&self, group: usize) -> Result<(), String> {
        self.turn(group, true)
    }

    pub(super) fn close(&self, group: usize) -> Result<(), String> {
        self.turn(group, false)
    }

    fn turn(&self, index: usize, open: bool) -> Result<(), String> {
        let state = &mut *self.0.lock();
        match state.groups.get_mut(index) {
            Some(group) if !state.wide => group.turn(index, state.homes.as_ref(), open),
            _ => Ok(()),
        }
    }
}

fn groups(slabs: &[usize], is_open: bool) -> Vec<Group> {
    let aside = |count| std::iter::repeat_with(|| None).take(count).collect();
    slabs.iter().map(|count| Group { is_open, aside: aside(*count) }).collect()
}

impl Group {
    fn turn(&mut self, index: usize, homes: &dyn Homes<AnyBuffer>, open: bool) -> Result<(), String> {
        if self.is_open == open {
            return Ok(());
        }
        let place = Place::Group(index);
        let mut outcome = Ok(());
        for (slab, aside) in self.aside.iter_mut().enumerate() {
            if !open {
                // Empty where the engine has put nothing.
                *aside = homes.take(place, slab).ok();
            } else if let Some(buffer) = aside.take()
                && let Err((buffer, reason)) = homes.put(place, slab, buffer)
            {
                *aside = Some(buffer);
                outcome = Err(reason);
            }
        }
        self.is_open = open;
        outcome
    }
}

/// What the engine is given in the homes' place.
pub(super) struct Gated(pub(super) Arc<Gate>);

impl Homes<AnyBuffer> for Gated {
    fn put(&self, place: Place, slab: usize, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        let state = &mut *self.0.0.lock();
        let closed = match place {
            Place::Rest => None,
            Place::Group(group) => state.groups.get_mut(group).filter(|group| !group.is_open),
        };
        match closed.and_then(|group| group.aside.get_mut(slab)) {
            Some(Some(_)) => Err((buffer, format!("slab {slab} of {place:?} is there already"))),
            Some(aside) => {
                *aside = Some(buffer);
                Ok(())
            }
            None => state.homes.put(place, slab, buffer),
        }
    }

    fn take(&self, place: Place, slab: usize) -> Result<AnyBuffer, String> {
        let state = &mut *self.0.0.lock();
        let aside = match place {
            Place::Rest => None,
            Place::Group(group) => state.groups.get_mut(group).and_then(|group| group.aside.get_mut(slab)?.take()),
        };
        aside.map_or_else(|| state.homes.take(place, slab), Ok)
    }
}
