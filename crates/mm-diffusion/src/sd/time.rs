//! What a UNet is told beside latents and text: the timestep, and in SDXL the pooled prompt and the image's size.

use super::config::{Addition, Config, SIZES};
use crate::layers::Embedder;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

const LONGEST_PERIOD: f64 = 10_000.0;

/// What SDXL is told of the image: `[prompts, width]`, and the numbers about its size, for all prompts alike.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    pub(crate) pooled: Tensor,
    pub(crate) sizes: [f32; SIZES],
}

pub(crate) struct Time {
    embedder: Embedder,
    addition: Option<(Embedder, Addition)>,
    width: usize,
    flip: bool,
    shift: f64,
}

impl Time {
    pub(crate) fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, layers) = (config.sinusoids(), ("linear_1", "linear_2"));
        let addition = |addition: Addition| {
            let input = addition.pooled + SIZES * addition.number;
            Ok::<_, candle_core::Error>((Embedder::new(input, 4 * width, layers, &vb.pp("add_embedding"))?, addition))
        };
        Ok(Self {
            embedder: Embedder::new(width, 4 * width, layers, &vb.pp("time_embedding"))?,
            addition: config.addition().map(addition).transpose()?,
            width,
            flip: config.flip_sin_to_cos,
            shift: config.freq_shift,
        })
    }

    /// How wide the answer is.
    pub(crate) fn wide(&self) -> usize {
        4 * self.width
    }

    /// `[1, width]`, or one for each prompt where there is more than the timestep.
    pub(crate) fn forward(
        &self,
        timestep: f32,
        added: Option<&Added>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let time = self.embedder.forward(&self.sinusoids(&[timestep], self.width, device)?.to_dtype(dtype)?)?;
        let Some((embedder, addition)) = &self.addition else { return Ok(time) };
        let Some(added) = added else { candle_core::bail!("the UNet is told neither the pooled prompt nor sizes") };
        let sizes = self.sinusoids(&rounded(&added.sizes, dtype)?, addition.number, device)?.reshape((1, ()))?;
        let pooled = added.pooled.to_device(device)?;
        let sizes = sizes.repeat((pooled.dim(0)?, 1))?.to_dtype(dtype)?;
        let both = Tensor::cat(&[&pooled.to_dtype(dtype)?, &sizes], D::Minus1)?;
        embedder.forward(&both)?.broadcast_add(&time)
    }

    /// Of each value, `[values, width]`, in f32.
    fn sinusoids(&self, values: &[f32], width: usize, device: &Device) -> Result<Tensor> {
        let half = width / 2;
        let steps = (Tensor::arange(0, half as u32, device)?.to_dtype(DType::F32)? * -LONGEST_PERIOD.ln())?;
        let frequencies = (steps / (half as f64 - self.shift))?.exp()?.unsqueeze(0)?;
        let angles = Tensor::new(values, device)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let both = if self.flip { [cos, sin] } else { [sin, cos] };
        Tensor::cat(&both, D::Minus1)
    }
}

/// In the compute dtype, to which the reference rounds the sizes, but not the timestep.
fn rounded(values: &[f32], dtype: DType) -> Result<Vec<f32>> {
    Tensor::new(values, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)?.to_vec1()
}
