//! Taking components off the device, and out of the manager.

use super::{ModelManager, admission::Shares, overrides::unknown_component, survival::Survival};
use crate::{Device, EngineError, Module, Result};
use mm_plan::Policy;
use std::sync::Arc;

/// What taking a component off the device gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Bytes that are the device's again; zero: it was not there.
    pub bytes: u64,
    /// Bytes that it held and that are not free yet: the driver didn't say that nothing uses them any more. They are freed once it does.
    pub kept: u64,
    /// Bytes that the driver's pools hold though nobody uses them, after they were asked to give them up; `None`: there is no pool.
    pub pooled: Option<u64>,
    /// Bytes that the driver says are free now; `None`: there is no driver that counts.
    pub free: Option<u64>,
}

impl<D: Device> ModelManager<D> {
    /// Takes a component off the device, and says what that gave back; it returns with its next run. What still computes with it is
    /// waited for, on a card by both of its streams, and the driver's pools give up what nobody uses.
    ///
    /// # Errors
    /// `Misuse`: it is running, or not registered.
    pub fn unload(&self, name: &str) -> Result<Released> {
        self.gate.update(|state| {
            let id = state.registry.id(name).ok_or_else(|| unknown_component(name, &state.registry))?;
            if state.admission.runner(id).is_some() {
                return Err(running(name));
            }
            let module = state.registry.entry(id).map(|entry| entry.module.clone());
            module.map_or(Ok(Released::default()), |module| state.take_off(id, &module))
        })
    }

    /// Takes the component off the device that was used last, and returns its name: the one that nothing else drives out when a
    /// request is over. What stays on the device between phases stays.
    ///
    /// # Errors
    /// `Misuse`: it is running.
    pub fn offload_last(&self) -> Result<Option<String>> {
        self.gate.update(|state| {
            let Some(id) = state.admission.last_used() else { return Ok(None) };
            let name = state.title(id);
            if state.admission.runner(id).is_some() {
                return Err(running(&name));
            }
            state.take_all_off(vec![id]).map(|()| Some(name))
        })
    }

    /// What a component holds changed, by a LoRA say: it leaves the device, and its next run brings it back as it is now.
    /// Names that nobody has are ignored.
    ///
    /// # Errors
    /// `Misuse`: it is running.
    pub fn reapply(&self, name: &str) -> Result<()> {
        let known = self.gate.read(|state| state.registry.id(name).is_some());
        if known { self.unload(name).map(drop) } else { Ok(()) }
    }

    /// The module leaves the device and the manager, under all its names and whoever registered it: nothing of this manager is
    /// left on it. `false`: there was nothing to do.
    ///
    /// # Errors
    /// `Misuse`: it is running; then nothing changed.
    pub fn release(&self, module: &Arc<Module<D>>) -> Result<bool> {
        let (outcome, gone) = self.gate.update(|state| {
            let Some(id) = state.registry.id_of(module) else { return Ok((Ok(()), None)) };
            if state.admission.runner(id).is_some() {
                return Err(running(&module.title()));
            }
            let outcome = state.take_off(id, module);
            state.registry.strike(id);
            let gone = state.retire(id);
            state.changed();
            Ok((outcome.map(drop), gone))
        })?;
        let released = gone.is_some();
        self.forget(gone);
        outcome.map(|()| released)
    }

    /// Takes everything off the device and forgets all registrations, sources, overrides, given plans and cached components, and
    /// what the policy says about single components. Tuning (streams, low_cpu_mem) is as it was at the start; the strategy stays.
    ///
    /// # Errors
    /// `Misuse` while a component runs: then nothing changed. Else the device's, after all was tried.
    pub fn clear(&self) -> Result<()> {
        let (outcome, gone) = self.gate.update(|state| {
            if let Some(id) = state.admission.running().next() {
                return Err(running(&state.title(id)));
            }
            let outcome = state.take_all_off(state.admission.held().collect());
            let gone = state.registry.clear();
            state.survival = Survival::default();
            gone.iter().for_each(|entry| entry.module.disown());
            let tuning = Policy::default();
            let policy = &mut state.policy;
            (policy.use_stream, policy.low_cpu_mem) = (tuning.use_stream, tuning.low_cpu_mem);
            policy.strategies.clear();
            policy.resident.clear();
            state.overrides.clear();
            (state.given, state.in_force) = (None, None);
            state.changed();
            state.admission.put_in_force(Shares::default());
            Ok((outcome, gone))
        })?;
        self.cache.clear();
        drop(gone);
        outcome
    }
}

fn running(name: &str) -> EngineError {
    EngineError::Misuse(format!("{name} is running; end its run first"))
}
