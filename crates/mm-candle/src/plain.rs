//! Loading without a manager: every weight a tensor of its own, the whole model in memory.

use crate::{
    home::{candle_dtype, into_storage},
    quantized::{bytes_asked, words},
};
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, op::BackpropOp};
use candle_nn::{Init, var_builder::SimpleBackend};
use mm_cache::Weights;
use mm_engine::{HostBuffer, dtype_of};
use std::sync::Arc;

/// A `VarBuilder` backend that reads each tensor from its file.
pub(crate) struct PlainBackend(pub(crate) Arc<Weights>);

impl SimpleBackend for PlainBackend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(source) = self.0.get(name) {
            bytes_asked(source, Some(&shape), dtype)?;
        }
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
        let as_bytes = bytes_asked(source, None, dtype)?;
        let stored = if as_bytes { Some(mm_plan::DType::Bytes) } else { dtype_of(source.dtype()) };
        let empty = stored.filter(|d| as_bytes || candle_dtype(*d).is_some()).and_then(HostBuffer::empty);
        let mut buffer = empty.ok_or_else(|| fail(format!("dtype {:?} is not known", source.dtype())))?;
        // Of a quantized one the last word may not be full.
        let room = if as_bytes { source.byte_len().next_multiple_of(4) } else { source.byte_len() };
        if !(buffer.reserve(room) && buffer.grow(room)) {
            return Err(fail(format!("no memory for its {} bytes", source.byte_len())));
        }
        let bytes = buffer.bytes_mut();
        // As many as there are, of which room has been made for all.
        let place = bytes.get_mut(..source.byte_len() as usize).ok_or_else(|| fail("its buffer is short".into()))?;
        source.read_into(0, place).map_err(|error| fail(error.reason()))?;
        let shape = if as_bytes { Shape::from(words(source)) } else { Shape::from(source.shape()) };
        let tensor = Tensor::from_storage(Storage::Cpu(into_storage(buffer)), shape, BackpropOp::none(), false);
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}
