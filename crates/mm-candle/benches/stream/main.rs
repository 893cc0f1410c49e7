//! One run of a large transformer, resident, streamed or unmanaged, in a process of its own; prints one line of JSON.
//!
//! `cargo xtask bench stream` and `cargo xtask bench limited` run it and compare.
#![allow(missing_docs, unreachable_pub)]

mod fixture;
mod lora;
mod memory;
mod model;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::{Parser, Subcommand, ValueEnum};
use mm_cache::{ContentId, Weights};
use mm_candle::{Component, LoadSpec, Lora, Manager, load_unmanaged};
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use model::{CHANNELS, Shape, Transformer};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Instant};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
    /// Said by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Task {
    /// Writes a model's weights.
    Write {
        file: PathBuf,
        #[arg(long)]
        blocks: usize,
        #[arg(long)]
        width: usize,
        #[arg(long)]
        inner: usize,
        #[arg(long)]
        bf16: bool,
    },
    /// Runs passes and prints what they took.
    Run(Run),
}

#[derive(clap::Args)]
struct Run {
    mode: Mode,
    file: PathBuf,
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    #[arg(long, default_value_t = 2)]
    passes: usize,
    /// Of the streamed mode, bytes.
    #[arg(long, default_value_t = 600 << 20)]
    budget: u64,
    /// Of a LoRA for every linear layer of the blocks; 0: none.
    #[arg(long, default_value_t = 0)]
    lora_rank: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// Managed, everything on the device.
    Resident,
    /// Managed, every block streams.
    Streamed,
    /// No manager.
    Unmanaged,
}

fn main() -> Result<()> {
    match Args::parse().task {
        None => println!("a part of `cargo xtask bench stream`"),
        Some(Task::Write { file, blocks, width, inner, bf16 }) => {
            let stored = if bf16 { safetensors::Dtype::BF16 } else { safetensors::Dtype::F32 };
            fixture::write(&file, Shape { blocks, width, inner }, stored)?;
        }
        Some(Task::Run(run)) => println!("{}", run.run()?),
    }
    Ok(())
}

impl Run {
    fn run(&self) -> Result<Value> {
        let watch = memory::Watch::start();
        let weights = Weights::open(&[&self.file])?;
        let shape = Shape::of(&weights).with_context(|| format!("{}: no such model", self.file.display()))?;
        let stored = weights.names().filter_map(|name| weights.get(name)).map(|tensor| tensor.byte_len()).sum::<u64>();
        let started = Instant::now();
        let (model, manager) = self.load(shape)?;
        let load_s = started.elapsed().as_secs_f64();
        if self.lora_rank > 0 {
            let file = self.file.with_extension(format!("lora{}.safetensors", self.lora_rank));
            lora::write(&file, shape, self.lora_rank)?;
            model.apply_lora(&Lora::open(&file)?, 1.0)?;
        }

        let x = Tensor::from_vec(fixture::input(self.tokens * CHANNELS), (self.tokens, CHANNELS), &Device::Cpu)?;
        let (mut pass_s, mut processor_s, mut output) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.passes {
            let (started, before) = (Instant::now(), memory::processor_s());
            let y = model.run(|model| model.forward(&x))?;
            pass_s.push(started.elapsed().as_secs_f64());
            processor_s.push(memory::processor_s().zip(before).map(|(after, before)| after - before));
            let y = y.flatten_all()?.to_vec1::<f32>()?;
            anyhow::ensure!(y.iter().all(|value| value.is_finite()), "the output is not finite");
            output
                .push(ContentId::of(&y.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()).to_string());
        }
        output.dedup();
        anyhow::ensure!(output.len() == 1, "passes differ: {output:?}");

        let mut report = json!({
            "mode": format!("{:?}", self.mode).to_lowercase(), "blocks": shape.blocks, "weights": 4 * shape.parameters(),
            "stored": stored, "tokens": self.tokens, "load_s": load_s, "pass_s": pass_s, "processor_s": processor_s, "output": output[0],
            "peak_rss": memory::field("VmHWM"),
        });
        if let Some(manager) = manager {
            let plan = manager.plan().context("no plan")?;
            let stats = manager.stats().into_iter().map(|(_, stats)| stats).next().context("no component")?;
            report["plan_peak"] = plan.peak.device.into();
            report["engine_peak"] = manager.memory().peak.into();
            report["slots"] = plan.components[0].slots.into();
            report["stall_s"] = (stats.stall_ns as f64 / 1e9).into();
            report["copied"] = stats.copied_bytes.into();
        }
        report["peak_anon"] = watch.stop().into();
        Ok(report)
    }

    fn load(&self, shape: Shape) -> Result<(Component<Transformer>, Option<Manager>)> {
        let passes = u32::try_from(self.passes)?;
        let spec = LoadSpec { passes, lazy: true, ..LoadSpec::new("transformer", [self.file.clone()]) };
        let (budget, strategy) = match self.mode {
            Mode::Unmanaged => return Ok((load_unmanaged(&spec, |vb| Transformer::new(shape, &vb))?, None)),
            Mode::Resident => (1 << 40, Strategy::NoOffload),
            Mode::Streamed => (self.budget, Strategy::GroupOffload),
        };
        let budget = Some(budget);
        let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
        let manager = Manager::cpu(machine, Policy { strategy, working_set: Some(0), ..Policy::default() })?;
        Ok((manager.load(&spec, |vb| Transformer::new(shape, &vb))?, Some(manager)))
    }
}
