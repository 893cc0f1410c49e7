//! A residual block that is told the timestep.

use crate::conv::Conv;
use candle_core::{D, Module, Result, Tensor};
use candle_nn::{GroupNorm, Linear, VarBuilder, group_norm, linear};

pub(crate) struct Resnet {
    norms: (GroupNorm, GroupNorm),
    convs: (Conv, Conv),
    time: Linear,
    shortcut: Option<Conv>,
}

impl Resnet {
    /// `time` is how wide the timestep's embedding is; `norm` the groups and the epsilon of norms.
    pub(crate) fn new(
        (input, output): (usize, usize),
        time: usize,
        norm: (usize, f64),
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let norm = |name: &str, channels| group_norm(norm.0, channels, norm.1, vb.pp(name));
        let shortcut = || Conv::new(input, output, 1, 1, vb.pp("conv_shortcut"));
        Ok(Self {
            norms: (norm("norm1", input)?, norm("norm2", output)?),
            convs: (Conv::new(input, output, 3, 1, vb.pp("conv1"))?, Conv::new(output, output, 3, 1, vb.pp("conv2"))?),
            time: linear(time, output, vb.pp("time_emb_proj"))?,
            shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    /// `time` is activated.
    pub(crate) fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let h = self.convs.0.forward(&self.norms.0.forward(x)?.silu()?)?;
        let h = self.time.forward(time)?.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?.broadcast_add(&h)?;
        let h = self.convs.1.forward(&self.norms.1.forward(&h)?.silu()?)?;
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)? + h,
            None => x + h,
        }
    }
}
