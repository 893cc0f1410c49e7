//! A stack of layers with spans of their own, used as a test says.
#![allow(dead_code, unreachable_pub, missing_docs)]

use super::tensor;
use candle_core::{DType, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear, linear_no_bias};
use std::{collections::HashMap, path::Path};
use tracing::{Level, Span, span};

pub const WIDTH: usize = 32;
pub const LAYERS: usize = 6;
/// Bytes of a layer on the device.
pub const LAYER: u64 = (WIDTH * WIDTH * 4 + 256) as u64;
/// Bytes of what lies outside the layers.
pub const REST: u64 = (WIDTH * WIDTH * 4) as u64;

pub struct Layer {
    linear: Linear,
    span: Span,
}

impl Layer {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        let linear = linear(WIDTH, WIDTH, vb.pp("proj"))?;
        Ok(Self { linear, span: span!(Level::TRACE, "layer") })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.around(x, || Ok(()))
    }

    /// Uses its weights before and after `inner`, all inside its span.
    pub fn around(&self, x: &Tensor, inner: impl FnOnce() -> Result<()>) -> Result<Tensor> {
        let _entered = self.span.enter();
        let y = self.linear.forward(x)?;
        inner()?;
        self.linear.forward(&y)?.tanh()
    }

    /// Uses its weights without entering its span.
    pub fn outside(&self, x: &Tensor) -> Result<Tensor> {
        self.linear.forward(x)
    }
}

pub struct Tower {
    head: Linear,
    pub layers: Vec<Layer>,
    model: Span,
}

impl Tower {
    pub fn new(vb: VarBuilder<'_>) -> Result<Self> {
        let layers = (0..LAYERS).map(|i| Layer::new(vb.pp("layers").pp(i))).collect::<Result<_>>()?;
        let head = linear_no_bias(WIDTH, WIDTH, vb.pp("head"))?;
        Ok(Self { head, layers, model: span!(Level::TRACE, "tower") })
    }

    pub fn forward(&self, x: &Tensor, order: &[usize]) -> Result<Tensor> {
        let _entered = self.model.enter();
        let y = order.iter().try_fold(x.clone(), |x, layer| self.layers[*layer].forward(&x))?;
        self.head.forward(&y)
    }
}

pub fn checkpoint(file: &Path) {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    tensors.insert("head.weight".into(), tensor(&[WIDTH, WIDTH], 91));
    for i in 0..LAYERS {
        tensors.insert(format!("layers.{i}.proj.weight"), tensor(&[WIDTH, WIDTH], i));
        tensors.insert(format!("layers.{i}.proj.bias"), tensor(&[WIDTH], 50 + i));
    }
    candle_core::safetensors::save(&tensors, file).unwrap();
}

pub fn input() -> Tensor {
    tensor(&[2, WIDTH], 7).to_dtype(DType::F32).unwrap()
}
