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

/// Homes, and what is kept out of them. Those of before and after a LoRA came are the same ones in part, so each knows what is its own.
struct Guarded {
    gate: Arc<Gate>,
    homes: CandleHomes,
    /// Per group and slab.
    slabs: Mutex<Vec<Vec<Slab>>>,
}

/// Where the memory of a slab is.
enum Slab {
    /// With the engine.
    Away,
    Home,
    Aside(AnyBuffer),
}

impl Gate {
    pub(super) fn new(groups: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { wide: true, open: vec![true; groups], guarded: Vec::new() })))
    }

    /// What the engine is given in the homes' place.
    pub(crate) fn guard(self: &Arc<Self>, homes: CandleHomes) -> Box<dyn Homes<AnyBuffer>> {
        let slabs = homes.groups.iter().map(|slabs| slabs.iter().map(|_| Slab::Away).collect()).collect();
        let guarded = Arc::new(Guarded { gate: self.clone(), homes, slabs: Mutex::new(slabs) });
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
        for (index, slab) in self.slabs.lock()[group].iter_mut().enumerate() {
            let turned = match std::mem::replace(slab, Slab::Away) {
                Slab::Aside(buffer) if open => match self.homes.put(place, index, buffer) {
                    Ok(()) => Ok(Slab::Home),
                    Err((buffer, reason)) => Err((Slab::Aside(buffer), reason)),
                },
                Slab::Home if !open => {
                    self.homes.take(place, index).map(Slab::Aside).map_err(|reason| (Slab::Home, reason))
                }
                as_it_is => Ok(as_it_is),
            };
            *slab = turned.unwrap_or_else(|(as_it_was, reason)| {
                outcome = Err(reason);
                as_it_was
            });
        }
        outcome
    }
}

struct Gated(Arc<Guarded>);

impl Homes<AnyBuffer> for Gated {
    fn put(&self, place: Place, slab: usize, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        let state = self.0.gate.0.lock();
        let Place::Group(group) = place else { return self.0.homes.put(place, slab, buffer) };
        let mut slabs = self.0.slabs.lock();
        match slabs.get_mut(group).and_then(|group| group.get_mut(slab)) {
            Some(at @ Slab::Away) => {
                *at = if state.open[group] {
                    self.0.homes.put(place, slab, buffer)?;
                    Slab::Home
                } else {
                    Slab::Aside(buffer)
                };
                Ok(())
            }
            Some(_) => Err((buffer, format!("slab {slab} of {place:?} is there already"))),
            None => Err((buffer, format!("there is no slab {slab} of {place:?}"))),
        }
    }

    fn take(&self, place: Place, slab: usize) -> Result<AnyBuffer, String> {
        let _state = self.0.gate.0.lock();
        let Place::Group(group) = place else { return self.0.homes.take(place, slab) };
        let mut slabs = self.0.slabs.lock();
        let at = slabs.get_mut(group).and_then(|group| group.get_mut(slab));
        let at = at.ok_or_else(|| format!("there is no slab {slab} of {place:?}"))?;
        match std::mem::replace(at, Slab::Away) {
            Slab::Aside(buffer) => Ok(buffer),
            // Where nothing is, its homes say so.
            Slab::Home | Slab::Away => self.0.homes.take(place, slab),
        }
    }

    fn built(&self, place: Place, slab: usize) -> Option<AnyBuffer> {
        self.0.homes.built(place, slab)
    }

    fn forget_built(&self) {
        self.0.homes.forget_built();
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
