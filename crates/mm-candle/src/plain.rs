//! Loading without a manager: every weight a tensor of its own, the whole model in memory.

use crate::home::candle_dtype;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, var_builder::SimpleBackend};
use mm_cache::Weights;
use mm_engine::dtype_of;
use std::sync::Arc;

/// A `VarBuilder` backend over memory-mapped files.
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
        let stored = dtype_of(source.dtype()).and_then(candle_dtype).ok_or_else(|| {
            Error::Msg(format!("{}: tensor {name}: dtype {:?} is not known", source.file().display(), source.dtype()))
        })?;
        Tensor::from_raw_buffer(source.bytes(), stored, source.shape(), device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}
