//! Content ids of a large file in the page cache: our rate over `b3sum`'s, and the time of looking one up in the index.

use super::{GIB, judge, median, number, release_program, report, save};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Size of the file, GiB.
    #[arg(long, default_value_t = 4)]
    gib: u64,
    /// Pairs of runs.
    #[arg(long, default_value_t = 7)]
    runs: u32,
    /// Where the file is kept and results written.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

const B3SUM: &str = "1.8.7";

pub(crate) fn run(options: &Options) -> Result<()> {
    let ours = release_program("mm-cache", &["--bench", "index"], "index")?;
    let theirs = b3sum(&options.dir)?;
    let file = file(options)?;
    let bytes = options.gib * GIB;

    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for run in 0..options.runs.max(1) {
        // A B, B A, …: what drifts meanwhile hits both alike.
        let (mine, other);
        if run.is_multiple_of(2) {
            mine = hash(&ours, &file)?;
            other = time(&theirs, &file)?;
        } else {
            other = time(&theirs, &file)?;
            mine = hash(&ours, &file)?;
        }
        ensure!(mine.id == other.id, "{} is not the id that b3sum prints: {}", mine.id, other.id);
        println!("  ours {:.3} s, b3sum {:.3} s", mine.seconds, other.seconds);
        ratios.push(other.seconds / mine.seconds);
        rates.push(bytes as f64 / mine.seconds / 1e9);
        first.push(mine.opening_ms);
        later.push(mine.lookup_ms);
    }
    let [ratio, rate, opening, lookup] = [ratios.clone(), rates, first, later].map(|v| median(v).unwrap_or(f64::NAN));
    let (least, most) = ratios.iter().fold((f64::MAX, 0f64), |(a, b), r| (a.min(*r), b.max(*r)));
    println!(
        "{rate:.2} GB/s, {ratio:.2} ({least:.2}-{most:.2}) of b3sum's; known: {opening:.3} ms with opening the index, then {lookup:.4} ms"
    );
    let figures = json!({"bytes": bytes, "rate_over_b3sum": ratios, "gb_per_s": rate, "opening_ms": opening, "lookup_ms": lookup});
    save(&options.dir, "hash.json", &figures)?;
    judge(&[
        (format!("hashing {} GiB: {ratio:.2} x b3sum's rate, at least 0.9", options.gib), ratio >= 0.9),
        (format!("the index opened and asked: {opening:.3} ms, at most 1"), opening <= 1.0),
    ])
}

struct Hashed {
    id: String,
    seconds: f64,
    opening_ms: f64,
    lookup_ms: f64,
}

/// Whole process, without the index; then, by processes of their own, what the index answers.
fn hash(program: &Path, file: &Path) -> Result<Hashed> {
    let started = Instant::now();
    let id = Command::new(program).arg("hash").arg(file).output()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(id.status.success(), "{}", String::from_utf8_lossy(&id.stderr));
    let known = report(&Command::new(program).arg("known").arg(file).output()?)?;
    Ok(Hashed {
        id: String::from_utf8(id.stdout)?.trim().to_owned(),
        seconds,
        opening_ms: number(&known, "opening_ns")? / 1e6,
        lookup_ms: number(&known, "lookup_ns")? / 1e6,
    })
}

fn time(program: &Path, file: &Path) -> Result<Hashed> {
    let started = Instant::now();
    let output = Command::new(program).arg("--no-names").arg(file).output()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(Hashed { id: String::from_utf8(output.stdout)?.trim().to_owned(), seconds, opening_ms: 0.0, lookup_ms: 0.0 })
}

/// The reference program, built from the registry once.
fn b3sum(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("tools");
    let program = root.join("bin").join(format!("b3sum{}", std::env::consts::EXE_SUFFIX));
    if !program.exists() {
        let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install.args(["install", "--locked", "b3sum", "--version", B3SUM, "--root"]).arg(&root);
        let status = install.status().with_context(|| format!("{install:?}"))?;
        ensure!(status.success(), "{install:?} failed");
    }
    Ok(program)
}

/// A file that no hash can take short cuts with, written if it is not there, and in the page cache.
fn file(options: &Options) -> Result<PathBuf> {
    let file = options.dir.join(format!("{}gib.bin", options.gib));
    let bytes = options.gib * GIB;
    if !file.metadata().is_ok_and(|found| found.len() == bytes) {
        fs::create_dir_all(&options.dir)?;
        println!("writing {}", file.display());
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&file)?);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..bytes / 8 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            out.write_all(&state.to_le_bytes())?;
        }
        out.into_inner()?.sync_all()?;
    }
    io::copy(&mut File::open(&file)?, &mut io::sink()).with_context(|| file.display().to_string())?;
    Ok(file)
}
