//! `cargo xtask fuzz`: each target in turn, for a while, within limits of memory and time.

use crate::ci::{cargo, step};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path, process::Command, process::Stdio};

const FOLDER: &str = "tests/fuzz";
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";
/// Corpora grow here and are kept between runs; the seeds are in the repository.
const CORPORA: &str = "target/fuzz-corpora";

/// What is found is written to `tests/fuzz/artifacts/TARGET`; `cargo fuzz run --fuzz-dir tests/fuzz TARGET FILE` runs that
/// alone, with RUSTC_BOOTSTRAP=1 where the compiler is a stable one. Install it by `cargo install cargo-fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let there = cargo(&["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(there.is_ok_and(|status| status.success()), "there is no cargo-fuzz: `cargo install cargo-fuzz` brings it");
    let all = targets()?;
    let chosen = match &args.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no target {target}; there are: {}", all.join(", ")),
    };
    chosen.iter().try_for_each(|target| step(target, command(target, args.seconds)?))
}

fn targets() -> Result<Vec<String>> {
    let folder = Path::new(FOLDER).join("fuzz_targets");
    let mut targets = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

fn command(target: &str, seconds: u64) -> Result<Command> {
    let corpus = format!("{CORPORA}/{target}");
    fs::create_dir_all(&corpus).context(corpus.clone())?;
    let mut command = cargo(&["fuzz", "run", "--fuzz-dir", FOLDER, "--target-dir", "target/fuzz", target, &corpus]);
    command.arg(format!("{FOLDER}/seeds/{target}"));
    command.arg("--").args(["-rss_limit_mb=512", "-malloc_limit_mb=64", "-timeout=10", "-max_len=65536"]);
    command.arg(format!("-dict={FOLDER}/dictionaries/{target}.dict")).arg(format!("-max_total_time={seconds}"));
    // The sanitizer is asked for by a flag that a stable compiler keeps for itself.
    command.env("RUSTC_BOOTSTRAP", "1");
    // It keeps what is freed for a while, by default as much as a half of the limit.
    command.env("ASAN_OPTIONS", "quarantine_size_mb=16:detect_leaks=0");
    Ok(command)
}
