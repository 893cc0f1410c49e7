//! Weights for tests: made up from their names, so that two models that ask for the same get the same.

use crate::latents::noise;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

type Make = dyn Fn(&str, &[usize]) -> Option<Tensor> + Send + Sync;

/// A backend that has every tensor that `make` knows.
pub(crate) struct Invented(Box<Make>);

impl Invented {
    /// Has whatever is asked for; a test for a name finds those of FLUX.1's own files, and T5's.
    pub(crate) fn original() -> VarBuilder<'static> {
        Self::named(|name, shape| Self::tensor(name, shape).ok())
    }

    pub(crate) fn named(
        make: impl Fn(&str, &[usize]) -> Option<Tensor> + Send + Sync + 'static,
    ) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Self(Box::new(make))), DType::F32, Device::Cpu)
    }

    /// Of a size that keeps activations in hand.
    pub(crate) fn tensor(name: &str, shape: &[usize]) -> Result<Tensor> {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let inputs = shape.get(1).copied().unwrap_or(4);
        noise(seed, shape)? / (inputs as f64).sqrt()
    }
}

impl SimpleBackend for Invented {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        match (self.0)(name, shape.dims()) {
            Some(tensor) => tensor.to_dtype(dtype),
            None => Err(Error::CannotFindTensor { path: name.to_owned() }.bt()),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(Error::CannotFindTensor { path: name.to_owned() }.bt())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        (self.0)(name, &[1, 1]).is_some()
    }
}
