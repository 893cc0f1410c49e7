//! What mm-candle costs who has room for everything: from loading to the first output, its peak, and a pass.
//!
//! `cargo bench -p mm-candle --bench latency`. Each load is a process of its own, in turn with candle's own
//! `VarBuilder::from_mmaped_safetensors` (A B B A …), files in the page cache; medians and ratios of pairs.
#![allow(missing_docs, unreachable_pub)]

#[path = "../stream/fixture.rs"]
mod fixture;
mod load;
#[path = "../stream/memory.rs"]
mod memory;
#[path = "../stream/model.rs"]
mod model;
mod pass;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use load::{Kind, Load, Loader};
use serde_json::Value;
use std::{path::Path, process::Command};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
    /// How many pairs of processes for each row.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Weights in f32, GiB.
    #[arg(long, default_value_t = 1.0)]
    gib: f64,
    /// Said by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Task {
    /// Loads, gives a first output and prints what that took, as one line of JSON.
    Load(Load),
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(Task::Load(load)) = &args.task {
        println!("{}", load.run()?);
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    for kind in [Kind::Whole, Kind::Blocks] {
        for stored in [safetensors::Dtype::F32, safetensors::Dtype::BF16] {
            let file = folder.path().join("model.safetensors");
            kind.write(&file, (args.gib * (1u64 << 30) as f64) as u64, stored)?;
            for loader in [Loader::Unmanaged, Loader::Eager, Loader::Lazy] {
                compare(kind, loader, &file, args.runs).with_context(|| format!("{kind:?} {loader:?}"))?;
            }
            if kind == Kind::Blocks && stored == safetensors::Dtype::F32 {
                pass::measure(&file, 4 * args.runs)?;
            }
        }
    }
    Ok(())
}

/// Pairs of candle's own loader and this one.
fn compare(kind: Kind, loader: Loader, file: &Path, runs: usize) -> Result<()> {
    let mut pairs = Vec::new();
    for i in 0..=runs {
        let (first, second) = if i % 2 == 0 { (Loader::Candle, loader) } else { (loader, Loader::Candle) };
        let (first, second) = (child(kind, first, file)?, child(kind, second, file)?);
        // The first pair only warms up.
        if i > 0 {
            pairs.push(if i % 2 == 0 { (first, second) } else { (second, first) });
        }
    }
    ensure!(pairs.iter().all(|(candle, ours)| candle["output"] == ours["output"]), "the outputs differ");
    let of = |name: &str, ours: bool| {
        let values = pairs.iter().map(|pair| if ours { &pair.1 } else { &pair.0 });
        median(values.map(|report| report[name].as_f64().unwrap_or(f64::NAN)).collect())
    };
    let ratios: Vec<f64> = (pairs.iter())
        .map(|(candle, ours)| {
            ours["first_s"].as_f64().unwrap_or(f64::NAN) / candle["first_s"].as_f64().unwrap_or(f64::NAN)
        })
        .collect();
    let (least, most) = ratios.iter().fold((f64::MAX, f64::MIN), |(least, most), r| (r.min(least), r.max(most)));
    let weights = of("weights", true);
    println!(
        "{kind:?}, stored as {}, {loader:?}: first output after {:.0} ms, candle's {:.0} ms: {:.2} ({least:.2}–{most:.2}); of which built \
         {:.0} ms; processor {:.2} for {:.2} s; peak {:.3} of the weights, candle's {:.3}",
        pairs[0].1["stored"],
        1e3 * of("first_s", true),
        1e3 * of("first_s", false),
        median(ratios.clone()),
        1e3 * of("built_s", true),
        of("processor_s", true),
        of("processor_s", false),
        of("peak_anon", true) / weights,
        of("peak_anon", false) / weights,
    );
    Ok(())
}

fn child(kind: Kind, loader: Loader, file: &Path) -> Result<Value> {
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| value().map(|v| v.get_name().to_owned());
    let (kind, loader) = (name(&|| kind.to_possible_value()), name(&|| loader.to_possible_value()));
    let program = std::env::current_exe()?;
    let output = Command::new(program).arg("load").args(kind).args(loader).arg(file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("a load printed no JSON")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
