//! Other dtypes than a model asks for, in a loader of one's own.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, var_builder::SimpleBackend};

/// A `VarBuilder` backend that hands out another one's weights in dtypes of its own choice, weight by weight: norms that stay in f32 in a
/// model computed in bf16, say.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::VarBuilder;
/// use mm_candle::CastBackend;
/// use std::collections::HashMap;
///
/// let one = || Tensor::ones(4, DType::F32, &Device::Cpu);
/// let weights = HashMap::from([("norm.weight".to_owned(), one()?), ("proj.weight".to_owned(), one()?)]);
/// let keep_norms = |name: &str, asked| if name.contains("norm") { DType::F32 } else { asked };
/// let backend = CastBackend::new(Box::new(weights), keep_norms);
/// let vb = VarBuilder::from_backend(Box::new(backend), DType::BF16, Device::Cpu);
/// assert_eq!(vb.get(4, "norm.weight")?.dtype(), DType::F32);
/// assert_eq!(vb.get(4, "proj.weight")?.dtype(), DType::BF16);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct CastBackend<'a, F> {
    inner: Box<dyn SimpleBackend + 'a>,
    dtype: F,
}

impl<'a, F: Fn(&str, DType) -> DType + Send + Sync> CastBackend<'a, F> {
    /// `inner`'s weights; `dtype` says in which dtype, given a name and what was asked for.
    pub fn new(inner: Box<dyn SimpleBackend + 'a>, dtype: F) -> Self {
        Self { inner, dtype }
    }
}

impl<F: Fn(&str, DType) -> DType + Send + Sync> SimpleBackend for CastBackend<'_, F> {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let dtype = (self.dtype)(name, dtype);
        // Most backends cast by themselves; then this is nothing.
        self.inner.get(shape, name, init, dtype, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let dtype = (self.dtype)(name, dtype);
        self.inner.get_unchecked(name, dtype, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.inner.contains_tensor(name)
    }
}
