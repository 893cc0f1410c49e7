//! Loading without a manager: every weight a tensor of its own, the whole model in memory.

use crate::home::{candle_dtype, into_storage};
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, op::BackpropOp};
use candle_nn::{Init, var_builder::SimpleBackend};
use mm_cache::Weights;
use mm_engine::{HostBuffer, HostMemory, dtype_of};
use std::sync::Arc;

/// A `VarBuilder` backend that reads each tensor from its file.
pub(crate) struct PlainBackend(pub(crate) Arc<Weights>);

impl SimpleBackend for PlainBackend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() == shape {
            return Ok(tensor);
        }
        let file = self.0.get(name).map(|t| t.file().display().to_string()).unwrap_or_default();
        let msg = format!("{name} in {file}");
        Err(Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let source = self.0.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())?;
        let fail = |reason: String| Error::Msg(format!("{}: tensor {name}: {reason}", source.file().display())).bt();
        let known = dtype_of(source.dtype()).filter(|d| candle_dtype(*d).is_some() && HostBuffer::holds(*d));
        let stored = known.ok_or_else(|| fail(format!("dtype {:?} is not known", source.dtype())))?;
        let buffer = if candle_dtype(stored) == Some(dtype) {
            HostBuffer::allocate(stored, source.byte_len())
        } else {
            // It goes as soon as it is cast: the next one takes the same memory out of malloc's heap.
            let empty = HostBuffer::empty(stored);
            empty.and_then(|mut buffer| buffer.grow(source.byte_len()).then_some(buffer))
        };
        let mut buffer = buffer.ok_or_else(|| fail(format!("no memory for its {} bytes", source.byte_len())))?;
        source.read_into(0, buffer.bytes_mut()).map_err(|error| fail(error.reason()))?;
        let tensor =
            Tensor::from_storage(Storage::Cpu(into_storage(buffer)), source.shape(), BackpropOp::none(), false);
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}
