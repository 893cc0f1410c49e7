//! How long `mm inspect` and `mm plan` take on large checkpoints, and how much memory: only headers are there to be read.

use super::{judge, median, release_program, save};
use anyhow::{Context, Result, ensure};
use mm_fixtures::{Fixture, Model, Options as FixtureOptions};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

const MIB: f64 = 1024.0 * 1024.0;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each command.
    #[arg(long, default_value_t = 15)]
    runs: u32,
    /// Where fixtures are made and results written.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

/// One run of a program and what it took, as JSON: memory is that of a process's children, so each run has a parent of its
/// own.
#[derive(clap::Args)]
pub(crate) struct Measure {
    program: OsString,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// A sparse checkpoint: bytes that are claimed, and what may be taken to look at it.
struct Case {
    name: &'static str,
    model: Model,
    options: FixtureOptions,
    most_ms: f64,
    most_mib: Option<f64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = release_program("mm-cli", &["--bin", "mm"], "mm")?;
    let sharded = |scale, shard| FixtureOptions { scale, shard: Some(shard), ..FixtureOptions::default() };
    let cases = [
        Case {
            name: "24 GB in 600 MB shards",
            model: Model::FluxDev,
            options: FixtureOptions { only: vec!["transformer".into()], ..sharded(1.0, 600_000_000) },
            most_ms: 100.0,
            most_mib: Some(32.0),
        },
        Case {
            name: "700 GB, Wan enlarged",
            model: Model::Wan14b,
            options: sharded(10.2, 5_000_000_000),
            most_ms: 1000.0,
            most_mib: None,
        },
    ];
    let (mut criteria, mut figures) = (Vec::new(), Vec::new());
    for case in &cases {
        let folder = options.dir.join(format!("sparse-{}", case.model));
        let _ = fs::remove_dir_all(&folder);
        let written = Fixture::new(case.model, &case.options)?.write(&folder)?;
        let Case { name, most_ms, most_mib, .. } = case;
        println!("{name}: {} bytes in {} files", written.bytes, written.paths.len());
        for command in ["inspect", "plan"] {
            let (ms, mib) = measure(&program, command, &folder, options.runs)?;
            println!("  mm {command:<8} {ms:6.1} ms  {mib:5.1} MiB");
            criteria.push((format!("mm {command} on {name}: {ms:.1} ms, at most {most_ms}"), ms <= *most_ms));
            if let Some(most) = most_mib {
                criteria.push((format!("mm {command} on {name}: {mib:.1} MiB of RSS, at most {most}"), mib <= *most));
            }
            figures.push(json!({"case": name, "command": command, "bytes": written.bytes, "ms": ms, "rss_mib": mib}));
        }
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    save(&options.dir, "inspect.json", &json!(figures))?;
    judge(&criteria)
}

/// Median milliseconds of several runs, and the most resident memory of any.
fn measure(program: &Path, command: &str, folder: &Path, runs: u32) -> Result<(f64, f64)> {
    let (mut times, mut most) = (Vec::new(), 0f64);
    for _ in 0..runs.max(1) {
        let mut run = Command::new(std::env::current_exe()?);
        run.args(["bench", "measure"]).arg(program).arg(command).arg(folder).args(["--json"]);
        if command == "plan" {
            run.args(["--vram", "24GiB", "--ram", "64GiB"]);
        }
        let output = run.output().with_context(|| format!("{run:?}"))?;
        ensure!(output.status.success(), "{run:?}: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        times.push(report["ms"].as_f64().context("no time")?);
        most = most.max(report["max_rss"].as_f64().context("no memory")? / MIB);
    }
    Ok((median(times).context("no runs")?, most))
}

impl Measure {
    pub(crate) fn run(&self) -> Result<()> {
        let started = Instant::now();
        let status = Command::new(&self.program).args(&self.args).stdout(Stdio::null()).status()?;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        ensure!(status.success(), "{}: {status}", self.program.display());
        println!("{}", json!({"ms": ms, "max_rss": most_of_children()?}));
        Ok(())
    }
}

/// The most resident memory that a child of this process had, bytes.
#[cfg(unix)]
fn most_of_children() -> Result<i64> {
    use nix::sys::resource::{UsageWho, getrusage};
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() * unit)
}

#[cfg(not(unix))]
fn most_of_children() -> Result<i64> {
    anyhow::bail!("the memory of a child is not measured on this system")
}
