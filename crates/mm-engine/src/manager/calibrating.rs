//! Plans that are made with what was measured, and replaced once it is known better.

use super::{ModelManager, State, planning::InForce, registry::Registry};
use crate::{
    Device, EngineError, Result,
    calibrate::{
        Calibration, CalibrationReport, Figures, Hysteresis, Memory, Met, Part, Room, Session, Timing, component_key,
    },
    module::GroupEntry,
};
use mm_plan::{Component, DeviceKind, Machine, Note, Plan, simulate};
use std::sync::Arc;

impl<D: Device> ModelManager<D> {
    /// Measures from now on, and plans with what was measured; see [`crate::calibrate`]. What was kept of this machine and
    /// these components is used from the next plan on.
    ///
    /// # Errors
    /// `Misuse`: the manager is calibrated already, or another one over the same timeline, or on the same device where that has a
    /// clock of its own ([`Device::stopwatch`]).
    pub fn calibrate(&self, calibration: Calibration) -> Result<()> {
        self.gate.update(|state| {
            if state.calibration.is_some() {
                return Err(EngineError::Misuse("the manager is calibrated already; once is enough".to_owned()));
            }
            let timing = match self.device.stopwatch() {
                _ if self.device.tells_times() => Timing::Host,
                Some(stopwatch) => Timing::Device(stopwatch),
                None => Timing::Nobody,
            };
            let session = Session::start(calibration, &self.timeline, timing)?;
            state.calibration = Some(Arc::new(session));
            state.changed();
            Ok(())
        })
    }

    /// What the calibration has come to; `None`: nobody asked for one.
    pub fn calibration(&self) -> Option<CalibrationReport> {
        self.gate.read(|state| state.calibration.clone()).map(|session| session.report())
    }

    /// Tells how many bytes of the device the engine may have now, what it holds included; what exceeds the device's budget
    /// doesn't count. The plan is replaced between passes where it can't go on, or where another is worth it
    /// ([`Hysteresis`]); a given plan never is.
    pub fn set_free_memory(&self, bytes: u64) {
        let budget = self.device.memory().budget;
        self.gate.update(|state| state.free = Some(bytes.min(budget)));
    }
}

impl<D: Device> State<D> {
    /// The machine and the components as plans are made for them: with what was measured, if anything was.
    pub(super) fn described(&self, registry: &Registry<D>, figures: Option<&Figures>) -> (Machine, Vec<Component>) {
        let (mut machine, mut components) = (self.machine.clone(), registry.descriptions());
        if let Some(figures) = figures {
            figures.apply(&mut machine, &mut components);
        }
        (machine, components)
    }

    /// What plans are made with, once all that is registered was met. `None`: nobody asked for calibration.
    pub(super) fn figures(&self, registry: &Registry<D>) -> Option<Figures> {
        let session = self.calibration.as_ref()?;
        for (id, entry) in registry.entries() {
            let Some(title) = registry.names_of(id).first().map(|name| Arc::<str>::from(*name)) else { continue };
            let module = &entry.module;
            let key = component_key(module);
            if !session.knows(&title, key) {
                let part = |entry: &GroupEntry| Part {
                    name: entry.name.clone(),
                    bytes: entry.slabs.iter().map(|slab| slab.bytes()).fold(0, u64::saturating_add),
                    stored: entry.slabs.iter().map(|slab| slab.host_bytes()).fold(0, u64::saturating_add),
                };
                let layout = module.layout();
                let entries = || layout.groups.iter().chain([&layout.rest]);
                let parts = entries().map(part).collect();
                let slabs = entries().map(|entry| entry.slabs.len()).sum();
                let met = Met { key, parts, slabs, passes: layout.description.passes };
                session.meet(&title, met, self.machine.ram_available);
            }
        }
        Some(session.in_use())
    }

