//! Loading without a manager: every weight a tensor of its own, the whole model in memory.

use crate::{
    build::Target,
    home::{candle_dtype, into_storage},
};
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, op::BackpropOp};
use candle_nn::{Init, var_builder::SimpleBackend};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{HostBuffer, Place, dtype_of};
use parking_lot::Mutex;
use std::sync::Arc;

/// A `VarBuilder` backend that reads each tensor from its file, and remembers what it handed out.
#[derive(Clone)]
pub(crate) struct PlainBackend {
    weights: Arc<Weights>,
    given: Arc<Mutex<Vec<Target>>>,
}

impl PlainBackend {
    pub(crate) fn new(weights: Arc<Weights>) -> Self {
        Self { weights, given: Arc::default() }
    }

    /// What was handed out so far.
    pub(crate) fn take_given(&self) -> Vec<Target> {
        std::mem::take(&mut *self.given.lock())
    }
}

/// A weight in memory of its own.
pub(crate) fn read(weights: &Weights, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
    let source = weights.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())?;
    read_tensor(source)?.to_device(device)?.to_dtype(dtype)
}

/// The same on the CPU, as stored.
pub(crate) fn read_tensor(source: &TensorSlice) -> Result<Tensor> {
    let fail =
        |reason: String| Error::Msg(format!("{}: tensor {}: {reason}", source.file().display(), source.name())).bt();
    let empty = dtype_of(source.dtype()).filter(|d| candle_dtype(*d).is_some()).and_then(HostBuffer::empty);
    let mut buffer = empty.ok_or_else(|| fail(format!("dtype {:?} is not known", source.dtype())))?;
    if !(buffer.reserve(source.byte_len()) && buffer.grow(source.byte_len())) {
        return Err(fail(format!("no memory for its {} bytes", source.byte_len())));
    }
    source.read_into(0, buffer.bytes_mut()).map_err(|error| fail(error.reason()))?;
    Ok(Tensor::from_storage(Storage::Cpu(into_storage(buffer)), source.shape(), BackpropOp::none(), false))
}

impl SimpleBackend for PlainBackend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() == shape {
            return Ok(tensor);
        }
        let file = self.weights.get(name).map(|t| t.file().display().to_string()).unwrap_or_default();
        let msg = format!("{name} in {file}");
        Err(Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = read(&self.weights, name, dtype, device)?;
        self.given.lock().push(Target { name: name.to_owned(), tensor: tensor.clone(), place: Place::Rest });
        Ok(tensor)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.get(name).is_some()
    }
}
