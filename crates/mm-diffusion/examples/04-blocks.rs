//! A model of your own that streams: `Blocks` in place of `Vec`, and nothing else.
//!
//! `cargo run --release -p mm-diffusion --example 04-blocks`

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, VarBuilder, linear_no_bias, rms_norm};
use mm_candle::{Blocks, LoadSpec, Manager, load_unmanaged};
use mm_plan::Policy;
use std::{collections::HashMap, path::Path};

const WIDTH: usize = 256;
const LAYERS: usize = 24;

/// Room for a quarter of the blocks, about.
const BUDGET: u64 = 12 << 20;

/// A residual multilayer perceptron.
struct Block {
    norm: RmsNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            norm: rms_norm(WIDTH, 1e-6, vb.pp("norm"))?,
            up: linear_no_bias(WIDTH, 4 * WIDTH, vb.pp("up"))?,
            down: linear_no_bias(4 * WIDTH, WIDTH, vb.pp("down"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x + x.apply(&self.norm)?.apply(&self.up)?.gelu()?.apply(&self.down)?
    }
}

struct Tower {
    // Was: blocks: Vec<Block>.
    blocks: Blocks<Block>,
    norm: RmsNorm,
}

impl Tower {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        // Was: (0..LAYERS).map(|i| Block::new(vb.pp("blocks").pp(i))).collect::<Result<_>>()?.
        let blocks = Blocks::load(&vb, "blocks", LAYERS, |_, vb| Block::new(vb))?;
        Ok(Self { blocks, norm: rms_norm(WIDTH, 1e-6, vb.pp("norm"))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for block in self.blocks.iter() {
            // While this one computes, the next is copied. One `?` is all that is new.
            x = block?.forward(&x)?;
        }
        self.norm.forward(&x)
    }
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("tower.safetensors");
    write_random_weights(&file)?;

    // The budget is for weights alone: nothing of it is kept free for what is computed.
    let policy = Policy { working_set: Some(0), ..Policy::default() };
    let manager = Manager::cpu(mm_probe::probe().host_machine(Some(BUDGET)), policy)?;
    let spec = LoadSpec::new("tower", [file.clone()]);
    let tower = manager.load(&spec, Tower::new)?;

    let x = Tensor::randn(0f32, 1f32, (16, WIDTH), &Device::Cpu)?;
    let y = tower.run(|tower| tower.forward(&x))?;

    // The same model with nobody managing it: there `Blocks` is a plain vector.
    let whole = load_unmanaged(&spec, Tower::new)?.run(|tower| tower.forward(&x))?;
    anyhow::ensure!(y.to_vec2::<f32>()? == whole.to_vec2::<f32>()?, "not the same bits");

    let (peak, all) = (manager.memory().peak, std::fs::metadata(&file)?.len());
    println!("the very same output with at most {peak} of {all} bytes of weights in memory");
    Ok(())
}

fn write_random_weights(file: &Path) -> Result<()> {
    let random = |shape: (usize, usize)| Tensor::randn(0f32, 0.02, shape, &Device::Cpu);
    let mut tensors = HashMap::from([("norm.weight".to_owned(), Tensor::ones(WIDTH, DType::F32, &Device::Cpu)?)]);
    for i in 0..LAYERS {
        tensors.insert(format!("blocks.{i}.norm.weight"), Tensor::ones(WIDTH, DType::F32, &Device::Cpu)?);
        tensors.insert(format!("blocks.{i}.up.weight"), random((4 * WIDTH, WIDTH))?);
        tensors.insert(format!("blocks.{i}.down.weight"), random((WIDTH, 4 * WIDTH))?);
    }
    candle_core::safetensors::save(&tensors, file)
}
