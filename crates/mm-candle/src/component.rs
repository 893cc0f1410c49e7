//! A model that is reached only inside `run`.

use crate::Error;
use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use parking_lot::Mutex;
use std::{collections::HashMap, path::PathBuf};

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
}

/// A model that is reached only inside [`Component::run`].
pub struct Component<M> {
    model: Mutex<M>,
}

impl<M: Send> Component<M> {
    /// A model that nobody manages.
    pub fn unmanaged(model: M) -> Self {
        Self { model: Mutex::new(model) }
    }

    /// Runs `f` with the model on the device; one run at a time.
    pub fn run<T>(&self, f: impl FnOnce(&mut M) -> Result<T>) -> std::result::Result<T, Error> {
        Ok(f(&mut self.model.lock())?)
    }
}

/// Loads a component whole, outside any manager.
pub fn load_unmanaged<M: Send>(
    spec: &LoadSpec,
    build: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> std::result::Result<Component<M>, Error> {
    let mut tensors = HashMap::new();
    for file in &spec.files {
        tensors.extend(candle_core::safetensors::load(file, &Device::Cpu)?);
    }
    Ok(Component::unmanaged(build(VarBuilder::from_tensors(tensors, spec.dtype, &Device::Cpu))?))
}
