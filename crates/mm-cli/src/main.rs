//! The `mm` program: what a machine has, what a checkpoint holds, what fits where, and an image from it.

#![forbid(unsafe_code)]

mod args;
mod calibrate;
mod draw;
mod exit;
mod hash;
mod inspect;
mod lora;
mod memory;
mod output;
mod plan;
mod plan_table;
mod probe;
mod report;
mod run;
mod size;
mod spec;
mod table;
mod trace;
mod workload;

use args::{Cli, Command};
use clap::Parser;
use exit::{BAD_USAGE, Failure};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let done = |()| ExitCode::SUCCESS;
    let answer = match &cli.command {
        Command::Probe(args) => probe::run(args).map(done),
        Command::Inspect(args) => inspect::run(args).map(done),
        Command::Plan(args) => plan::run(args),
        Command::Run(args) => run::run(args).map(done),
        Command::Trace(args) => trace::run(args).map(done),
        Command::Hash(args) => hash::run(args).map(done),
    };
    answer.unwrap_or_else(|failure| failure.report(cli.command.json()))
}

/// Help and version are answers; everything else is bad usage, told as JSON where that was asked for.
fn not_understood(error: &clap::Error) -> ExitCode {
    // Fails only where standard error is closed: then nobody is told.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let usage =
            Failure::usage("command line", text.lines().next().unwrap_or_default().trim_start_matches("error: "));
        let _ = table::print(usage.document());
    }
    ExitCode::from(BAD_USAGE)
}
