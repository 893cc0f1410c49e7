//! Benchmarks that need processes of their own: each run is a child, so that memory is measured per run.

mod hash;
mod inspect;
mod limit;
mod limited;
mod stream;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const GIB: u64 = 1 << 30;

/// What `cargo xtask bench` measures.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Streaming a large transformer through a small budget, against keeping it resident, and unmanaged.
    Stream(stream::Options),
    /// Weights larger than the memory of the process, under a limit that the system enforces.
    Limited(limited::Options),
    /// `mm inspect` and `mm plan` on sparse checkpoints of 24 and 700 GB: time and memory.
    Inspect(inspect::Options),
    /// Content ids of a large file, against `b3sum`; needs it from the registry the first time.
    Hash(hash::Options),
    #[command(hide = true)]
    Measure(inspect::Measure),
}

impl Bench {
    /// Runs it, prints a table, writes its figures, and fails where a criterion is missed.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::Stream(options) => stream::run(options),
            Self::Limited(options) => limited::run(options),
            Self::Inspect(options) => inspect::run(options),
            Self::Hash(options) => hash::run(options),
            Self::Measure(measure) => measure.run(),
        }
    }
}

/// The dtype in the file; on the device it is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stored {
    F32,
    Bf16,
}

/// Which model is run.
#[derive(Args)]
struct Fixture {
    /// Size of the model's weights on the device, GiB.
    #[arg(long)]
    gib: Option<f64>,
    /// Length of the sequence.
    #[arg(long, default_value_t = 1024)]
    tokens: u32,
    /// The dtype in the file; on the device it is f32.
    #[arg(long, value_enum, default_value = "f32")]
    stored: Stored,
    /// Where fixtures are kept and results written.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

/// Of every model here; a block is 108 MiB in f32.
const WIDTH: u32 = 1536;
const INNER: u32 = 4096;
const BLOCKS_PER_GIB: f64 = 10.0;

impl Fixture {
    /// The model's file, written if it is not there, and read once so that the system has it cached.
    fn file(&self, program: &Path, default_gib: f64) -> Result<PathBuf> {
        let gib = self.gib.unwrap_or(default_gib);
        ensure!(gib > 0.0 && gib <= 1024.0, "--gib {gib}: name a size between 0 and 1024");
        let blocks = (gib * BLOCKS_PER_GIB).ceil();
        let stored = format!("{:?}", self.stored).to_lowercase();
        let file = self.dir.join(format!("transformer-{blocks}x{WIDTH}-{stored}.safetensors"));
        if !file.exists() {
            fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
            println!("writing {}", file.display());
            let mut write = Command::new(program);
            write.arg("write").arg(&file);
            write.args(["--blocks", &blocks.to_string(), "--width", &WIDTH.to_string(), "--inner", &INNER.to_string()]);
            if self.stored == Stored::Bf16 {
                write.arg("--bf16");
            }
            let status = write.status().with_context(|| format!("{write:?}"))?;
            ensure!(status.success(), "{write:?} failed");
        }
        io::copy(&mut File::open(&file)?, &mut io::sink()).with_context(|| file.display().to_string())?;
        Ok(file)
    }
}

/// The large transformer's program.
fn program() -> Result<PathBuf> {
    release_program("mm-candle", &["--bench", "stream"], "stream")
}

/// Builds a program that is measured, optimized, and finds it.
fn release_program(package: &str, target: &[&str], name: &str) -> Result<PathBuf> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--locked", "--release", "--package", package]).args(target);
    build.args(["--message-format", "json-render-diagnostics"]);
    build.stderr(std::process::Stdio::inherit());
    let output = build.output().with_context(|| format!("{build:?}"))?;
    ensure!(output.status.success(), "{build:?} failed");
    let messages = String::from_utf8(output.stdout)?;
    let mut built = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = built.find(|m| m["target"]["name"] == name && m["executable"].is_string());
    let found = found.with_context(|| format!("{build:?} names no program"))?;
    Ok(PathBuf::from(found["executable"].as_str().unwrap_or_default()))
}

/// The arguments of one run.
fn run_args(mode: &str, file: &Path, tokens: u32, passes: u32, budget: u64) -> Vec<std::ffi::OsString> {
    let mut args = vec!["run".into(), mode.into(), file.into()];
    let numbers = [("--tokens", u64::from(tokens)), ("--passes", u64::from(passes)), ("--budget", budget)];
    args.extend(numbers.into_iter().flat_map(|(flag, value)| [flag.into(), value.to_string().into()]));
    args
}

/// What a run printed.
fn report(output: &Output) -> Result<Value> {
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("a run printed no JSON")
}

fn number(report: &Value, key: &str) -> Result<f64> {
    report[key].as_f64().with_context(|| format!("a run reports no {key}"))
}

fn gib(bytes: f64) -> f64 {
    bytes / GIB as f64
}

/// The middle value, or the mean of the two; `None` where there is none.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len().is_multiple_of(2) { (values[values.len() / 2 - 1] + upper) / 2.0 } else { upper })
}

/// Prints each criterion with its verdict, and fails where one is missed.
fn judge(criteria: &[(String, bool)]) -> Result<()> {
    for (text, met) in criteria {
        println!("{}  {text}", if *met { "met   " } else { "MISSED" });
    }
    let missed = criteria.iter().filter(|(_, met)| !met).count();
    ensure!(missed == 0, "{missed} of {} criteria missed", criteria.len());
    Ok(())
}

fn save(dir: &Path, name: &str, figures: &Value) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, serde_json::to_vec_pretty(figures)?).with_context(|| path.display().to_string())?;
    println!("figures: {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([3.0, 1.0]), Some(2.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
    }
}
