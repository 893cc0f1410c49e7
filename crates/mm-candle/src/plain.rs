//! Loading without a manager: every weight a tensor of its own, the whole model in memory.

use crate::{
    build::Target,
    home::{candle_dtype, into_storage},
    quantized::{bytes_asked, words},
};
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, op::BackpropOp};
use candle_nn::{Init, var_builder::SimpleBackend};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{HostBuffer, HostMemory, Place, dtype_of};
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

/// A weight in memory of its own; the bytes of a quantized one, where they are asked for.
pub(crate) fn read(weights: &Weights, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
    let source = weights.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())?;
    let as_bytes = bytes_asked(source, None, dtype)?;
    let stays = dtype_of(source.dtype()).and_then(candle_dtype) == Some(dtype);
    let tensor = if as_bytes { read_bytes(source) } else { read_tensor(source, stays) };
    tensor?.to_device(device)?.to_dtype(dtype)
}

/// The same on the CPU, as stored. `stays`: it is not cast, which soon ends it.
pub(crate) fn read_tensor(source: &TensorSlice, stays: bool) -> Result<Tensor> {
    let stored = dtype_of(source.dtype()).filter(|d| candle_dtype(*d).is_some());
    let stored = stored.ok_or_else(|| fail(source, &format!("dtype {:?} is not known", source.dtype())))?;
    read_as(source, stored, source.byte_len(), Shape::from(source.shape()), stays)
}

/// A quantized one's bytes, as words of which the last may not be full.
fn read_bytes(source: &TensorSlice) -> Result<Tensor> {
    let room = source.byte_len().next_multiple_of(4);
    read_as(source, mm_plan::DType::Bytes, room, Shape::from(words(source)), true)
}

fn read_as(source: &TensorSlice, stored: mm_plan::DType, room: u64, shape: Shape, stays: bool) -> Result<Tensor> {
    if !HostBuffer::holds(stored) {
        return Err(fail(source, &format!("dtype {stored} is not known")));
    }
    let buffer = if stays {
        HostBuffer::allocate(stored, room)
    } else {
        // The next one takes the same memory out of malloc's heap.
        HostBuffer::empty(stored).and_then(|mut buffer| buffer.grow(room).then_some(buffer))
    };
    let mut buffer = buffer.ok_or_else(|| fail(source, &format!("no memory for its {} bytes", source.byte_len())))?;
    // As many as there are, of which room has been made for all.
    let place = usize::try_from(source.byte_len()).ok().and_then(|len| buffer.bytes_mut().get_mut(..len));
    let place = place.ok_or_else(|| fail(source, "its buffer is short"))?;
    source.read_into(0, place).map_err(|error| fail(source, &error.reason()))?;
    Ok(Tensor::from_storage(Storage::Cpu(into_storage(buffer)), shape, BackpropOp::none(), false))
}

fn fail(source: &TensorSlice, reason: &str) -> Error {
    Error::Msg(format!("{}: tensor {}: {reason}", source.file().display(), source.name())).bt()
}

impl SimpleBackend for PlainBackend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(source) = self.weights.get(name) {
            bytes_asked(source, Some(&shape), dtype)?;
        }
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
