//! A pipeline and its manager, in one call.

use super::{ModelManager, Pipeline, SourceRegistration};
use crate::{Device, EngineError, Result, scope::device_scope};
use mm_plan::{DType, Machine, Note, Policy, Strategy};
use std::{ops::Deref, sync::Arc};

/// Starts managing a pipeline; [`Managing::start`] does it.
///
/// ```
/// # use mm_engine::{Device, Pipeline, managed};
/// # use mm_plan::{Machine, Strategy};
/// # use std::sync::Arc;
/// # fn both<D: Device, P: Pipeline<D>>(base: Arc<P>, refiner: Arc<P>, machine: Machine) -> mm_engine::Result<()> {
/// let base = managed(base).on(machine).strategy(Strategy::Auto).start()?; // a manager of its own
/// let refiner = managed(refiner).sharing(base.manager()).start()?; // the same one: what both list is held once
/// base.run(|pipeline| pipeline.components().len());
/// # Ok(())
/// # }
/// ```
pub const fn managed<D: Device, P: Pipeline<D>>(pipeline: Arc<P>) -> Managing<P, D> {
    Managing { pipeline, manager: None, machine: None, policy: None, dtype: None }
}

/// How a pipeline is to be managed.
#[must_use = "nothing is managed until `start` is called"]
pub struct Managing<P, D: Device> {
    pipeline: Arc<P>,
    manager: Option<Arc<ModelManager<D>>>,
    machine: Option<Machine>,
    policy: Option<Policy>,
    dtype: Option<DType>,
}

impl<P: Pipeline<D>, D: Device> Managing<P, D> {
    /// By this manager, with what it manages already. The manager's own configuration counts, and what is said here is
    /// ignored, which a note says.
    pub fn sharing(mut self, manager: &Arc<ModelManager<D>>) -> Self {
        self.manager = Some(manager.clone());
        self
    }

    /// By a manager of its own, which plans for this machine.
    pub fn on(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    /// By this policy.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// By this strategy.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.policy.get_or_insert_default().strategy = strategy;
        self
    }

    /// What [`crate::scoped_dtype`] says inside [`Managed::run`].
    pub const fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Registers all components, plans, and puts the plan in force; on an error nothing changed.
    ///
    /// # Errors
    /// `Infeasible`: no plan fits. `Misuse`: the pipeline has no components, a module can't be registered, or neither a manager
    /// nor a machine was given.
    pub fn start(self) -> Result<Managed<P, D>> {
        let Self { pipeline, manager, machine, policy, dtype } = self;
        let mut notes = Vec::new();
        let manager = match manager {
            Some(manager) => {
                if machine.is_some() || policy.is_some() {
                    notes.push(Note::new(
                        "configuration_ignored",
                        &[],
                        "the pipeline shares a manager, which has its own configuration: the machine, policy or strategy \
                         given here is ignored; change the manager's with set_policy",
                    ));
                }
                manager
            }
            None => own_manager(&pipeline, machine, policy)?,
        };
        let registration = manager.register_source(&pipeline, |state, trial| {
            if state.admission.runs_of(std::thread::current().id()).next().is_some() {
                let text = "a pipeline can't be managed inside a run; do it before";
                return Err(EngineError::Misuse(text.to_owned()));
            }
            state.plan_for(trial, &manager.device).map(drop)
        })?;
        manager.apply()?;
        Ok(Managed { registration, pipeline, manager, notes, dtype })
    }
}

fn own_manager<D: Device, P: Pipeline<D>>(
    pipeline: &Arc<P>,
    machine: Option<Machine>,
    policy: Option<Policy>,
) -> Result<Arc<ModelManager<D>>> {
    let machine = machine.ok_or_else(|| {
        EngineError::Misuse("say where to run: managed(..).on(machine), or .sharing(manager)".to_owned())
    })?;
    let components = pipeline.components();
    let (_, module) = components.first().ok_or_else(|| {
        EngineError::Misuse("it has no components to manage; list at least one in Pipeline::components".to_owned())
    })?;
    ModelManager::new(module.device.clone(), module.timeline.clone(), machine, policy.unwrap_or_default())
}

/// A pipeline whose components a manager holds; dropping it takes them back.
pub struct Managed<P, D: Device> {
    // It goes first: weights leave the device before the pipeline does.
    registration: SourceRegistration<D>,
    pipeline: Arc<P>,
    manager: Arc<ModelManager<D>>,
    notes: Vec<Note>,
    dtype: Option<DType>,
}

impl<P, D: Device> Managed<P, D> {
    /// Calls `f` with the pipeline, inside the scope of its device and dtype.
    pub fn run<T>(&self, f: impl FnOnce(&P) -> T) -> T {
        let _scope = device_scope(self.manager.device(), self.dtype);
        f(&self.pipeline)
    }

    /// Who manages it.
    pub const fn manager(&self) -> &Arc<ModelManager<D>> {
        &self.manager
    }

    /// The names of its components.
    pub fn component_names(&self) -> &[String] {
        self.registration.names()
    }

    /// What its user should know about how it is managed.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

impl<P, D: Device> Deref for Managed<P, D> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.pipeline
    }
}
