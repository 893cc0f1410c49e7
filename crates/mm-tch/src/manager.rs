//! The engine's manager for tch models.

use crate::{
    Component, LoadSpec, Result,
    build::{Built, CpuDevice, build, whole},
    component::{Loaded, Managed},
    script,
};
use mm_cache::{Index, LoadParams, WeightStore, Weights};
use mm_engine::{EngineError, ModelManager, Module, Share, timeline::Timeline};
use mm_plan::{Component as Description, Machine, Policy};
use parking_lot::ReentrantMutex;
use std::{cell::RefCell, ops::Deref, path::Path, sync::Arc};
use tch::{CModule, nn};

/// Manages tch models on one device. Everything else it can do is [`ModelManager`]'s.
#[derive(Clone)]
pub struct Manager {
    engine: Arc<ModelManager<CpuDevice>>,
}

impl Manager {
    /// A manager of the CPU under a budget: `machine.vram_free` bytes of host memory for weights.
    ///
    /// # Errors
    /// `Misuse`: the machine presents no budget.
    pub fn cpu(machine: Machine, policy: Policy) -> Result<Self> {
        Self::cpu_with(machine, policy, Arc::new(WeightStore::new(Index::user())))
    }

    /// The same, with weights opened in `weights`, which other managers may share.
    ///
    /// # Errors
    /// As [`Manager::cpu`].
    pub fn cpu_with(machine: Machine, policy: Policy, weights: Arc<WeightStore>) -> Result<Self> {
        let timeline = Arc::new(Timeline::default());
        let device = Arc::new(CpuDevice::of_memory(machine.vram_free.unwrap_or(0), timeline.clone()));
        Ok(Self { engine: ModelManager::with_weights(device, timeline, machine, policy, weights)? })
    }

    /// Loads a component: opens its files, builds the model with `build` over a `VarStore` of its own, and registers it
    /// under `spec.name`. A variable is filled from the tensor of its name, with the component's first run; no weights are
    /// read before.
    ///
    /// tch makes and fills every variable while the model is built, and only then can its memory be taken: building holds the
    /// whole model, or, where it keeps its blocks in [`Blocks`](crate::Blocks), the rest and one block.
    ///
    /// A component that is loaded already (the same bytes, by whatever paths, and [`LoadSpec::config`]) is shared: it is registered
    /// under one name more, phase and passes stay those of the first, and what `M` keeps from run to run is shared too.
    ///
    /// # Errors
    /// The files can't be used; `build` fails; a variable is not in the files; the name is taken.
    pub fn load<M: Send + 'static>(
        &self,
        spec: &LoadSpec,
        make: impl Fn(&nn::Path<'_>) -> Result<M>,
    ) -> Result<Component<M>> {
        let weights = self.engine.weights().open(&spec.files)?;
        let kind = format!("{:?}", spec.kind);
        let params =
            spec.config.as_ref().map(|config| LoadParams { dtype: &kind, device: "cpu", config: config.as_bytes() });
        let build = || self.build(spec, weights.clone(), make);
        let loaded = self.engine.share(&spec.name, &weights, params.as_ref(), build)?;
        self.component(spec, loaded)
    }

    /// Loads a TorchScript module as a component that is on the device whole while it runs. Its parameters are filled from
    /// the tensors of their names in `spec.files`; with none given, from the script itself: they are copied to a file in the
    /// system's folder for temporary ones once, which is deleted with the component. Floats are computed in the kind in which the
    /// script has them; `spec.kind` and `spec.config` don't count.
    ///
    /// What is no parameter stays with the script, outside any budget: buffers, and the constants of a frozen one.
    ///
    /// # Errors
    /// The script can't be loaded or has no parameters; a parameter is not in the files; the name is taken.
    pub fn load_script(&self, spec: &LoadSpec, script: impl AsRef<Path>) -> Result<Component<CModule>> {
        let script = script::open(script.as_ref(), &spec.files, self.engine.weights())?;
        let (module, homes) = whole(&spec.name, &script.weights, None, script.parameters)?;
        let loaded = self.loaded(spec, script.module, module, homes, script.weights).0;
        self.component(spec, Share::alone(loaded))
    }

    fn build<M: Send>(
        &self,
        spec: &LoadSpec,
        weights: Arc<Weights>,
        make: impl Fn(&nn::Path<'_>) -> Result<M>,
    ) -> Result<Loaded<M>> {
        let Built { model, module, homes, link } =
            build(&spec.name, &weights, spec.kind, Some(self.engine.device()), make)?;
        let (loaded, module) = self.loaded(spec, model, module, homes, weights);
        // The link is fresh from this build: nobody else can have set it.
        let _ = link.set(module);
        Ok(loaded)
    }

    fn loaded<M: Send>(
        &self,
        spec: &LoadSpec,
        model: M,
        mut module: mm_engine::ModuleSpec<crate::memory::TorchMemory>,
        homes: crate::home::TchHomes,
        weights: Arc<Weights>,
    ) -> (Loaded<M>, Arc<Module<CpuDevice>>) {
        (module.phase, module.passes) = (spec.phase, spec.passes);
        let module = Module::new(module, self.engine.device().clone(), self.engine.timeline().clone());
        let model = ReentrantMutex::new(RefCell::new(model));
        (Loaded { model, managed: Some((module.clone(), homes)), weights: Some(weights) }, module)
    }

    fn component<M: Send>(&self, spec: &LoadSpec, loaded: Share<Loaded<M>, CpuDevice>) -> Result<Component<M>> {
        // There is one: it was built for this manager.
        let managed = loaded.managed.as_ref().ok_or_else(|| EngineError::Internal("a model has no module".into()))?;
        let registration = self.engine.register_new(&spec.name, &managed.0)?;
        Ok(Component::managed(loaded, Managed { manager: self.engine.clone(), registration }))
    }
}

/// What the planner would be told about a component, without reading its weights. The model comes along; it can't be run.
///
/// # Errors
/// The files can't be used; `build` fails.
pub fn describe<M>(spec: &LoadSpec, make: impl Fn(&nn::Path<'_>) -> Result<M>) -> Result<(Description, M)> {
    let Built { model, mut module, .. } = build(&spec.name, &Weights::open(&spec.files)?, spec.kind, None, make)?;
    (module.phase, module.passes) = (spec.phase, spec.passes);
    Ok((module.description(), model))
}

impl Deref for Manager {
    type Target = Arc<ModelManager<CpuDevice>>;

    fn deref(&self) -> &Self::Target {
        &self.engine
    }
}
