//! A model runs to its end in a process that may not hold its weights; the system enforces it.
//!
//! The limit is `RLIMIT_DATA`, which needs no rights and counts all anonymous memory that is asked for. Each run is this
//! very test, started anew as a child. `cargo xtask bench limited` does the same at gigabytes, in a memory cgroup too.
#![cfg(target_os = "linux")]
#![allow(dead_code, missing_docs, unreachable_pub)]

#[path = "../../crates/mm-candle/benches/stream/fixture.rs"]
mod fixture;
#[path = "../../crates/mm-candle/benches/stream/model.rs"]
mod model;

use candle_core::{Device, Tensor};
use mm_cache::ContentId;
use mm_candle::{LoadSpec, Manager, load_unmanaged};
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use model::{CHANNELS, Shape, Transformer};
use std::{
    env,
    path::Path,
    process::{Command, Output},
};

/// 104 MiB of weights, in blocks of 13 MiB.
const SHAPE: Shape = Shape { blocks: 8, width: 512, inner: 1536 };

/// Two slots and what does not stream.
const BUDGET: u64 = 28 << 20;

/// What the budget leaves for everything else: activations, stacks of threads, the program itself.
const LIMIT: u64 = 64 << 20;

const TASK: &str = "MM_TEST_LIMITED";

#[test]
fn weights_larger_than_the_process_may_hold() {
    if let Ok(task) = env::var(TASK) {
        let (mode, file) = task.split_once(' ').unwrap();
        println!("output {}", run(mode, Path::new(file)));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    fixture::write(&file, SHAPE, safetensors::Dtype::F32).unwrap();
    assert!(4 * SHAPE.parameters() > LIMIT * 3 / 2);

    let expected = output(&child("unmanaged", &file, None)).expect("unmanaged, without a limit");
    let limited = child("streamed", &file, Some(LIMIT));
    assert_eq!(output(&limited), Some(expected), "{}", String::from_utf8_lossy(&limited.stderr));

    // A limit that everything would survive proves nothing.
    let unmanaged = child("unmanaged", &file, Some(LIMIT));
    assert_eq!(output(&unmanaged), None, "the weights don't fit in the limit, and yet:\n{}", text(&unmanaged));
    let starved = child("streamed", &file, Some(BUDGET));
    assert_eq!(output(&starved), None, "the budget alone takes all there is, and yet:\n{}", text(&starved));
    assert!(text(&starved).contains("asked of the device"), "refused for another reason:\n{}", text(&starved));
}

/// This test, as a child under a data limit.
fn child(mode: &str, file: &Path, limit: Option<u64>) -> Output {
    let limit = limit.map_or("unlimited".to_owned(), |bytes| (bytes >> 10).to_string());
    let mut child = Command::new("sh");
    child.args(["-c", "ulimit -d \"$0\" && exec \"$@\"", &limit]).arg(env::current_exe().unwrap());
    child.args(["weights_larger_than_the_process_may_hold", "--exact", "--nocapture"]);
    // Stacks count: a machine of many cores would spend the limit on them.
    child.env(TASK, format!("{mode} {}", file.display())).env("RAYON_NUM_THREADS", "2");
    // Out of memory, the standard library waits for itself for ever while it gathers a backtrace.
    child.env("RUST_BACKTRACE", "0");
    child.output().unwrap()
}

/// What a child that came to its end has computed.
fn output(child: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&child.stdout);
    let found = text.lines().find_map(|line| line.split_once("output ")).map(|(_, output)| output.to_owned());
    found.filter(|_| child.status.success())
}

fn text(child: &Output) -> String {
    format!("{}\n{}{}", child.status, String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr))
}

/// Three passes; the content id of what came out.
fn run(mode: &str, file: &Path) -> ContentId {
    let spec = LoadSpec { passes: 3, lazy: true, ..LoadSpec::new("transformer", [file.to_owned()]) };
    let (budget, policy) = (Some(BUDGET), Policy { strategy: Strategy::GroupOffload, ..Policy::default() });
    let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
    let make = |vb: candle_nn::VarBuilder<'_>| Transformer::new(SHAPE, &vb);
    let model = match mode {
        "streamed" => Manager::cpu(machine, policy).unwrap().load(&spec, make).unwrap(),
        _ => load_unmanaged(&spec, make).unwrap(),
    };
    let x = Tensor::from_vec(fixture::input(64 * CHANNELS), (64, CHANNELS), &Device::Cpu).unwrap();
    let pass = || {
        let y = model.run(|model| model.forward(&x)).unwrap_or_else(|error| panic!("{error}"));
        let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        ContentId::of(&y.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    };
    let first = pass();
    assert!((0..2).all(|_| pass() == first));
    first
}
