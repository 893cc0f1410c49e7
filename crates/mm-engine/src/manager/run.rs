//! One run of a component: it is let in, loaded, a pass begins; at the end the pass ends.

use super::{
    ModelManager, State,
    admission::{Answer, Id, Never, Ticket},
    planning::CIRCLE,
};
use crate::{Device, EngineError, Module, Result, timeline::Kind};
use mm_plan::ComponentPlan;
use std::{
    marker::PhantomData,
    sync::Arc,
    thread::{self, ThreadId},
};

impl<D: Device> ModelManager<D> {
    /// Puts a registered component on the device as the plan says and begins a pass of it. Threads whose components fit the
    /// device together run beside each other; others wait for their turn. A component has one run at a time.
    ///
    /// # Errors
    /// `Infeasible`: no plan fits. `Misuse`: it is not registered, or the wait would never end, as this thread itself runs what is
    /// in the way, or waits in a circle. `Source`: its weights can't be read; then it is not on the device.
    pub fn begin(self: &Arc<Self>, module: &Arc<Module<D>>) -> Result<Run<D>> {
        let (here, asked_ns) = (thread::current().id(), self.timeline.now());
        let mut looks = 0;
        let (id, placement) = self.gate.queue(here, |state, ticket| {
            looks += 1;
            state.admit(ticket, here, module, &self.device)
        })?;
        let waited = looks > 1 || !module.is_loaded();
        let mut run = Run {
            manager: self.clone(),
            module: module.clone(),
            id,
            start_ns: 0,
            stage: Stage::Loading,
            thread_bound: PhantomData,
        };
        // With no lock held: others begin and end their runs meanwhile.
        run.module.load(&placement)?;
        if waited {
            self.timeline.span(Kind::Wait, 0, &module.whole(), asked_ns, 0);
        }
        run.module.begin_pass();
        (run.start_ns, run.stage) = (self.timeline.now(), Stage::Pass);
        Ok(run)
    }
}

impl<D: Device> State<D> {
    /// Lets a run in; what must leave the device for it has left.
    fn admit(
        &mut self,
        ticket: Ticket,
        here: ThreadId,
        module: &Arc<Module<D>>,
        device: &D,
    ) -> Result<Option<(Id, ComponentPlan)>> {
        let unknown = || {
            let name = module.title();
            EngineError::Misuse(format!(
                "{name} is not registered with this manager: it never was, its registration ended, or another \
                 component took its name; register it, under a name of its own"
            ))
        };
        let id = self.registry.id_of(module).ok_or_else(unknown)?;
        if self.admission.runner(id) == Some(here) {
            return Err(EngineError::Misuse(format!("{} is run inside its own run(..)", module.title())));
        }
        let settled = self.refresh(ticket, device);
        // Who is inside a run goes on by the plan that it began under, unless it asked for another itself.
        let inside = self.admission.runs_of(here).next().is_some() && !self.changed_by.contains(&here);
        let placement = self.in_force.as_ref().and_then(|i| i.placements.get(&id)).cloned();
        match settled {
            Ok(true) => {}
            _ if inside && placement.is_some() => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(error),
        }
        let placement = placement
            .ok_or_else(|| EngineError::Internal(format!("the plan in force doesn't know {}", module.title())))?;
        let leave = match self.admission.run(ticket, id) {
            Answer::Granted(leave) => leave,
            Answer::Wait => return Ok(None),
            Answer::Never(never) => return Err(self.never(never, module)),
        };
        if let Err(error) = self.take_all_off(leave) {
            self.admission.end(id);
            if !self.applied.contains_key(&id) {
                self.admission.dropped(id);
            }
            return Err(error);
        }
        self.applied.insert(id, placement.clone());
        Ok(Some((id, placement)))
    }

    fn never(&self, never: Never, module: &Module<D>) -> EngineError {
        let name = module.title();
        match never {
            Never::Own(other) => EngineError::Misuse(format!(
                "{name} can't be on the device beside {}, which this thread is running; give them one phase, or end that \
                 run first",
                self.title(other)
            )),
            Never::Circle => EngineError::Misuse(CIRCLE.to_owned()),
            Never::TooLarge => EngineError::Internal(format!("{name} takes more than the peak of its own plan")),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    Pass,
    Over,
}

/// A pass under way. Dropping it ends the pass as interrupted. It stays on its thread: whoever waits for it waits for
/// that thread.
pub struct Run<D: Device> {
    manager: Arc<ModelManager<D>>,
    module: Arc<Module<D>>,
    id: Id,
    start_ns: u64,
    stage: Stage,
    thread_bound: PhantomData<*const ()>,
}

impl<D: Device> Run<D> {
    /// The pass ran to its end: the order in which it asked for its groups is learned.
    ///
    /// # Errors
    /// What went wrong where nobody could be told, such as a swap in a drop.
    pub fn complete(mut self) -> Result<()> {
        self.end(true)
    }

    /// Computing this pass took that many bytes on top of the weights, at the most. A calibrated manager plans with it
    /// where weights and computing share the device.
    pub fn record_activation(&self, bytes: u64) {
        if let Some(session) = self.manager.gate.read(|state| state.calibration.clone()) {
            session.activation(&self.module.title(), bytes);
        }
    }

    fn end(&mut self, complete: bool) -> Result<()> {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let end_ns = self.manager.timeline.now();
        let outcome = match stage {
            Stage::Over => return Ok(()),
            Stage::Loading => Ok(()),
            Stage::Pass => self.module.end_pass(self.start_ns, complete),
        };
        if let Some(session) = self.manager.gate.read(|state| state.calibration.clone()) {
            session.pass(&self.module.title(), self.start_ns, end_ns, complete && stage == Stage::Pass);
        }
        let (outcome, gone) = self.manager.gate.update(|state| {
            state.admission.end(self.id);
            let gone = state.registry.left(self.id);
            if let Some(entry) = &gone {
                entry.module.disown();
            }
            // What could not be loaded has given back what it had; here it is only written down.
            let leaves = gone.is_some() || stage == Stage::Loading;
            let left = if leaves { state.take_off(self.id, &self.module) } else { Ok(()) };
            (outcome.and(left), gone)
        });
        // What the module holds may take the lock when it is dropped.
        drop(gone);
        outcome
    }
}

impl<D: Device> Drop for Run<D> {
    fn drop(&mut self) {
        // An interrupted pass already has an error, or a panic, of its own.
        let _ = self.end(false);
    }
}
