//! Convolutions in any precision: candle has none in half precision on the CPU. There they are computed in single precision, and
//! rounded.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig, VarBuilder, conv_transpose2d, conv2d};

/// A convolution.
pub(crate) struct Conv(Conv2d);

impl Conv {
    /// That keeps sides as they are, or halves them; `kernel` is odd.
    pub(crate) fn new(input: usize, output: usize, kernel: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let config = Conv2dConfig { padding: kernel / 2, stride, ..Default::default() };
        Self::with(input, output, kernel, config, vb)
    }

    /// As configured.
    pub(crate) fn with(
        input: usize,
        output: usize,
        kernel: usize,
        config: Conv2dConfig,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        Ok(Self(conv2d(input, output, kernel, config, vb)?))
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !is_emulated(x) {
            return self.0.forward(x);
        }
        let bias = self.0.bias().map(single).transpose()?;
        Conv2d::new(single(self.0.weight())?, bias, *self.0.config()).forward(&single(x)?)?.to_dtype(x.dtype())
    }
}

/// A convolution that makes sides larger.
pub(crate) struct ConvUp(ConvTranspose2d);

impl ConvUp {
    pub(crate) fn with(
        input: usize,
        output: usize,
        kernel: usize,
        config: ConvTranspose2dConfig,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        Ok(Self(conv_transpose2d(input, output, kernel, config, vb)?))
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !is_emulated(x) {
            return self.0.forward(x);
        }
        let bias = self.0.bias().map(single).transpose()?;
        ConvTranspose2d::new(single(self.0.weight())?, bias, *self.0.config()).forward(&single(x)?)?.to_dtype(x.dtype())
    }
}

fn is_emulated(x: &Tensor) -> bool {
    x.dtype() != DType::F32 && x.device().is_cpu()
}

fn single(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)
}
