//! A model that is reached only inside `run`.

use crate::{Error, plain::PlainBackend};
use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use mm_cache::Weights;
use mm_engine::{EngineError, HostDevice, ModelManager, Module, Registration};
use parking_lot::ReentrantMutex;
use std::{cell::RefCell, path::PathBuf, sync::Arc};

/// What to load and how it is used.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// Its safetensors files.
    pub files: Vec<PathBuf>,
    /// Compute dtype.
    pub dtype: DType,
    /// Components of one phase are active together; `None`: active alone.
    pub phase: Option<u32>,
    /// Forwards per request.
    pub passes: u32,
    /// The model only keeps its weights while it is built, as most do: then none are read before its first run.
    /// A model that computes with them there fails to build; one that copies them there (batch norms do) is
    /// refused by the kernels when it runs. `false` is right for any model.
    pub lazy: bool,
}

/// How a component hangs on its manager.
pub(crate) struct Managed {
    pub(crate) manager: Arc<ModelManager<HostDevice>>,
    pub(crate) module: Arc<Module<HostDevice>>,
    pub(crate) registration: Registration<HostDevice>,
}

/// A model that is reached only inside [`Component::run`]. Dropping it unregisters it.
pub struct Component<M> {
    // The registration goes first: it takes the weights off the device.
    managed: Option<Managed>,
    model: ReentrantMutex<RefCell<M>>,
}

impl<M: Send> Component<M> {
    /// A model that nobody manages.
    pub const fn unmanaged(model: M) -> Self {
        Self { managed: None, model: ReentrantMutex::new(RefCell::new(model)) }
    }

    pub(crate) const fn managed(model: M, managed: Managed) -> Self {
        Self { managed: Some(managed), model: ReentrantMutex::new(RefCell::new(model)) }
    }

    /// The name it is registered under; `None`: nobody manages it.
    pub fn name(&self) -> Option<&str> {
        self.managed.as_ref().map(|m| m.registration.name())
    }

    /// One pass: puts the component on the device as the plan says and calls `f` with the model. One
    /// run at a time; other threads wait.
    ///
    /// # Errors
    /// The engine's: no plan fits, weights can't be read, a run inside its own run. Else what `f` says.
    pub fn run<T>(&self, f: impl FnOnce(&mut M) -> Result<T>) -> std::result::Result<T, Error> {
        let run = self.managed.as_ref().map(|m| m.manager.begin(&m.module)).transpose()?;
        let model = self.model.lock();
        let mut model = model
            .try_borrow_mut()
            .map_err(|_| EngineError::Misuse("a component is run inside its own run(..)".to_owned()))?;
        let answer = f(&mut model)?;
        run.map_or(Ok(()), mm_engine::Run::complete)?;
        Ok(answer)
    }
}

/// Loads a component whole, outside any manager: what a managed one is compared with.
///
/// # Errors
/// The files can't be used, or `build` fails.
pub fn load_unmanaged<M: Send>(
    spec: &LoadSpec,
    build: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> std::result::Result<Component<M>, Error> {
    let backend = Box::new(PlainBackend(Weights::open(&spec.files)?));
    Ok(Component::unmanaged(build(VarBuilder::from_backend(backend, spec.dtype, Device::Cpu))?))
}
