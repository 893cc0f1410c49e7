//! One run of a component: room is made, it is loaded, a pass begins; at the end the pass ends.

use super::{ModelManager, State};
use crate::{Device, EngineError, Module, Result, timeline::Kind};
use std::{
    sync::Arc,
    thread::{self, ThreadId},
};

impl<D: Device> ModelManager<D> {
    /// Puts a registered component on the device as the plan says and begins a pass of it. Waits
    /// while other threads run what is in the way.
    ///
    /// # Errors
    /// `Infeasible`: no plan fits. `Misuse`: it is not registered, or this thread itself runs what is in
    /// the way. `Source`: its weights can't be read; then it is not on the device.
    pub fn begin(self: &Arc<Self>, module: &Arc<Module<D>>) -> Result<Run<D>> {
        let asked_ns = self.timeline.now();
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let plan = self.planned(&mut state)?;
            let unknown = || EngineError::Misuse(format!("{} is not registered with this manager", module.name()));
            let placement = plan.component(module.name()).cloned().ok_or_else(unknown)?;
            let entry = state.registry.entry_of(module).ok_or_else(unknown)?;
            let here = thread::current().id();
            let owner = match entry.thread.filter(|_| entry.runs > 0) {
                Some(owner) if owner == here => {
                    return Err(EngineError::Misuse(format!("{} is run inside its own run(..)", module.name())));
                }
                Some(owner) => Some(owner),
                None if module.is_loaded() => None,
                None => self.make_room(&mut state, module, placement.engine_bytes, &plan)?,
            };
            let Some(owner) = owner else {
                waited |= !module.is_loaded();
                module.load(&placement)?;
                state.clock += 1;
                let used = state.clock;
                let entry = state.registry.entry_of(module).ok_or_else(unknown)?;
                (entry.applied, entry.used) = (Some(placement), used);
                (entry.runs, entry.thread) = (1, Some(here));
                if waited {
                    self.timeline.span(Kind::Wait, 0, &module.whole(), asked_ns, 0);
                }
                module.begin_pass();
                let start_ns = self.timeline.now();
                return Ok(Run { manager: self.clone(), module: module.clone(), start_ns, ended: false });
            };
            waited = true;
            self.wait(&mut state, owner)?;
        }
    }

    /// Takes idle components off the device, least recently used first, those of other phases before
    /// those of this one, until `bytes` more stay within the plan's peak. A thread is returned where it
    /// runs what is in the way.
    fn make_room(
        &self,
        state: &mut State<D>,
        module: &Arc<Module<D>>,
        bytes: u64,
        plan: &mm_plan::Plan,
    ) -> Result<Option<ThreadId>> {
        let phase = plan.phases.iter().find(|p| p.components.iter().any(|c| c == module.name()));
        loop {
            let loaded = || state.registry.entries().filter(|e| e.module.is_loaded());
            let held: u64 = loaded().filter_map(|e| e.applied.as_ref()).map(|p| p.engine_bytes).sum();
            if held.saturating_add(bytes) <= plan.peak.device {
                return Ok(None);
            }
            let kept = |e: &super::registry::Entry<D>| e.applied.as_ref().is_some_and(|p| p.keep);
            let beside = |name: &str| phase.is_some_and(|p| p.components.iter().any(|c| c == name));
            let leaves = loaded()
                .filter(|e| e.runs == 0 && !kept(e))
                .min_by_key(|e| (beside(e.module.name()), e.used))
                .map(|e| e.module.clone());
            if let Some(leaves) = leaves {
                leaves.unload()?;
                continue;
            }
            let here = thread::current().id();
            if let Some(mine) = loaded().find(|e| e.runs > 0 && e.thread == Some(here)) {
                return Err(EngineError::Misuse(format!(
                    "{} can't be on the device beside {}, which this thread is running; give them one phase",
                    module.name(),
                    mine.module.name()
                )));
            }
            let owner = loaded().find(|e| e.runs > 0).and_then(|e| e.thread);
            if owner.is_none() {
                let text = format!("{} doesn't fit its own plan: {held} bytes are held", module.name());
                return Err(EngineError::Internal(text));
            }
            return Ok(owner);
        }
    }
}

/// A pass under way. Dropping it ends the pass as interrupted.
pub struct Run<D: Device> {
    manager: Arc<ModelManager<D>>,
    module: Arc<Module<D>>,
    start_ns: u64,
    ended: bool,
}

impl<D: Device> Run<D> {
    /// The pass ran to its end: the order in which it asked for its groups is learned.
    ///
    /// # Errors
    /// What went wrong where nobody could be told, such as a swap in a drop.
    pub fn complete(mut self) -> Result<()> {
        self.end(true)
    }

    fn end(&mut self, complete: bool) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let outcome = self.module.end_pass(self.start_ns, complete);
        let mut state = self.manager.lock();
        let gone = state.registry.end_run(&self.module);
        let outcome = outcome.and(gone.as_ref().map_or(Ok(()), |module| module.unload()));
        self.manager.wake(&mut state);
        // What the module holds may take this lock when it is dropped.
        drop(state);
        outcome
    }
}

impl<D: Device> Drop for Run<D> {
    fn drop(&mut self) {
        // An interrupted pass already has an error, or a panic, of its own.
        let _ = self.end(false);
    }
}
