//! The engine's manager for candle models.

use crate::{
    Component, Error, LoadSpec,
    build::{Built, build},
    component::{Loaded, Managed},
    lora::{layout::Base, state::Adapted},
    spans::{Spans, build_with_spans},
};
use candle_core::{Device, Result};
use candle_nn::VarBuilder;
use mm_cache::{Index, LoadParams, WeightStore, Weights};
use mm_engine::{AnyDevice, EngineError, HostDevice, ModelManager, Module, Share, timeline::Timeline};
#[cfg(feature = "cuda")]
use mm_engine::{CudaDevice, Staging};
use mm_plan::{Component as Description, Machine, Policy};
use parking_lot::{Mutex, ReentrantMutex};
use std::{cell::RefCell, ops::Deref, sync::Arc};

/// Manages candle models on one device. Everything else it can do is [`ModelManager`]'s.
#[derive(Clone)]
pub struct Manager {
    engine: Arc<ModelManager<AnyDevice>>,
    device: Device,
}

impl Manager {
    /// A manager of the CPU under a budget: `machine.vram_free` bytes of host memory for weights.
    ///
    /// # Errors
    /// `Misuse`: the machine presents no budget.
    pub fn cpu(machine: Machine, policy: Policy) -> std::result::Result<Self, Error> {
        Self::cpu_with(machine, policy, Arc::new(WeightStore::new(Index::user())))
    }

    /// The same, with weights opened in `weights`, which other managers may share.
    ///
    /// # Errors
    /// As [`Manager::cpu`].
    pub fn cpu_with(machine: Machine, policy: Policy, weights: Arc<WeightStore>) -> std::result::Result<Self, Error> {
        let timeline = Arc::new(Timeline::default());
        let device = AnyDevice::Host(HostDevice::new(machine.vram_free.unwrap_or(0), timeline.clone()));
        let engine = ModelManager::with_weights(Arc::new(device), timeline, machine, policy, weights)?;
        Ok(Self { engine, device: Device::Cpu })
    }

