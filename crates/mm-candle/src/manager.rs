//! The engine's manager for candle models.

use crate::{Component, Error, LoadSpec, build::build, component::Managed};
use candle_core::Result;
use candle_nn::VarBuilder;
use mm_cache::{LoadError, Weights, component_hash};
use mm_engine::{HostDevice, ModelManager, Module, timeline::Timeline};
use mm_plan::{Component as Description, Machine, Policy};
use std::{ops::Deref, sync::Arc};

/// Manages candle models on one device. Everything else it can do is [`ModelManager`]'s.
#[derive(Clone)]
pub struct Manager {
    engine: Arc<ModelManager<HostDevice>>,
}

impl Manager {
    /// A manager of the CPU under a budget: `machine.vram_free` bytes of host memory for weights.
    ///
    /// # Errors
    /// `Misuse`: the machine presents no budget.
    pub fn cpu(machine: Machine, policy: Policy) -> std::result::Result<Self, Error> {
        let timeline = Arc::new(Timeline::default());
        let device = Arc::new(HostDevice::new(machine.vram_free.unwrap_or(0), timeline.clone()));
        Ok(Self { engine: ModelManager::new(device, timeline, machine, policy)? })
    }

    /// Loads a component: opens its files, builds the model with `build` (called again where a tensor
    /// turns out to be shared between blocks), and registers it under `spec.name`. Its weights reach
    /// the device with the first run.
    ///
    /// # Errors
    /// The files can't be used; `build` fails; the name is taken.
    pub fn load<M: Send>(
        &self,
        spec: &LoadSpec,
        make: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, Error> {
        let weights = self.weights(spec)?;
        let device = self.engine.device();
        let (model, mut module, link) = build(&spec.name, &weights, spec.dtype, (!spec.lazy).then_some(device), make)?;
        (module.phase, module.passes) = (spec.phase, spec.passes);
        let module = Module::new(module, device.clone(), self.engine.timeline().clone());
        // The link is fresh from this build: nobody else can have set it.
        let _ = link.set(module.clone());
        let registration = self.engine.register(&spec.name, &module)?;
        Ok(Component::managed(model, Managed { manager: self.engine.clone(), module, registration }))
    }

    /// The files, open, shared with whoever loads the same ones; opened anew where they were changed or replaced.
    fn weights(&self, spec: &LoadSpec) -> std::result::Result<Arc<Weights>, Error> {
        let identifier: Vec<String> = spec.files.iter().map(|f| f.display().to_string()).collect();
        let identifier = identifier.join("\n");
        let weigh = |_: &Arc<Weights>| 0; // open files: no memory to speak of
        let load = || self.engine.load_component(&identifier, weigh, || Weights::open(&spec.files));
        let mut loaded = load();
        if loaded.as_ref().is_ok_and(|weights| !weights.are_current()) {
            self.engine.cache().remove(&component_hash(&identifier));
            loaded = load();
        }
        match loaded {
            Ok(weights) => Ok((*weights).clone()),
            Err(LoadError::Factory(error)) => Err(error.into()),
            Err(other) => Err(mm_engine::EngineError::Misuse(other.to_string()).into()),
        }
    }
}

/// What the planner would be told about a component, without reading its weights: the model is built over
/// tensors that have no memory. The model comes along; it can't be run.
///
/// # Errors
/// The files can't be used; `build` fails, which it also does where it computes with weights.
pub fn describe<M>(
    spec: &LoadSpec,
    make: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> std::result::Result<(Description, M), Error> {
    let (model, mut module, _) = build(&spec.name, &Weights::open(&spec.files)?, spec.dtype, None, make)?;
    (module.phase, module.passes) = (spec.phase, spec.passes);
    Ok((module.description(), model))
}

impl Deref for Manager {
    type Target = Arc<ModelManager<HostDevice>>;

    fn deref(&self) -> &Self::Target {
        &self.engine
    }
}
