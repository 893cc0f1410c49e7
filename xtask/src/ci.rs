//! The steps of CI, in the order in which they fail fastest.

use crate::{boundaries, fuzz, libtorch};
use anyhow::{Context, Result, ensure};
use std::{process::Command, time::Instant};

/// Runs every step; stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    step("format", cargo(&["fmt", "--all", "--check"]))?;
    step("format of the fuzz targets", cargo(&["fmt", "--manifest-path", fuzz::MANIFEST, "--check"]))?;
    println!("== boundaries");
    boundaries::check()?;
    step("lints", cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let cuda = ["clippy", "--locked", "-p", "mm-engine", "--features", "cuda", "--all-targets", "--", "-D", "warnings"];
    step("lints of CUDA", cargo(&cuda))?;
    let mut doc = cargo(&["doc", "--locked", "--workspace", "--no-deps", "--quiet"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("documentation", doc)?;
    // Needs no libtorch.
    let tch = ["--locked", "--package", "mm-tch", "--features", "doc-only"];
    let mut doc = cargo(&[&["doc", "--no-deps", "--quiet"], &tch[..]].concat());
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("documentation of mm-tch", doc)?;
    // Unit, integration and documentation tests, as the README says.
    step("tests", cargo(&["test", "--locked", "--workspace"]))?;
    // On a fake driver, which these tests load before any other can be.
    step("CUDA", cargo(&["test", "--locked", "-p", "mm-engine", "--features", "cuda"]))?;
    libtorch::ci()?;
    println!("== all passed in {} s", started.elapsed().as_secs());
    Ok(())
}

/// The planner's tests on all they could try, ten times the damaged checkpoints and ten times the plans on a virtual clock, in an
/// optimized build.
pub(crate) fn laws() -> Result<()> {
    let mut mutations = cargo(&["test", "--locked", "--release", "-p", "mm-probe", "--test", "mutations"]);
    mutations.env("MM_MUTATIONS", "100000");
    step("damaged checkpoints", mutations)?;
    let mut simulated = cargo(&["test", "--locked", "--release", "-p", "mm-engine", "--lib", "simulated"]);
    simulated.env("MM_SIMULATED", "100000");
    step("plans on a virtual clock", simulated)?;
    let mut laws = cargo(&["test", "--locked", "--release", "-p", "mm-plan", "--all-features"]);
    laws.env("MM_PLAN_LAWS", "whole");
    step("laws", laws)
}

/// The table of decisions, with what was decided for each pair.
pub(crate) fn environments() -> Result<()> {
    step("environments", cargo(&["test", "--locked", "-p", "mm-probe", "--test", "environments", "--", "--nocapture"]))
}

pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

pub(crate) fn step(name: &str, mut command: Command) -> Result<()> {
    println!("== {name}: {command:?}");
    let started = Instant::now();
    let status = command.status().with_context(|| format!("{name}: can't start {command:?}"))?;
    ensure!(status.success(), "{name} failed: {command:?}");
    println!("== {name} passed in {} s", started.elapsed().as_secs());
    Ok(())
}
