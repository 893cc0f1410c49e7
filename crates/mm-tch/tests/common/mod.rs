//! Small checkpoints and models for the tests.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]

pub use mm_tch::{Component, Error, LoadSpec, Manager, Result, describe, load_unmanaged};
pub use tch::{Kind, Kind as DType, Tensor, nn::Linear};

use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use mm_tch::Blocks;
use std::path::Path;
use tch::{
    Device,
    nn::{self, Module},
};

pub const DIM: i64 = 32;
pub const BLOCKS: usize = 6;
/// Weights of a block's norm, each [`DIM`] long.
pub const NORM_WEIGHTS: u64 = 2;

pub const F32: Kind = Kind::Float;
pub const F16: Kind = Kind::Half;
pub const BF16: Kind = Kind::BFloat16;

/// Repeatable values in -0.2..0.2 without a random generator.
pub fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 5000.0 - 0.2).collect()
}

pub fn tensor(shape: &[i64], seed: usize) -> Tensor {
    Tensor::from_slice(&values(shape.iter().product::<i64>() as usize, seed)).reshape(shape)
}

pub fn save(path: &Path, tensors: &[(&str, Tensor)]) {
    Tensor::write_safetensors(tensors, path).unwrap();
}

/// Writes a checkpoint for [`Net`] of `blocks` blocks, stored as `kind`.
pub fn checkpoint(path: &Path, blocks: usize, kind: Kind) {
    let mut tensors = Vec::new();
    let mut put = |name: String, shape: &[i64]| {
        let seed = name.bytes().map(usize::from).sum();
        tensors.push((name, tensor(shape, seed).to_kind(kind)));
    };
    put("embed.weight".into(), &[DIM, DIM]);
    for i in 0..blocks {
        put(format!("layers.{i}.up.weight"), &[2 * DIM, DIM]);
        put(format!("layers.{i}.up.bias"), &[2 * DIM]);
        put(format!("layers.{i}.down.weight"), &[DIM, 2 * DIM]);
        put(format!("layers.{i}.norm.weight"), &[DIM]);
        put(format!("layers.{i}.norm.bias"), &[DIM]);
    }
    put("head.weight".into(), &[5, DIM]);
    put("head.bias".into(), &[5]);
    put("never.asked.for".into(), &[64, 64]);
    Tensor::write_safetensors(&tensors, path).unwrap();
}

pub fn linear(path: &nn::Path<'_>, from: i64, to: i64, bias: bool) -> nn::Linear {
    nn::linear(path, from, to, nn::LinearConfig { bias, ..Default::default() })
}

#[derive(Debug)]
pub struct Block {
    up: nn::Linear,
    down: nn::Linear,
    norm: nn::LayerNorm,
}

impl Block {
    fn new(path: &nn::Path<'_>) -> Self {
        Self {
            up: linear(&(path / "up"), DIM, 2 * DIM, true),
            down: linear(&(path / "down"), 2 * DIM, DIM, false),
            norm: nn::layer_norm(path / "norm", vec![DIM], Default::default()),
        }
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Tensor {
        x + self.down.forward(&self.up.forward(&self.norm.forward(x)).silu())
    }
}

/// A network of blocks that may stream.
pub struct Net {
    embed: nn::Linear,
    pub layers: Blocks<Block>,
    head: nn::Linear,
}

impl Net {
    pub fn new(blocks: usize, path: &nn::Path<'_>) -> Result<Self> {
        Ok(Self {
            embed: linear(&(path / "embed"), DIM, DIM, false),
            layers: Blocks::load(path, "layers", blocks, |_, path| Ok(Block::new(&path)))?,
            head: linear(&(path / "head"), DIM, 5, true),
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.embed.forward(x);
        for block in self.layers.iter() {
            x = block?.forward(&x);
        }
        Ok(self.head.forward(&x))
    }
}

/// Builds a [`Net`] of so many blocks.
pub fn net_of(blocks: usize) -> impl Fn(&nn::Path<'_>) -> Result<Net> {
    move |path| Net::new(blocks, path)
}

/// Builds a model of a [`Net`]'s last layer alone.
pub fn head_as<M>(make: impl Fn(Linear) -> M) -> impl Fn(&nn::Path<'_>) -> Result<M> {
    move |path| Ok(make(linear(&(path / "head"), DIM, 5, false)))
}

pub fn rows_of(linear: &Linear) -> usize {
    linear.ws.size()[0] as usize
}

/// What a model's own code may fail with.
pub fn own_error(text: &str) -> Error {
    tch::TchError::Torch(text.to_owned()).into()
}

pub fn cast(x: &Tensor, kind: Kind) -> Tensor {
    x.to_kind(kind)
}

pub fn spec(name: &str, file: &Path, kind: Kind) -> LoadSpec {
    LoadSpec { kind, ..LoadSpec::new(name, [file.to_owned()]) }
}

pub fn machine(budget: u64) -> Machine {
    Machine { device: DeviceKind::Host, vram_free: Some(budget), vram_total: Some(budget), ..Machine::default() }
}

pub fn manager(budget: u64, strategy: Strategy) -> Manager {
    let policy = Policy { strategy, working_set: Some(0), ..Policy::default() };
    Manager::cpu(machine(budget), policy).unwrap()
}

/// The bits of a floating-point tensor's values.
pub fn bits(x: &Tensor) -> Vec<u32> {
    let x = x.to_kind(Kind::Float).to_device(Device::Cpu).flatten(0, -1);
    Vec::<f32>::try_from(&x).unwrap().into_iter().map(f32::to_bits).collect()
}
