//! Miri on what has no foreign code under it: the planner's and the engine's own tests, and passes over a device of the tests.

use crate::ci::step;
use anyhow::{Result, ensure};
use std::process::Command;

/// Tests that make thousands of cases or write many files, and those that end in SQLite or in a checker's own stacks, are left out:
/// under miri each takes many minutes.
const RUNS: [&[&str]; 3] = [
    &["-p", "mm-plan", "--lib", "--", "--skip", "tree::"],
    &["-p", "mm-engine", "--lib", "--", "--skip", "simulated", "--skip", "store_tests", "--skip", "any_size"],
    &["-p", "mm-engine", "--test", "host_device", "--", "--skip", "narrowing"],
];

/// Runs them; minutes.
pub(crate) fn run() -> Result<()> {
    let found = nightly(&["miri", "--version"]).output().is_ok_and(|out| out.status.success());
    ensure!(found, "there is no miri: `rustup toolchain install nightly --component miri,rust-src`");
    for tests in RUNS {
        let mut command = nightly(&[&["miri", "test", "--locked"], tests].concat());
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
        step("miri", command)?;
    }
    Ok(())
}

/// Not the cargo that runs this: only rustup's knows other toolchains.
fn nightly(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").args(args).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}
