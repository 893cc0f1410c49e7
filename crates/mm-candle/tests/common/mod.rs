//! Small checkpoints and models for the tests.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]

pub mod matrix;
pub mod outsiders;
pub mod random;
pub mod tower;

pub use candle_core::{DType, Result, Tensor};
pub use candle_nn::Linear;
pub use mm_candle::{Component, Error, LoadSpec, Manager, describe, load_unmanaged};

use candle_core::Device;
use candle_nn::{Module, RmsNorm, VarBuilder, linear, linear_no_bias, rms_norm};
use mm_candle::Blocks;
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use std::{collections::HashMap, path::Path};

pub const DIM: usize = 32;
pub const BLOCKS: usize = 6;
/// Weights of a block's norm, each [`DIM`] long.
pub const NORM_WEIGHTS: u64 = 1;

pub const F32: DType = DType::F32;
pub const F16: DType = DType::F16;
pub const BF16: DType = DType::BF16;

/// Repeatable values in -0.2..0.2 without a random generator.
pub fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 5000.0 - 0.2).collect()
}

pub fn tensor(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

/// Writes a checkpoint for [`Net`] of `blocks` blocks, stored as `dtype`.
pub fn checkpoint(path: &Path, blocks: usize, dtype: DType) {
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize]| {
        let seed = name.bytes().map(usize::from).sum();
        tensors.insert(name, tensor(shape, seed).to_dtype(dtype).unwrap());
    };
    put("embed.weight".into(), &[DIM, DIM]);
    for i in 0..blocks {
        put(format!("layers.{i}.up.weight"), &[2 * DIM, DIM]);
        put(format!("layers.{i}.up.bias"), &[2 * DIM]);
        put(format!("layers.{i}.down.weight"), &[DIM, 2 * DIM]);
        put(format!("layers.{i}.norm.weight"), &[DIM]);
    }
    put("head.weight".into(), &[5, DIM]);
    put("head.bias".into(), &[5]);
    put("never.asked.for".into(), &[64, 64]);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

pub struct Block {
    pub up: Linear,
    down: Linear,
    norm: RmsNorm,
}

impl Block {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            up: linear(DIM, 2 * DIM, vb.pp("up"))?,
            down: linear_no_bias(2 * DIM, DIM, vb.pp("down"))?,
            norm: rms_norm(DIM, 1e-6, vb.pp("norm"))?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x + self.down.forward(&self.up.forward(&self.norm.forward(x)?)?.silu()?)?
    }
}

/// A network of blocks that may stream.
pub struct Net {
    embed: Linear,
    pub layers: Blocks<Block>,
    head: Linear,
}

impl Net {
    pub fn new(blocks: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            embed: linear_no_bias(DIM, DIM, vb.pp("embed"))?,
            layers: Blocks::load(vb, "layers", blocks, |_, vb| Block::new(vb))?,
            head: linear(DIM, 5, vb.pp("head"))?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.embed.forward(x)?;
        for block in self.layers.iter() {
            x = block?.forward(&x)?;
        }
        self.head.forward(&x)
    }
}

/// Builds a [`Net`] of so many blocks.
pub fn net_of(blocks: usize) -> impl Fn(VarBuilder<'_>) -> Result<Net> {
    move |vb| Net::new(blocks, &vb)
}

/// Builds a model of a [`Net`]'s last layer alone.
pub fn head_as<M>(make: impl Fn(Linear) -> M) -> impl Fn(VarBuilder<'_>) -> Result<M> {
    move |vb| linear_no_bias(DIM, 5, vb.pp("head")).map(&make)
}

pub fn rows_of(linear: &Linear) -> usize {
    linear.weight().dims()[0]
}

/// What a model's own code may fail with.
pub fn own_error(text: &str) -> candle_core::Error {
    candle_core::Error::Msg(text.to_owned())
}

pub fn cast(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap()
}

pub fn spec(name: &str, file: &Path, dtype: DType) -> LoadSpec {
    LoadSpec { dtype, ..LoadSpec::new(name, [file.to_owned()]) }
}

pub fn machine(budget: u64) -> Machine {
    Machine { device: DeviceKind::Host, vram_free: Some(budget), vram_total: Some(budget), ..Machine::default() }
}

pub fn manager(budget: u64, strategy: Strategy) -> Manager {
    let policy = Policy { strategy, working_set: Some(0), ..Policy::default() };
    Manager::cpu(machine(budget), policy).unwrap()
}

/// The bits of an f32 or bf16 tensor's values.
pub fn bits(x: &Tensor) -> Vec<u32> {
    let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    x.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}
