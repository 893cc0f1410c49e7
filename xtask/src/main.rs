//! Short tasks: `cargo xtask ci` runs exactly what CI runs; `cargo xtask fixtures` writes checkpoints to test with.
#![forbid(unsafe_code)]

mod bench;
mod boundaries;
mod ci;
mod fixtures;
mod fuzz;
mod libtorch;
mod miri;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Short tasks of the workspace.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that must pass: format, lints, boundaries, documentation, tests.
    Ci,
    /// Only the boundary checks of ARCHITECTURE.md.
    Boundaries,
    /// The planner's laws on everything that CI tries a part of, ten times CI's damaged checkpoints and plans on a virtual
    /// clock: minutes.
    Laws,
    /// Fuzzes what reads files; needs `cargo install cargo-fuzz` and a C++ compiler.
    Fuzz(fuzz::Args),
    /// Miri on the planner and the engine without foreign code; needs a nightly toolchain with miri, so CI does not run it.
    Miri,
    /// The strategy-decision table over simulated machines and models, printed.
    TestEnvsFast,
    /// Makes a CPU libtorch to build and test mm-tch with, and prints how to use it.
    Libtorch(libtorch::Args),
    /// Writes a checkpoint of real layout, names, shapes and dtypes.
    Fixtures(fixtures::Args),
    /// Large measurements, each in processes of its own: minutes.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().task {
        Task::Ci => ci::run(),
        Task::Boundaries => boundaries::check(),
        Task::Laws => ci::laws(),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Miri => miri::run(),
        Task::TestEnvsFast => ci::environments(),
        Task::Libtorch(args) => libtorch::run(&args),
        Task::Fixtures(args) => fixtures::write(&args),
        Task::Bench(bench) => bench.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
