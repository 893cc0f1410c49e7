//! Short tasks: `cargo xtask ci` runs exactly what CI runs; `cargo xtask bench` measures what takes processes of its own.
#![forbid(unsafe_code)]

mod bench;
mod boundaries;
mod ci;

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
    /// The planner's laws with everything that CI tries a part of: minutes.
    Laws,
    /// Large measurements, each in processes of its own: minutes.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().task {
        Task::Ci => ci::run(),
        Task::Boundaries => boundaries::check(),
        Task::Laws => ci::laws(),
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
