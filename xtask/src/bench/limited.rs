//! Weights larger than the memory of the process.

use super::{Fixture, GIB, gib, judge, number, program, report, run_args, save};
use crate::bench::limit::{Limit, forget};
use anyhow::{Context, Result};
use serde_json::{Value, json};

const LIMIT: u64 = GIB;
const BUDGET: u64 = 600 << 20;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fixture: Fixture,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = program()?;
    let file = options.fixture.file(&program, 2.0)?;
    let run = |mode: &str, limit: &Limit| {
        // Pages that others brought into the cache would be charged to them and not to this run.
        forget(&file)?;
        limit.run(&program, &run_args(mode, &file, options.fixture.tokens, 2, BUDGET))
    };
    let free = report(&run("streamed", &Limit::None)?).context("streamed, no limit")?;
    let weights = number(&free, "weights")?;
    println!("weights {:.2} GiB, without a limit: passes {} s", gib(weights), free["pass_s"]);

    let mut limits = vec![Limit::Data(LIMIT)];
    match Limit::cgroup(LIMIT) {
        Ok(limit) => limits.insert(0, limit),
        Err(error) => println!("no cgroup can be made here, a data limit is all that is used: {error:#}"),
    }
    let mut criteria =
        vec![(format!("the weights are larger than the limit of {} MiB", LIMIT >> 20), weights > LIMIT as f64)];
    let mut figures = vec![json!({"limit": Limit::None.to_string(), "report": free})];
    for limit in &limits {
        let output = run("streamed", limit)?;
        let streamed = report(&output);
        let same = streamed.as_ref().is_ok_and(|report| report["output"] == free["output"]);
        match &streamed {
            Ok(report) => println!(
                "{limit}: passes {} s, anonymous {:.2} GiB, charged {}",
                report["pass_s"],
                gib(number(report, "peak_anon")?),
                limit.peak().map_or("not counted".to_owned(), |bytes| format!("{:.2} GiB", gib(bytes as f64))),
            ),
            Err(error) => println!("{limit}: {error:#}"),
        }
        criteria.push((format!("{limit}: streams to its end, with the output of the unlimited run"), same));
        figures.push(json!({"limit": limit.to_string(), "report": streamed.ok(), "charged": limit.peak()}));
        // A limit that everything would survive proves nothing.
        let control = run("unmanaged", limit)?;
        println!("{limit}: unmanaged ends with {}", control.status);
        criteria.push((format!("{limit}: unmanaged does not survive"), !control.status.success()));
    }
    save(&options.fixture.dir, "limited.json", &Value::Array(figures))?;
    judge(&criteria)
}
