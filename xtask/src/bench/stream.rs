//! Streamed against resident against unmanaged.

use super::{Fixture, GIB, gib, judge, median, number, program, report, run_args, save};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

const BUDGET: u64 = 600 << 20;

/// Anonymous memory of the streamed process, activations included.
const MOST_ANONYMOUS: f64 = 1.1;

/// Streamed pass over resident pass.
const MOST_RATIO: f64 = 1.10;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Pairs of runs, resident and streamed.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Passes timed in each run, after one that is not.
    #[arg(long, default_value_t = 2)]
    passes: u32,
    #[command(flatten)]
    fixture: Fixture,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.runs > 0 && options.passes > 0, "--runs and --passes: at least one");
    let program = program()?;
    let file = options.fixture.file(&program, 4.0)?;
    let one = |mode: &str, passes: u32| {
        let report = child(&program, mode, &file, options.fixture.tokens, passes).with_context(|| mode.to_owned())?;
        println!("{}", line(mode, &report)?);
        Ok::<_, anyhow::Error>(report)
    };
    let unmanaged = one("unmanaged", 1)?;
    let mut pairs = Vec::new();
    for run in 0..options.runs {
        // In turn, and each first in every other pair: what drifts on the machine meets both alike.
        let (first, second) = if run % 2 == 0 { ("resident", "streamed") } else { ("streamed", "resident") };
        let (a, b) = (one(first, 1 + options.passes)?, one(second, 1 + options.passes)?);
        pairs.push(if run % 2 == 0 { (a, b) } else { (b, a) });
    }
    let (ratios, ratio) = compare(&pairs, "pass_s", "time")?;
    // What copying costs the processor, whatever else the machine does meanwhile.
    let (processor_ratios, _) = compare(&pairs, "processor_s", "processor time")?;

    let all = || pairs.iter().flat_map(|(resident, streamed)| [resident, streamed]).chain([&unmanaged]);
    let anonymous = pairs.iter().map(|(_, streamed)| number(streamed, "peak_anon")).collect::<Result<Vec<f64>>>()?;
    let held = gib(anonymous.into_iter().fold(0.0, f64::max));
    let whole = gib(number(&unmanaged, "peak_anon")?);
    let weights = gib(number(&unmanaged, "weights")?);
    let exact =
        pairs.iter().all(|(_, s)| s["engine_peak"] == s["plan_peak"] && s["plan_peak"].as_u64() <= Some(BUDGET));
    let figures = json!({
        "stored": format!("{:?}", options.fixture.stored), "ratios": ratios,
        "processor_ratios": processor_ratios, "unmanaged": unmanaged, "load_average": load(),
        "pairs": pairs.iter().map(|(resident, streamed)| json!([resident, streamed])).collect::<Vec<_>>(),
    });
    let name = format!("stream-{:?}.json", options.fixture.stored).to_lowercase();
    save(&options.fixture.dir, &name, &figures)?;
    judge(&[
        (format!("streamed holds {held:.2} GiB, less than {MOST_ANONYMOUS}"), held < MOST_ANONYMOUS),
        (format!("unmanaged holds {whole:.2} GiB, more than the weights' {weights:.2}"), whole > weights),
        ("the engine's peak is the plan's to the byte, and within the budget".to_owned(), exact),
        ("all outputs are the same bytes".to_owned(), all().all(|report| report["output"] == unmanaged["output"])),
        (format!("streamed takes {ratio:.3} of resident, at most {MOST_RATIO}"), ratio <= MOST_RATIO),
    ])
}

fn child(program: &Path, mode: &str, file: &Path, tokens: u32, passes: u32) -> Result<Value> {
    report(&Command::new(program).args(run_args(mode, file, tokens, passes, BUDGET)).output()?)
}

/// Streamed over resident, pair by pair, and the median.
fn compare(pairs: &[(Value, Value)], key: &str, what: &str) -> Result<(Vec<f64>, f64)> {
    let ratios = pairs.iter().map(|(resident, streamed)| Ok(pass(streamed, key)? / pass(resident, key)?));
    let ratios = ratios.collect::<Result<Vec<f64>>>()?;
    let ratio = median(ratios.iter().copied()).context("no runs")?;
    let (least, most) = ratios.iter().fold((f64::INFINITY, 0.0), |(l, m), r| (r.min(l), r.max(m)));
    println!("streamed over resident, {what}: {ratio:.3} ({least:.3}..{most:.3}) in {} pairs", ratios.len());
    Ok((ratios, ratio))
}

/// Seconds of a pass: the median of those after the first, which also fills the device.
fn pass(report: &Value, key: &str) -> Result<f64> {
    let passes = report[key].as_array().with_context(|| format!("a run reports no {key}"))?;
    median(passes.iter().skip(1).filter_map(Value::as_f64)).context("a run reports one pass only")
}

fn line(mode: &str, report: &Value) -> Result<String> {
    let passes = report["pass_s"].as_array().context("a run reports no passes")?;
    let passes: Vec<String> = passes.iter().filter_map(Value::as_f64).map(|s| format!("{s:.2}")).collect();
    let anonymous = gib(number(report, "peak_anon")?);
    let device = report["engine_peak"].as_f64().map_or(String::new(), |b| format!("  device {:.3} GiB", gib(b)));
    let stall = report["stall_s"].as_f64().map_or(String::new(), |s| format!("  stalls {s:.2} s"));
    Ok(format!("{mode:<10} passes {:<24} s  anonymous {anonymous:.2} GiB{device}{stall}", passes.join(" ")))
}

/// How busy the machine is, as Linux says.
fn load() -> Option<String> {
    fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().to_owned())
}

const _: () = assert!(BUDGET < GIB);
