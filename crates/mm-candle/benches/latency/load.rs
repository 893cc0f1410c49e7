//! One load and a first output.

use crate::{
    fixture, memory,
    model::{CHANNELS, Shape, Transformer},
};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use clap::ValueEnum;
use mm_cache::Weights;
use mm_candle::{LoadSpec, Manager, load_unmanaged};
use mm_fixtures::{Fill, write_file};
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// What is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// candle's Llama as it is: on the device whole.
    Whole,
    /// A transformer on `Blocks`.
    Blocks,
}

/// Who loads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loader {
    /// `VarBuilder::from_mmaped_safetensors`.
    Candle,
    /// mm-candle without a manager.
    Unmanaged,
    /// A manager with room for everything.
    Eager,
    /// The same, where the model only keeps its weights while it is built.
    Lazy,
}

#[derive(clap::Args)]
pub struct Load {
    kind: Kind,
    loader: Loader,
    file: PathBuf,
}

const WIDTH: usize = 1024;
const INNER: usize = 2816;

fn llama(blocks: usize) -> Config {
    Config {
        hidden_size: WIDTH,
        intermediate_size: INNER,
        vocab_size: CHANNELS,
        num_hidden_layers: blocks,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        max_position_embeddings: 64,
        ..Config::config_7b_v1(false)
    }
}

impl Kind {
    /// A checkpoint of about that many bytes in f32.
    pub fn write(self, file: &Path, bytes: u64, stored: Dtype) -> Result<()> {
        let block = Shape { blocks: 1, width: WIDTH, inner: INNER };
        let blocks = usize::try_from(bytes / (4 * block.parameters()))?.max(1);
        let shape = Shape { blocks, ..block };
        if self == Self::Blocks {
            return Ok(fixture::write(file, shape, stored)?);
        }
        let tensor = |name: String, shape: &[usize]| mm_fixtures::Tensor::new(name, shape.to_vec(), stored);
        let mut tensors = vec![
            tensor("model.embed_tokens.weight".into(), &[CHANNELS, WIDTH]),
            tensor("model.norm.weight".into(), &[WIDTH]),
            tensor("lm_head.weight".into(), &[CHANNELS, WIDTH]),
        ];
        for i in 0..blocks {
            let mut put =
                |name: &str, shape: &[usize]| tensors.push(tensor(format!("model.layers.{i}.{name}.weight"), shape));
            put("input_layernorm", &[WIDTH]);
            put("post_attention_layernorm", &[WIDTH]);
            let _ =
                ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| put(&format!("self_attn.{name}"), &[WIDTH, WIDTH]));
            let _ = ["gate_proj", "up_proj"].map(|name| put(&format!("mlp.{name}"), &[INNER, WIDTH]));
            put("mlp.down_proj", &[WIDTH, INNER]);
        }
        write_file(file, &tensors, Fill::Random, 0)?;
        Ok(())
    }
}

impl Load {
    pub fn run(&self) -> Result<Value> {
        match self.kind {
            Kind::Blocks => {
                let shape = Shape::of(&*Weights::open(&[&self.file])?).context("no such model")?;
                let x = Tensor::from_vec(fixture::input(CHANNELS), (1, CHANNELS), &Device::Cpu)?;
                self.time(|vb| Transformer::new(shape, &vb), |model| model.forward(&x))
            }
            Kind::Whole => {
                let weights = Weights::open(&[&self.file])?;
                let count = weights.names().filter(|name| name.ends_with("input_layernorm.weight")).count();
                let config = llama(count);
                let ids = Tensor::new(&[[3u32]], &Device::Cpu)?;
                self.time(
                    |vb| Llama::load(vb, &config),
                    |model| model.forward(&ids, 0, &mut Cache::new(false, DType::F32, &config, &Device::Cpu)?),
                )
            }
        }
    }

    fn time<M: Send + 'static>(
        &self,
        build: impl Fn(VarBuilder<'_>) -> candle_core::Result<M>,
        forward: impl Fn(&M) -> candle_core::Result<Tensor>,
    ) -> Result<Value> {
        let watch = memory::Watch::start();
        let spec = LoadSpec { lazy: self.loader == Loader::Lazy, ..LoadSpec::new("model", [self.file.clone()]) };
        let (started, before) = (Instant::now(), memory::processor_s());
        let (built_s, y) = match self.loader {
            Loader::Candle => {
                let model = build(by_candle(&self.file)?)?;
                (started.elapsed(), forward(&model)?)
            }
            Loader::Unmanaged => {
                let model = load_unmanaged(&spec, &build)?;
                (started.elapsed(), model.run(|model| forward(model))?)
            }
            Loader::Eager | Loader::Lazy => {
                let manager = roomy()?;
                let model = manager.load(&spec, &build)?;
                (started.elapsed(), model.run(|model| forward(model))?)
            }
        };
        let first_s = started.elapsed().as_secs_f64();
        let processor_s = memory::processor_s().zip(before).map(|(after, before)| after - before);
        let weights = Weights::open(&[&self.file])?;
        let tensors: Vec<_> = weights.names().filter_map(|name| weights.get(name)).collect();
        let elements: u64 = tensors.iter().map(|t| t.shape().iter().product::<usize>() as u64).sum();
        Ok(json!({
            "built_s": built_s.as_secs_f64(), "first_s": first_s, "processor_s": processor_s, "peak_anon": watch.stop(),
            "weights": 4 * elements, "stored": format!("{:?}", tensors[0].dtype()), "output": y.flatten_all()?.to_vec1::<f32>()?,
        }))
    }
}

/// candle's own way, in f32.
#[allow(unsafe_code)]
pub fn by_candle(file: &Path) -> Result<VarBuilder<'static>> {
    // SAFETY: the file was written by the parent process, which waits for this one, and nobody else knows its name.
    Ok(unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu) }?)
}

/// A manager with room for everything.
pub fn roomy() -> Result<Manager> {
    let budget = Some(1 << 40);
    let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
    let policy = Policy { strategy: Strategy::NoOffload, working_set: Some(0), ..Policy::default() };
    Ok(Manager::cpu(machine, policy)?)
}
