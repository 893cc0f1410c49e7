//! Ten thousand damaged checkpoints: each ends in a plan or in an error that names the file at fault, and the tensor
//! where its entry is at fault. None panics, hangs or takes more than 64 MiB.
//!
//! `cargo xtask laws` tries 100,000. A case is its number: `MM_MUTATION=1234 cargo test -p mm-probe --test mutations` runs
//! that one alone.

#![cfg(unix)]

mod checkpoint;
mod gguf;
mod header;
mod live;
mod mutate;
mod names;
mod permission;
mod random;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{env, fs, panic, process, thread};

use checkpoint::{Checkpoint, Node, Specials};
use mm_cache::Weights;
use mm_plan::{Component, DType, DeviceKind, Infeasible, Links, Machine, Policy};
use mm_probe::Workload;
use mutate::Fault;
use peak_alloc::PeakAlloc;
use random::Random;

/// What is allocated at one time bounds each single allocation as well.
#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Unless `MM_MUTATIONS` says how many.
const CASES: u64 = 10_000;
const MOST_MEMORY: usize = 64 << 20;
const LONGEST: u64 = 10;

/// In memory where there is a file system in memory: it also has files of 2^60 bytes.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

#[test]
fn ten_thousand_damaged_checkpoints() {
    let folder = folder();
    let specials = Specials::make(folder.path());
    let checkpoints = checkpoint::all();
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        let place = folder.path().join(format!("whole-{number}"));
        checkpoint.write(&place, &specials);
        let found = mm_probe::inspect(place.join(&checkpoint.root), None);
        assert!(found.is_ok_and(|found| !found.components.is_empty()), "{} is no valid checkpoint", checkpoint.kind);
    }
    let cases = match env::var("MM_MUTATION") {
        Ok(case) => vec![case.parse().expect("MM_MUTATION is a number")],
        Err(_) => {
            let count = env::var("MM_MUTATIONS").map(|count| count.parse().expect("MM_MUTATIONS is a number"));
            (0..count.unwrap_or(CASES)).collect()
        }
    };
    let watched = Watchdog::start();
    let (mut failures, mut outcomes) = (Vec::new(), BTreeMap::<String, usize>::new());
    let mut most = 0;
    for case in cases {
        watched.begins(case);
        let mut damaged = Damaged::make(&checkpoints, case);
        let place = folder.path().join(format!("case-{case}"));
        damaged.checkpoint.write(&place, &specials);
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let result = panic::catch_unwind(panic::AssertUnwindSafe(|| damaged.check(&place, &specials)));
        let taken = ALLOCATOR.peak_usage().saturating_sub(before);
        most = most.max(taken);
        let failure = match result {
            Ok(Ok(outcome)) if taken <= MOST_MEMORY => {
                *outcomes.entry(outcome).or_default() += 1;
                None
            }
            Ok(Ok(_)) => Some(format!("took {taken} bytes")),
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some("panicked".into()),
        };
        if let Some(failure) = failure {
            let Damaged { checkpoint, kinds, .. } = damaged;
            failures.push(format!("MM_MUTATION={case} ({}: {}): {failure}", checkpoint.kind, kinds.join(", ")));
        }
        let _ = fs::remove_dir_all(&place);
    }
    println!("{outcomes:#?}\nat most {most} bytes taken");
    let shown: Vec<&str> = failures.iter().take(20).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} cases failed, the first:\n{}", failures.len(), shown.join("\n"));
}

/// A case: a checkpoint with one to three faults.
struct Damaged {
    checkpoint: Checkpoint,
    kinds: Vec<&'static str>,
    fault: Fault,
    /// Whether files change while they are looked at.
    live: Option<u64>,
    random: Random,
}

impl Damaged {
    fn make(checkpoints: &[Checkpoint], case: u64) -> Self {
        let mut random = Random::of_case(case);
        let mut checkpoint = random.pick(checkpoints).clone();
        let live = random.one_in(40).then_some(case);
        let (kinds, faults): (Vec<_>, Vec<_>) =
            (0..1 + random.below(3)).map(|_| mutate::mutate(&mut checkpoint, &mut random)).unzip();
        let fault = match (&faults[..], live) {
            ([one], None) => one.clone(),
            _ => Fault::Somewhere,
        };
        Self { checkpoint, kinds, fault, live, random }
    }

