//! Rotary position embedding over three axes: time and caption, height, width.

use candle_core::{DType, Device, Result, Tensor};

/// A token's position on each axis.
pub(crate) type Position = [usize; 3];

/// The axes of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// For each axis its frequencies.
    frequencies: Vec<Vec<f64>>,
}

/// Cosine and sine of every token's angles, `[batch, tokens, width / 2]` each, in f32.
pub(crate) struct Table {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(crate) fn new(theta: f64, axes_dims: &[usize]) -> Self {
        let axis = |&dim: &usize| (0..dim / 2).map(|i| theta.powf(-((2 * i) as f64 / dim as f64))).collect();
        Self { frequencies: axes_dims.iter().map(axis).collect() }
    }

    /// With frequencies that are rounded to single precision first, as FLUX.1's own code has them.
    pub(crate) fn single(theta: f64, axes_dims: &[usize]) -> Self {
        let frequency = |i: usize, dim: usize| f64::from(1.0 / theta.powf((2 * i) as f64 / dim as f64) as f32);
        let axis = |&dim: &usize| (0..dim / 2).map(|i| frequency(i, dim)).collect();
        Self { frequencies: axes_dims.iter().map(axis).collect() }
    }

    /// The table of a batch; all items have the same number of positions.
    pub(crate) fn table(&self, batch: &[Vec<Position>], device: &Device) -> Result<Table> {
        let tokens = batch.first().map_or(0, Vec::len);
        // Angles are computed in f64 and rounded once, as in the reference.
        let angles: Vec<f32> = (batch.iter().flatten())
            .flat_map(|position| self.frequencies.iter().zip(position))
            .flat_map(|(axis, &at)| axis.iter().map(move |frequency| (at as f64 * frequency) as f32))
            .collect();
        let width = self.frequencies.iter().map(Vec::len).sum::<usize>();
        let angles = Tensor::from_vec(angles, (batch.len(), tokens, width), device)?;
        Ok(Table { cos: angles.cos()?, sin: angles.sin()? })
    }
}

impl Table {
    /// Rotates `[batch, heads, tokens, width]` in f32; neighbours are pairs.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let x32 = x.to_dtype(DType::F32)?.contiguous()?;
        candle_nn::rotary_emb::rope_i(&x32, &self.cos, &self.sin)?.to_dtype(x.dtype())
    }

    /// This table, then the other's tokens.
    pub(crate) fn then(&self, other: &Self) -> Result<Self> {
        Ok(Self { cos: Tensor::cat(&[&self.cos, &other.cos], 1)?, sin: Tensor::cat(&[&self.sin, &other.sin], 1)? })
    }
}
