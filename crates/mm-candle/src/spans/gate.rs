//! A group's weights are in their homes only while its spans say so.
//!
//! What the engine puts there, for a pass or for a lease, is kept aside until the group is opened. So a weight that is used
//! outside its spans is refused in the first pass already, also where its group stays on the device.

use crate::home::CandleHomes;
use mm_engine::{AnyBuffer, EngineError, Homes, Place};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Which groups of a component are open.
pub(crate) struct Gate(Mutex<State>);

struct State {
    /// All are open.
    wide: bool,
    open: Vec<bool>,
    /// The component's homes, and those that it had before, which the engine may not be done with.
    guarded: Vec<Weak<Guarded>>,
}

/// Homes, and what is kept out of them.
struct Guarded {
    gate: Arc<Gate>,
    homes: CandleHomes,
    /// Per group and slab, while the group is closed and on the device.
    aside: Mutex<Vec<Vec<Option<AnyBuffer>>>>,
}

impl Gate {
    pub(super) fn new(groups: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { wide: true, open: vec![true; groups], guarded: Vec::new() })))
    }

    /// What the engine is given in the homes' place.
    pub(crate) fn guard(self: &Arc<Self>, homes: CandleHomes) -> Box<dyn Homes<AnyBuffer>> {
        let aside = homes.groups.iter().map(|slabs| slabs.iter().map(|_| None).collect()).collect();
        let guarded = Arc::new(Guarded { gate: self.clone(), homes, aside: Mutex::new(aside) });
        let known = &mut self.0.lock().guarded;
        known.retain(|guarded| guarded.strong_count() > 0);
        known.push(Arc::downgrade(&guarded));
        Box::new(Gated(guarded))
    }

    /// Opens all groups for good, or closes those that nobody opened.
    pub(super) fn set_wide(&self, wide: bool) -> Result<(), String> {
        let state = &mut *self.0.lock();
        if state.wide == wide {
            return Ok(());
        }
        state.wide = wide;
        (0..state.open.len()).map(|group| state.turn(group, wide)).fold(Ok(()), Result::and)
    }

    pub(super) fn open(&self, group: usize) -> Result<(), String> {
        self.turn_one(group, true)
    }

    pub(super) fn close(&self, group: usize) -> Result<(), String> {
        self.turn_one(group, false)
    }

    fn turn_one(&self, group: usize, open: bool) -> Result<(), String> {
        let state = &mut *self.0.lock();
        if state.wide || group >= state.open.len() { Ok(()) } else { state.turn(group, open) }
    }
}

impl State {
    fn turn(&mut self, group: usize, open: bool) -> Result<(), String> {
        if std::mem::replace(&mut self.open[group], open) == open {
            return Ok(());
        }
        self.guarded.iter().filter_map(Weak::upgrade).map(|guarded| guarded.turn(group, open)).fold(Ok(()), Result::and)
    }
}

impl Guarded {
    /// Puts what is aside in its homes, or what is there aside.
    fn turn(&self, group: usize, open: bool) -> Result<(), String> {
        let place = Place::Group(group);
        let mut outcome = Ok(());
        for (slab, aside) in self.aside.lock()[group].iter_mut().enumerate() {
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
        outcome
    }
}

struct Gated(Arc<Guarded>);

impl Homes<AnyBuffer> for Gated {
    fn put(&self, place: Place, slab: usize, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        let state = self.0.gate.0.lock();
        let Place::Group(group) = place else { return self.0.homes.put(place, slab, buffer) };
        if state.open.get(group).is_none_or(|open| *open) {
            return self.0.homes.put(place, slab, buffer);
        }
        match self.0.aside.lock().get_mut(group).and_then(|group| group.get_mut(slab)) {
            Some(aside @ None) => {
                *aside = Some(buffer);
                Ok(())
            }
            Some(Some(_)) => Err((buffer, format!("slab {slab} of {place:?} is there already"))),
            None => Err((buffer, format!("there is no slab {slab} of {place:?}"))),
        }
    }

    fn take(&self, place: Place, slab: usize) -> Result<AnyBuffer, String> {
        let _state = self.0.gate.0.lock();
        let Place::Group(group) = place else { return self.0.homes.take(place, slab) };
        let aside = self.0.aside.lock().get_mut(group).and_then(|group| group.get_mut(slab)?.take());
        aside.map_or_else(|| self.0.homes.take(place, slab), Ok)
    }

    fn arrived(&self, place: Place) -> mm_engine::Result<()> {
        let state = self.0.gate.0.lock();
        match place {
            // What is added to a weight is added where it lies: it is let in for that.
            Place::Group(group) if state.open.get(group).is_some_and(|open| !open) => {
                let turn = |open| self.0.turn(group, open).map_err(EngineError::Internal);
                turn(true)?;
                let added = self.0.homes.arrived(place);
                added.and(turn(false))
            }
            _ => self.0.homes.arrived(place),
        }
    }
}
