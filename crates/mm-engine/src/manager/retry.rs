//! Running out of memory is survived: something leaves the device, and the pass is tried again.
//!
//! Idle components leave first. Then the component is planned with less: residents become streamed, then slots go. A plan that was
//! given is run exactly, so there only the first is done.

use super::{
    ModelManager, Run, State,
    admission::Id,
    survival::{Reserve, active_bytes},
};
use crate::{Device, EngineError, Module, Result};
use mm_plan::{Note, Plan};
use std::sync::Arc;

/// What became of a component that ran out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Nothing is left that it could give up.
    No,
    /// What is idle leaves, or it was only a moment.
    Alone,
    /// It is planned with less than these bytes.
    Below(u64),
}

impl<D: Device> ModelManager<D> {
    /// One pass: begins it, calls `pass`, and ends it. Where memory runs out, in loading, in a copy or while `pass` computes, something
    /// leaves the device and all is done again, so `pass` must start over when it is called again. A few times at the most: each time
    /// less stays on the device, until nothing is left that could go.
    ///
    /// `shortage` says whether an error of `pass` means that memory ran out, and how many bytes were asked for that were not there;
    /// zero: not known. The engine's own errors know that themselves ([`EngineError::shortage`]).
    ///
    /// # Errors
    /// As [`ModelManager::begin`], and what `pass` answers.
    pub fn run<T, E: From<EngineError>>(
        self: &Arc<Self>,
        module: &Arc<Module<D>>,
        mut pass: impl FnMut() -> Result<T, E>,
        shortage: impl Fn(&E) -> Option<u64>,
    ) -> Result<T, E> {
        loop {
            let run = self.begin(module)?;
            match pass() {
                Ok(answer) => match run.complete_or_retry()? {
                    true => return Ok(answer),
                    false => continue,
                },
                Err(error) => match shortage(&error) {
                    Some(short) if run.out_of_memory(short) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// What is reserved for components that ran out of memory lately, and until when. The same notes are in the plan.
    pub fn reserves(&self) -> Vec<Note> {
        self.gate.read(|state| state.reserves().iter().map(note).collect())
    }

    /// `is_there`: it may have been a moment, and no pass is lost by trying again with nothing changed.
    pub(super) fn survive(&self, id: Id, short: u64, is_there: bool) -> Retry {
        self.gate.update(|state| state.survive(id, short, is_there, &self.device))
    }
}

impl<D: Device> Run<D> {
    /// The pass ran out of memory, `short` bytes of it (zero: not known), and is over. What is idle leaves the device when the component
    /// is begun again, or, if that was not enough, it is planned with less. `true`: begin it again, there is more room then.
    ///
    /// After a number of good passes what was given up comes back.
    #[must_use]
    pub fn out_of_memory(mut self, short: u64) -> bool {
        // The pass has an error already.
        let _ = self.end(false);
        self.manager.survive(self.id, short, false) != Retry::No
    }

    /// Ends the pass as complete; `false`: memory ran out in its last copies, and it may be tried again.
    fn complete_or_retry(mut self) -> Result<bool> {
        match self.end(true) {
            Ok(()) => Ok(true),
            Err(error) => match error.shortage() {
                Some(short) if self.manager.survive(self.id, short, false) != Retry::No => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl<D: Device> State<D> {
    fn survive(&mut self, id: Id, short: u64, is_there: bool, device: &D) -> Retry {
        let placed = self.in_force.as_ref().and_then(|i| i.placements.get(&id)).map(|p| p.engine_bytes);
        let Some(before) = placed.filter(|_| self.registry.entry(id).is_some()) else { return Retry::No };
        // What is idle leaves when this one is let in again.
        let first = self.survival.ran_out(id);
        if first && (is_there || !self.idle_beside(id).is_empty()) {
            return Retry::Alone;
        }
        if self.given.is_some() && self.overrides.is_empty() {
            return Retry::No;
        }
        let steps = self.survival.steps(id);
        let names: Vec<String> = self.registry.names_of(id).into_iter().map(str::to_owned).collect();
        let held = self.in_force.as_ref().map_or(before, |i| active_bytes(&i.plan, &names).max(before));
        while self.survival.raise(id, short, held) {
            let Ok(next) = self.plan_for(&self.registry, device) else { break };
            if next.placements.get(&id).is_some_and(|placement| placement.engine_bytes < before) {
                (self.current, self.next) = (false, Some(next));
                return Retry::Below(before);
            }
        }
        self.survival.take_back(id, steps);
        Retry::No
    }

    /// What is on the device and doesn't run, but for this one.
    pub(super) fn idle_beside(&self, id: Id) -> Vec<Id> {
        let is_idle = |other: &Id| *other != id && self.admission.runner(*other).is_none();
        self.admission.held().filter(is_idle).collect()
    }

    pub(super) fn reserves(&self) -> Vec<Reserve> {
        let names = |id| self.registry.names_of(id).into_iter().map(str::to_owned).collect();
        self.survival.reserves(names)
    }
}

/// Says in the plan what is reserved, and why.
pub(super) fn explain(plan: &mut Plan, reserves: &[Reserve]) {
    plan.notes.extend(reserves.iter().map(note));
}

fn note(reserve: &Reserve) -> Note {
    let name = reserve.names.first().map_or("", String::as_str);
    let numbers = [("reserve", reserve.bytes), ("times", reserve.times), ("passes", reserve.passes.into())];
    let (bytes, times, passes) = (reserve.bytes, reserve.times, reserve.passes);
    let text = format!(
        "{name} ran out of memory {times} {}: what is idle leaves before it runs, and {bytes} bytes more than planned are left \
         free beside it; {passes} good passes from now some of that comes back.",
        if times == 1 { "time" } else { "times" },
    );
    Note::new("out_of_memory", &numbers, text).about(name)
}
