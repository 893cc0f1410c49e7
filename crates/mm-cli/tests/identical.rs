//! The very same file, whatever the budget and the strategy: the program from end to end.

mod common;

use common::{SHAPES, draw, mm};
use serde_json::Value;
use std::collections::BTreeSet;

const STRATEGIES: [&str; 5] = ["auto", "no_offload", "model_offload", "block_pin", "group_offload"];

/// Bytes of all weights that a run has on the device in this type.
fn weights(dtype: &str) -> u64 {
    let args = ["plan", SHAPES, "--device", "cpu", "--strategy", "no_offload", "--dtype", dtype, "--json"];
    mm(args).ok().json()["peak"]["device"].as_u64().expect("bytes")
}

fn matrix(dtype: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |budget: u64, strategy: &str| {
        let budget = budget.to_string();
        draw(SHAPES, folder.path(), &["--dtype", dtype, "--vram", &budget, "--strategy", strategy, "--json"])
    };
    let weights = weights(dtype);
    let smallest = run(1, "auto").fails(3, &["smallest budget"]).json();
    let smallest = smallest["error"]["smallest"].as_u64().expect("bytes");
    assert!(smallest * 10 <= weights * 3, "{smallest} of {weights}");
    let mut images = BTreeSet::new();
    for budget in [2 * weights, weights * 6 / 10, weights * 3 / 10, smallest] {
        for strategy in STRATEGIES {
            let answer = run(budget, strategy);
            let whole = matches!(strategy, "no_offload" | "model_offload");
            if answer.code == 3 && whole && budget < weights {
                continue;
            }
            let result: Value = answer.ok().json();
            assert!(result["peak"]["device"].as_u64() <= Some(budget), "{dtype} {strategy} {budget}");
            assert_eq!(result["peak"]["device"], result["peak"]["planned_device"], "{dtype} {strategy} {budget}");
            images.insert(result["image_blake3"].as_str().expect("an id").to_owned());
        }
    }
    assert_eq!(images.len(), 1, "{dtype}: {images:?}");
}

#[test]
fn f32_images_are_the_same_bytes() {
    matrix("f32");
}

#[test]
fn bf16_images_are_the_same_bytes() {
    matrix("bf16");
}