    /// A manager of the card with this number, under a budget: `machine.vram_free` bytes of it for weights. Models are built on
    /// [`Manager::candle_device`], and compute on its stream; inputs go there too.
    ///
    /// # Errors
    /// candle can't use the card; `NoDriver`; the machine presents no budget; its host has no room for the staging ring.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize, machine: Machine, policy: Policy) -> std::result::Result<Self, Error> {
        Self::cuda_with(ordinal, machine, policy, Arc::new(WeightStore::new(Index::user())))
    }

    /// The same, with weights opened in `weights`, which other managers may share.
    ///
    /// # Errors
    /// As [`Manager::cuda`].
    #[cfg(feature = "cuda")]
    pub fn cuda_with(
        ordinal: usize,
        machine: Machine,
        policy: Policy,
        weights: Arc<WeightStore>,
    ) -> std::result::Result<Self, Error> {
        let device = Device::new_cuda_with_stream(ordinal)?;
        let candle = device.as_cuda_device()?;
        crate::card::order_by_engine(candle);
        let timeline = Arc::new(Timeline::default());
        let staging = Staging::within(&machine);
        let (budget, stream) = (machine.vram_free.unwrap_or(0), candle.cuda_stream());
        let memory = CudaDevice::with_staging(ordinal, Some(stream), budget, staging, timeline.clone())?;
        let engine = ModelManager::with_weights(Arc::new(AnyDevice::Cuda(memory)), timeline, machine, policy, weights)?;
        Ok(Self { engine, device })
    }

    /// Where its models compute.
    pub const fn candle_device(&self) -> &Device {
        &self.device
    }

    /// Loads a component: opens its files, builds the model with `build` (called again where a tensor
    /// turns out to be shared between blocks), and registers it under `spec.name`. Its weights reach
    /// the device with the first run.
    ///
    /// A component that is loaded already (the same bytes, by whatever paths, and [`LoadSpec::config`]) is shared: it is registered
    /// under one name more, phase and passes stay those of the first, and what `M` keeps from run to run is shared too.
    ///
    /// # Errors
    /// The files can't be used; `build` fails; another component has the name.
    pub fn load<M: Send + 'static>(
        &self,
        spec: &LoadSpec,
        make: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, Error> {
        let weights = self.engine.weights().open(&spec.files)?;
        let config = spec.config.as_ref().map(|config| format!("{} {} {config}", spec.lazy, spec.spans));
        let place = format!("{:?}", self.device.location());
        let params = config.as_ref().map(|config| LoadParams {
            dtype: spec.dtype.as_str(),
            device: &place,
            config: config.as_bytes(),
        });
        let build = || self.build(spec, weights.clone(), make);
        let loaded = self.engine.share(&spec.name, &weights, params.as_ref(), build)?;
        self.enlist(spec, loaded)
    }

    /// As [`Manager::load`], for a model that can't move between threads, such as one of boxed trait objects: the component stays on
    /// its thread too, and is not shared, whatever [`LoadSpec::config`] says.
    ///
    /// # Errors
    /// As there.
    pub fn load_local<M>(
        &self,
        spec: &LoadSpec,
        make: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, Error> {
        let weights = self.engine.weights().open(&spec.files)?;
        self.enlist(spec, Share::alone(self.build(spec, weights, make)?))
    }

    fn enlist<M>(
        &self,
        spec: &LoadSpec,
        loaded: Share<Loaded<M>, AnyDevice>,
    ) -> std::result::Result<Component<M>, Error> {
        // There is one: it was built for this manager.
        let module = loaded.module.as_ref().ok_or_else(|| EngineError::Internal("a model has no module".into()))?;
        let registration = self.engine.register_new(&spec.name, module)?;
        Ok(Component::managed(loaded, Managed { manager: self.engine.clone(), registration }))
    }

    fn build<M>(
        &self,
        spec: &LoadSpec,
        weights: Arc<Weights>,
        make: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Loaded<M>, Error> {
        let memory = self.engine.device();
        self.engine.forget_built(None);
        let eager = (!spec.lazy).then_some(memory);
        let (Built { model, mut base, targets, link }, spans) = build_as(spec, &weights, &self.device, eager, make)?;
        (base.phase, base.passes) = (spec.phase, spec.passes);
        let module = base.with(&self.device, &targets, &[])?;
        let module = Module::new(module, memory.clone(), self.engine.timeline().clone());
        // The link is fresh from this build: nobody else can have set it.
        let _ = link.set(module.clone());
        if let Some(spans) = &spans {
            spans.note();
        }
        Ok(Loaded {
            device: self.device.clone(),
            model: ReentrantMutex::new(RefCell::new(model)),
            module: Some(module),
            spans,
            weights: Some(weights),
            adapted: Mutex::new(Adapted::new(targets, Some(base))),
        })
    }
}

fn build_as<M>(
    spec: &LoadSpec,
    weights: &Arc<Weights>,
    device: &Device,
    memory: Option<&Arc<AnyDevice>>,
    make: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> Result<(Built<M>, Option<Spans>)> {
    if spec.spans {
        let (built, spans) = build_with_spans(&spec.name, weights, spec.dtype, device, memory, make)?;
        return Ok((built, Some(spans)));
    }
    Ok((build(&spec.name, weights, spec.dtype, device, memory, None, make)?, None))
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
    let (built, _) = build_as(spec, &Weights::open(&spec.files)?, &Device::Cpu, None, make)?;
    let base = Base { phase: spec.phase, passes: spec.passes, ..built.base };
    Ok((base.with(&Device::Cpu, &built.targets, &[])?.description(), built.model))
}

impl Deref for Manager {
    type Target = Arc<ModelManager<AnyDevice>>;

    fn deref(&self) -> &Self::Target {
        &self.engine
    }
}
