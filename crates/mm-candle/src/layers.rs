//! Layers whose weights may be quantized. Which are is the file's business: a model is written once for either.

use crate::quantized::Matrix;
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// A linear layer whose weight may be quantized; its bias never is.
#[derive(Clone, Debug)]
pub struct Linear(Weight);

#[derive(Clone, Debug)]
enum Weight {
    Plain(candle_nn::Linear),
    Quantized { weight: Box<Matrix>, bias: Option<Tensor> },
}

/// A linear layer with a bias: the tensors `weight` (`[output, input]`) and `bias`.
///
/// # Errors
/// One is missing or of another shape; the weight is quantized in a way that candle can't compute with.
pub fn linear(input: usize, output: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    layer(input, output, true, &vb)
}

/// A linear layer without a bias: the tensor `weight`.
///
/// # Errors
/// As [`linear`].
pub fn linear_no_bias(input: usize, output: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    layer(input, output, false, &vb)
}

fn layer(input: usize, output: usize, has_bias: bool, vb: &VarBuilder<'_>) -> Result<Linear> {
    let weight = Matrix::find(output, input, vb)?;
    Ok(Linear(match weight {
        Some(weight) => {
            Weight::Quantized { weight: Box::new(weight), bias: has_bias.then(|| vb.get(output, "bias")).transpose()? }
        }
        None if has_bias => Weight::Plain(candle_nn::linear(input, output, vb.clone())?),
        None => Weight::Plain(candle_nn::linear_no_bias(input, output, vb.clone())?),
    }))
}

impl Linear {
    /// Where it computes.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Weight::Plain(linear) => linear.weight().device(),
            Weight::Quantized { weight, .. } => weight.device(),
        }
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Weight::Plain(linear) => linear.forward(x),
            Weight::Quantized { weight, bias } => {
                let y = weight.forward(x)?;
                if let Some(bias) = bias { y.broadcast_add(bias) } else { Ok(y) }
            }
        }
    }
}

/// A table of vectors that may be quantized. Only the rows that are asked for become numbers.
#[derive(Clone, Debug)]
pub struct Embedding(Table);

#[derive(Clone, Debug)]
enum Table {
    Plain(candle_nn::Embedding),
    Quantized(Box<Matrix>, DType),
}

/// A table of `entries` vectors of `width` numbers: the tensor `weight`.
///
/// # Errors
/// As [`linear`].
pub fn embedding(entries: usize, width: usize, vb: VarBuilder<'_>) -> Result<Embedding> {
    Ok(Embedding(match Matrix::find(entries, width, &vb)? {
        Some(matrix) => Table::Quantized(Box::new(matrix), vb.dtype()),
        None => {
            let init = Init::Randn { mean: 0., stdev: 1. };
            Table::Plain(candle_nn::Embedding::new(vb.get_with_hints((entries, width), "weight", init)?, width))
        }
    }))
}

impl Embedding {
    /// Where its vectors come out.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Table::Plain(table) => table.embeddings().device(),
            Table::Quantized(matrix, _) => matrix.device(),
        }
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Table::Plain(table) => table.forward(ids),
            Table::Quantized(matrix, dtype) => {
                let rows = matrix.rows(&ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?)?;
                let width = rows.dim(1)?;
                let shape = [ids.dims(), &[width]].concat();
                rows.reshape(shape)?.to_device(matrix.device())?.to_dtype(*dtype)
            }
        }
    }
}