    /// Looks whether the plan in force should be replaced, between passes: never while something runs. Another plan
    /// is then the next one.
    pub(super) fn reconsider(&mut self) {
        let given = self.given.is_some() && self.overrides.is_empty();
        if !self.current && self.next.is_none() && !given {
            // A plan is to be made anyway.
            self.machine.vram_free = self.free.take().or(self.machine.vram_free);
        }
        if !self.current || given || self.admission.running().next().is_some() {
            return;
        }
        let Some(in_force) = self.in_force.as_ref().map(|in_force| in_force.plan.clone()) else { return };
        let session = self.calibration.clone();
        let due = session.as_ref().and_then(|session| session.due());
        let (planned, told) = (self.machine.vram_free.unwrap_or(0), self.free.take());
        if due.is_none() && told.is_none() {
            return;
        }
        let may_replace = due.as_ref().is_some_and(|due| due.may_replace);
        let figures = due.map(|due| due.figures).or_else(|| session.as_ref().map(|session| session.in_use()));
        let (mut machine, components) = self.described(&self.registry, figures.as_ref());
        let hysteresis = session.as_ref().map_or_else(Hysteresis::default, |session| session.hysteresis);
        let need = need(&in_force, &components, self.policy.reserve);
        let free = told.unwrap_or(planned);
        let room = hysteresis.room(Memory { need, planned, free });
        if room != Room::Same {
            machine.vram_free = Some(free);
        }
        if room == Room::Same && !may_replace {
            return;
        }
        let now = simulate(&machine, &components, &in_force).ok().map(|schedule| schedule.request_ns);
        let verdict = match self.plan_of(&self.registry, &machine, &components) {
            Err(error) => Err(Note::new(
                "plan_kept",
                &[("need", need), ("free", free)],
                format!("The plan stays, though it takes {need} bytes of {free}: {error}."),
            )),
            Ok(next) => {
                let then = next.plan.predicted.as_ref().map(|predicted| predicted.request_ns);
                let gains = match (now, then) {
                    (Some(now), Some(then)) => hysteresis.is_worth_it(now, then),
                    // Without times, a plan that may use more memory is taken to be better.
                    _ => room == Room::More,
                };
                let numbers = numbers(now, then, need, free);
                if room == Room::Short || gains {
                    Ok((next, replaced(room, now, then, &numbers, &machine)))
                } else {
                    Err(Note::new("plan_kept", &numbers, kept(now, then, hysteresis)))
                }
            }
        };
        let (next, note) = match verdict {
            Ok((next, note)) => (Some(next), note),
            Err(note) => (None, note),
        };
        if let Some(session) = &session {
            session.decided(next.is_some() && room == Room::Same, note.clone());
        }
        if let Some(InForce { plan, placements }) = next {
            let mut plan = Arc::unwrap_or_clone(plan);
            plan.notes.push(note);
            self.machine.vram_free = machine.vram_free;
            (self.next, self.current) = (Some(InForce { plan: Arc::new(plan), placements }), false);
        }
    }
}

/// What a plan was made with.
pub(super) fn used(figures: &Figures) -> Note {
    let links = figures.links.map_or(0, |links| links.h2d);
    let components = figures.components.len() as u64;
    let text =
        "What was measured before is used: rates of links, compute times, and what computing takes beside the weights.";
    Note::new("measured_before", &[("h2d", links), ("components", components)], text)
}

/// What the plan needs in the phase that needs most, with what is known of computing.
fn need(plan: &Plan, components: &[Component], reserve: u64) -> u64 {
    let activation = |name: &String| {
        let named = |name: &str| components.iter().find(|component| component.name == name);
        let component = named(name)?;
        component.same_as.as_deref().map_or(Some(component), named)?.activation.map(|activation| activation.bytes)
    };
    let phases = plan.phases.iter().map(|phase| {
        let computing = phase.components.iter().filter_map(activation).max().unwrap_or(0);
        phase.engine_bytes.saturating_add(computing)
    });
    phases.max().unwrap_or(0).saturating_add(reserve)
}

fn numbers(now: Option<u64>, then: Option<u64>, need: u64, free: u64) -> Vec<(&'static str, u64)> {
    let times = [("request_ns_before", now), ("request_ns", then)];
    let known = times.into_iter().filter_map(|(name, value)| Some((name, value?)));
    known.chain([("need", need), ("free", free)]).collect()
}

fn replaced(room: Room, now: Option<u64>, then: Option<u64>, numbers: &[(&str, u64)], machine: &Machine) -> Note {
    let free = machine.vram_free.unwrap_or(0);
    let (code, why) = match room {
        Room::Short => {
            ("replanned_for_memory", format!("The plan before needs more than the {free} bytes that are free"))
        }
        Room::More => ("replanned_for_memory", format!("{free} bytes are free now, more than before")),
        Room::Same => ("calibrated", "The passes so far were measured, and the plan made anew".to_owned()),
    };
    let measured = machine.links.filter(|links| links.h2d > 0).map_or(String::new(), |links| {
        let lane = if machine.device == DeviceKind::Host { "weights are read" } else { "copies to the device run" };
        format!(" ({lane} at {} MB/s)", links.h2d / 1_000_000)
    });
    let gain = match (now, then) {
        (Some(now), Some(then)) => format!(": a request is predicted to take {} instead of {}", time(then), time(now)),
        _ => String::new(),
    };
    Note::new(code, numbers, format!("{why}{measured}{gain}."))
}

fn kept(now: Option<u64>, then: Option<u64>, hysteresis: Hysteresis) -> String {
    match (now, then) {
        (Some(now), Some(then)) => format!(
            "The passes so far were measured, and the plan stays: another would take {} a request instead of {}, which is not \
             {} ‰ less.",
            time(then),
            time(now),
            hysteresis.gain_permille
        ),
        _ => {
            "The passes so far were measured, and the plan stays: the link is not known, so no times can be predicted."
                .to_owned()
        }
    }
}

/// Milliseconds for people.
fn time(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000)
}
