//! `mm run --calibrate`: what a run measures is kept for the next one, and changes no pixel.

mod common;

use common::{SHAPES, mm_indexing};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A calibrated run within a budget that makes most of it stream, with the user's folder here.
fn draw(folder: &Path, more: &[&str]) -> Value {
    let out = folder.join("out.png").display().to_string();
    let prompt = "a small blue star at the bottom";
    let args = ["run", SHAPES, "--prompt", prompt, "--steps", "4", "--vram", "4MiB", "-o", &out, "--json"];
    mm_indexing(&folder.join("cache"), args.iter().chain(more)).ok().json()
}

fn codes(run: &Value) -> Vec<&str> {
    run["notes"].as_array().expect("notes").iter().filter_map(|note| note["code"].as_str()).collect()
}

#[test]
fn the_next_run_plans_with_what_this_one_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = draw(folder.path(), &[]);
    assert!(!folder.path().join("cache/figures").exists(), "nobody asked for it");
    let first = draw(folder.path(), &["--calibrate"]);
    assert!(!codes(&first).contains(&"measured_before"), "{:?}", codes(&first));
    assert!(fs::read_dir(folder.path().join("cache/figures")).expect("figures").count() > 0);
    let second = draw(folder.path(), &["--calibrate"]);
    assert!(codes(&second).contains(&"measured_before"), "{:?}", codes(&second));
    for run in [&first, &second] {
        assert_eq!(run["image_blake3"], plain["image_blake3"]);
        assert!(run["peak"]["device"].as_u64() <= run["peak"]["budget"].as_u64());
    }
}

#[test]
fn figures_that_are_damaged_are_measured_again() {
    let folder = tempfile::tempdir().expect("a folder");
    draw(folder.path(), &["--calibrate"]);
    for entry in fs::read_dir(folder.path().join("cache/figures")).expect("figures") {
        fs::write(entry.expect("an entry").path(), "{").expect("written");
    }
    let next = draw(folder.path(), &["--calibrate"]);
    assert!(!codes(&next).contains(&"measured_before"), "{:?}", codes(&next));
    assert!(codes(&draw(folder.path(), &["--calibrate"])).contains(&"measured_before"));
}
