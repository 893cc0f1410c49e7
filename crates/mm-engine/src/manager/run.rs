//! One run of a component: it is let in, loaded, a pass begins; at the end the pass ends.

use super::{
    ModelManager, State,
    admission::{Answer, Id, Never, Ticket},
    planning::CIRCLE,
    retry::Retry,
};
use crate::{Device, EngineError, Module, Result, module::Layout, timeline::Kind};
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
    /// Where memory runs out, idle components leave the device, then the component is planned with less, and it is tried again.
    ///
    /// # Errors
    /// `Infeasible`: no plan fits. `Misuse`: it is not registered, or the wait would never end, as this thread itself runs what is
    /// in the way, or waits in a circle. `Source`: its weights can't be read; then it is not on the device. `NotNow`, `OverBudget`,
    /// `OutOfMemory`: there is not enough memory for the least that it needs, or for a plan that was given.
    pub fn begin(self: &Arc<Self>, module: &Arc<Module<D>>) -> Result<Run<D>> {
        let (here, asked_ns) = (thread::current().id(), self.timeline.now());
        let (mut looks, mut short) = (0, None::<(EngineError, Retry)>);
        loop {
            let admitted = self.gate.queue(here, |state, ticket| {
                looks += 1;
                state.admit(ticket, here, module, &self.device)
            });
            // Memory ran out first; that nothing smaller can be put in force comes after that.
            let (id, placement, layout) = match (admitted, short.take()) {
                (Ok(admitted), None) => admitted,
                (Err(error), None) | (Err(_), Some((error, _))) => {
                    module.forget_built();
                    return Err(error);
                }
                (Ok((id, placement, layout)), Some((error, retry))) => {
                    if let Retry::Below(limit) = retry
                        && placement.engine_bytes >= limit
                    {
                        drop(self.loading(module, id));
                        return Err(error);
                    }
                    (id, placement, layout)
                }
            };
            let run = self.loading(module, id);
            let waited = looks > 1 || !module.is_loaded();
            if !module.is_loaded() {
                self.forget_built(Some(module));
            }
            // With no lock held: others begin and end their runs meanwhile.
            match module.load(&placement, &layout) {
                Ok(()) => return Ok(run.start(waited.then_some(asked_ns))),
                Err(error) => {
                    let Some(least) = error.shortage() else { return Err(error) };
                    drop(run);
                    // Once what it had is back, and what pools hold for nobody.
                    self.device.trim();
                    let free = self.device.driver_memory().map(|memory| memory.free);
                    let is_there = free.is_none_or(|free| free >= placement.engine_bytes);
                    let missing = free.map_or(least, |free| placement.engine_bytes.saturating_sub(free));
                    match self.survive(id, missing, is_there) {
                        Retry::No => return Err(error),
                        retry => short = Some((error, retry)),
                    }
                }
            }
        }
    }

    /// What components hold since they were built is freed, but for that one's: it has no place beside what is planned.
    pub fn forget_built(&self, but: Option<&Arc<Module<D>>>) {
        let modules: Vec<_> =
            self.gate.read(|state| state.registry.entries().map(|(_, entry)| entry.module.clone()).collect());
        for module in modules.iter().filter(|module| but.is_none_or(|but| !Arc::ptr_eq(module, but))) {
            module.forget_built();
        }
    }

    fn loading(self: &Arc<Self>, module: &Arc<Module<D>>, id: Id) -> Run<D> {
        Run {
            manager: self.clone(),
            module: module.clone(),
            id,
            start_ns: 0,
            stage: Stage::Loading,
            thread_bound: PhantomData,
        }
    }
}

/// Who was let in, how it is placed, and what that was planned for.
type Admitted<D> = (Id, ComponentPlan, Arc<Layout<<D as Device>::Buffer>>);

impl<D: Device> State<D> {
    /// Lets a run in; what must leave the device for it has left.
    fn admit(
        &mut self,
        ticket: Ticket,
        here: ThreadId,
        module: &Arc<Module<D>>,
        device: &D,
    ) -> Result<Option<Admitted<D>>> {
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
        let beside = if self.survival.is_alone(id) { self.idle_beside(id) } else { Vec::new() };
        if let Err(error) = self.take_all_off(leave.into_iter().chain(beside).collect()) {
            self.admission.end(id);
            if !self.applied.contains_key(&id) {
                self.admission.dropped(id);
            }
            return Err(error);
        }
        self.applied.insert(id, placement.clone());
        // The plan is for this one, whatever it was replaced by since.
        let layout = self.layouts.get(&id).cloned().unwrap_or_else(|| module.layout());
        Ok(Some((id, placement, layout)))
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
    pub(super) manager: Arc<ModelManager<D>>,
    module: Arc<Module<D>>,
    pub(super) id: Id,
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

    /// It is loaded: the pass begins. `asked_ns`: when it was asked for, if it waited.
    fn start(mut self, asked_ns: Option<u64>) -> Self {
        let timeline = self.manager.timeline();
        if let Some(asked_ns) = asked_ns {
            timeline.span(Kind::Wait, 0, &self.module.whole(), asked_ns, 0);
        }
        self.module.begin_pass();
        (self.start_ns, self.stage) = (timeline.now(), Stage::Pass);
        self
    }

    pub(super) fn end(&mut self, complete: bool) -> Result<()> {
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
            if complete && stage == Stage::Pass && outcome.is_ok() && state.survival.passed(self.id) {
                // What it gave up comes back, with the next run.
                (state.current, state.next) = (false, None);
            }
            let gone = state.registry.left(self.id);
            if let Some(entry) = &gone {
                entry.module.disown();
            }
            // What could not be loaded has given back what it had; here it is only written down.
            let leaves = gone.is_some() || stage == Stage::Loading;
            let left = if leaves { state.take_off(self.id, &self.module).map(drop) } else { Ok(()) };
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