    /// What came of it; the error: what should not have.
    fn check(&mut self, place: &Path, specials: &Specials) -> Result<String, String> {
        if self.live.is_some() {
            live::check(&self.checkpoint, place, specials, &mut self.random)?;
        }
        let path = place.join(&self.checkpoint.root);
        let mut outcome = String::new();
        for dtype in [None, Some(DType::F32)] {
            outcome = match mm_probe::inspect(&path, dtype) {
                Ok(found) => {
                    plans(&found.to_plan())?;
                    for side in [0, 1024, u32::MAX] {
                        let workload = Workload { width: side, height: side, batch: side, ..Workload::default() };
                        found.activations(&Workload { guided: true, ..workload });
                    }
                    "planned".into()
                }
                Err(error) => {
                    names(&error.to_string(), place, &self.fault)?;
                    format!("{error:?}").split([' ', '{', '(']).next().unwrap_or_default().to_owned()
                }
            };
        }
        for file in self.checkpoint.nodes.keys().filter(|path| path.ends_with(".safetensors")) {
            read(&[place.join(file)], place, &self.fault)?;
        }
        self.hash(place)?;
        Ok(outcome)
    }

    fn hash(&self, place: &Path) -> Result<(), String> {
        for (path, node) in &self.checkpoint.nodes {
            let small = !matches!(node, Node::File(bytes, size) if *size > (bytes.len() as u64).max(1 << 20));
            let linked_to_hole = matches!(node, Node::Link(_));
            if small
                && !linked_to_hole
                && let Err(error) = mm_cache::content_id(place.join(path))
            {
                names(&error.to_string(), place, &Fault::Somewhere)?;
            }
        }
        Ok(())
    }
}

/// Whether an error names a path below `place`, and the tensor at fault.
fn names(error: &str, place: &Path, fault: &Fault) -> Result<(), String> {
    if !error.contains(place.to_str().expect("UTF-8")) {
        return Err(format!("names no file: {error}"));
    }
    match fault {
        Fault::Tensor(tensor) if !error.contains(&format!("`{tensor}`")) => {
            Err(format!("does not name `{tensor}`: {error}"))
        }
        _ => Ok(()),
    }
}

/// Opens weights and reads both ends of each tensor.
fn read(files: &[PathBuf], place: &Path, fault: &Fault) -> Result<(), String> {
    let weights = match Weights::open(files) {
        Ok(weights) => weights,
        Err(error) => return names(&error.to_string(), place, fault),
    };
    for name in weights.names() {
        let tensor = weights.get(name).expect("listed");
        let mut bytes = vec![0; tensor.byte_len().min(64 << 10) as usize];
        for offset in [0, tensor.byte_len() - bytes.len() as u64] {
            if let Err(error) = tensor.read_into(offset, &mut bytes) {
                names(&error.to_string(), place, &Fault::Tensor(name.to_owned()))?;
            }
        }
    }
    Ok(())
}

/// A plan, or the message that it does not fit, for no device, a host, and cards with and without measured links.
fn plans(components: &[Component]) -> Result<(), String> {
    let links = Links { h2d: 25_000_000_000, staging: None, disk: Some(3_000_000_000), copy_fixed_ns: 5000 };
    let card = |links| Machine {
        vram_free: Some(24 << 30),
        vram_total: Some(24 << 30),
        ram_available: 32 << 30,
        ram_total: 64 << 30,
        os: "linux".into(),
        links,
        ..Machine::default()
    };
    let host = Machine { device: DeviceKind::Host, vram_free: Some(8 << 20), ..card(Some(links)) };
    for machine in [Machine::default(), host, card(None), card(Some(links))] {
        match mm_plan::plan(&machine, components, &Policy::default()) {
            Ok(_) | Err(Infeasible::NeverFits { .. } | Infeasible::NotNow { .. }) => {}
            Err(error) => return Err(format!("what was inspected can't be planned: {error}")),
        }
    }
    Ok(())
}

/// Ends the process where a case takes too long: a thread that hangs can't be ended.
struct Watchdog {
    case: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watchdog {
    fn start() -> Self {
        let (case, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (case.clone(), done.clone());
        thread::spawn(move || {
            let (mut last, mut since) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_secs(1));
                let now = seen.load(Ordering::Relaxed);
                since = if now == last { since + 1 } else { 0 };
                last = now;
                if since > LONGEST {
                    eprintln!("MM_MUTATION={now} takes longer than {LONGEST} seconds");
                    process::abort();
                }
            }
        });
        Self { case, done }
    }

    fn begins(&self, case: u64) {
        self.case.store(case, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
