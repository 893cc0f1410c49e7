//! Convolutions in any precision.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, VarBuilder, conv2d};

/// A convolution that keeps sides as they are, or halves them. candle has none in half precision on the CPU: there it is computed
/// in single precision, and rounded.
pub(crate) struct Conv(Conv2d);

impl Conv {
    /// `kernel` is odd.
    pub(crate) fn new(input: usize, output: usize, kernel: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let config = Conv2dConfig { padding: kernel / 2, stride, ..Default::default() };
        Ok(Self(conv2d(input, output, kernel, config, vb)?))
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        if dtype == DType::F32 || !x.device().is_cpu() {
            return self.0.forward(x);
        }
        let single = |t: &Tensor| t.to_dtype(DType::F32);
        let bias = self.0.bias().map(single).transpose()?;
        Conv2d::new(single(self.0.weight())?, bias, *self.0.config()).forward(&single(x)?)?.to_dtype(dtype)
    }
}
