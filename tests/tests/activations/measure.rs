//! Runs a model once and counts.

use crate::HEAP;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a model asked for and what a forward of it took.
pub(crate) struct Measured {
    pub(crate) tensors: BTreeMap<String, Vec<usize>>,
    pub(crate) config: Option<Value>,
    /// Peak of live heap bytes above what was alive before.
    pub(crate) peak: u64,
}

/// Makes up every tensor that is asked for, with its shape, and remembers it. Not a `VarMap`, whose variables would
/// have every result keep what it was computed from.
struct Recorder {
    asked: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
    /// Ends of the names that are there when a model looks before it asks.
    present: Vec<String>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.asked.lock().unwrap().insert(name.to_owned(), shape.dims().to_vec());
        Tensor::full(0.01f32, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: no shape to make up")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.present.iter().any(|end| name.ends_with(end))
    }
}

/// Builds a model from made-up weights and counts a forward.
pub(crate) fn measure<M>(
    dtype: DType,
    present: &[&str],
    build: impl FnOnce(VarBuilder<'_>) -> Result<M>,
    forward: impl FnOnce(&M) -> Result<Tensor>,
) -> Result<Measured> {
    let asked = Arc::new(Mutex::new(BTreeMap::new()));
    let present = present.iter().map(|&name| name.to_owned()).collect();
    let backend = Recorder { asked: asked.clone(), present };
    let model = build(VarBuilder::from_backend(Box::new(backend), dtype, Device::Cpu))?;
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let out = forward(&model)?;
    let peak = (HEAP.peak_usage() - before) as u64;
    drop((out, model));
    let tensors = std::mem::take(&mut *asked.lock().unwrap());
    Ok(Measured { tensors, config: None, peak })
}
