//! Checkpoints as they are in the wild: in the hub's cache, in variants, as one file.

mod common;

use common::{SHAPES, copy, copy_folder, draw, file, mm, mm_caching, text};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const RED: [&str; 4] = ["--prompt", "a large red circle at the left on a white background", "--steps", "2"];

/// The demo checkpoint as the hub's client stores it: links into `blobs`.
fn cache() -> TempDir {
    let cache = tempfile::tempdir().expect("a folder");
    let entry = cache.path().join("models--org--shapes");
    let snapshot = entry.join("snapshots").join(COMMIT);
    for folder in ["blobs", "refs"] {
        fs::create_dir_all(entry.join(folder)).expect("creates");
    }
    fs::create_dir_all(&snapshot).expect("creates");
    fs::write(entry.join("refs/main"), COMMIT).expect("writes");
    copy_folder(Path::new(SHAPES), &snapshot);
    #[cfg(unix)]
    move_to_blobs(&snapshot, &entry.join("blobs"), "../../blobs/");
    cache
}

#[cfg(unix)]
fn move_to_blobs(folder: &Path, blobs: &Path, up: &str) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            move_to_blobs(&path, blobs, &format!("../{up}"));
            continue;
        }
        let blob = fs::read_dir(blobs).expect("a folder").count().to_string();
        fs::rename(&path, blobs.join(&blob)).expect("moves");
        std::os::unix::fs::symlink(format!("{up}{blob}"), &path).expect("links");
    }
}

fn components(answer: &Value) -> Value {
    answer["components"].clone()
}

#[test]
fn a_repository_in_the_cache_is_a_checkpoint() {
    let cache = cache();
    let ask = |id: &str| mm_caching(cache.path(), ["inspect", id, "--json"]).ok().json();
    let expected = components(&mm(["inspect", SHAPES, "--json"]).ok().json());
    for id in ["org/shapes", "org/shapes@main", &format!("org/shapes@{COMMIT}")] {
        assert_eq!(components(&ask(id)), expected, "{id}");
    }
    let by_folder = mm(["inspect", text(&cache.path().join("models--org--shapes")), "--json"]).ok().json();
    assert_eq!(components(&by_folder), expected);
    let sizes = ["--vram", "8MiB", "--ram", "32GiB", "--json"];
    let plan = |args: &[&str]| mm_caching(cache.path(), [&["plan"], args, &sizes[..]].concat()).ok();
    assert_eq!(plan(&["org/shapes"]).stdout, plan(&[SHAPES]).stdout);

    let out = file(&cache, "out.png");
    let run = [&["run", "org/shapes", "-o", text(&out), "--json"], &RED[..]].concat();
    let image = mm_caching(cache.path(), run).ok().json()["image_blake3"].clone();
    assert_eq!(image, draw(SHAPES, cache.path(), &["--json"]).ok().json()["image_blake3"]);

    mm_caching(cache.path(), ["inspect", "org/other"])
        .fails(4, &["org/other", "models--org--other", "download it first"]);
    mm_caching(cache.path(), ["run", "org/shapes@dev", "--prompt", "x"]).fails(4, &["revision `dev`", "main"]);
}

#[test]
fn a_download_that_was_cut_off_is_told_with_what_is_missing() {
    let cache = cache();
    let snapshot = cache.path().join("models--org--shapes/snapshots").join(COMMIT);
    let shard = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";
    fs::remove_file(snapshot.join(shard)).expect("removes");
    fs::write(cache.path().join("models--org--shapes/blobs/7.incomplete"), "").expect("writes");
    for command in [&["inspect", "org/shapes"][..], &["plan", "org/shapes"], &["run", "org/shapes", "--prompt", "x"]] {
        mm_caching(cache.path(), command).fails(4, &[shard, "index.json", "finish the download", "7.incomplete"]);
    }
}

/// Renames a component's plain files as those of the variant `fp16` are named.
fn make_variant(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let renamed = match name.split_once(".safetensors") {
            Some((stem, "")) => format!("{stem}.fp16.safetensors"),
            Some((stem, ".index.json")) => format!("{stem}.safetensors.index.fp16.json"),
            _ => continue,
        };
        if renamed.contains("index") {
            let text = fs::read_to_string(&path).expect("reads").replace(".safetensors\"", ".fp16.safetensors\"");
            fs::write(&path, text).expect("writes");
        }
        fs::rename(&path, folder.join(renamed)).expect("renames");
    }
}

#[test]
fn a_variant_is_found_inspected_planned_and_run() {
    let checkpoint = copy();
    let plain = draw(SHAPES, checkpoint.path(), &["--json"]).ok().json();
    for component in ["text_encoder", "transformer", "vae"] {
        make_variant(&checkpoint.path().join(component));
    }
    let path = text(checkpoint.path());
    for variant in [&[][..], &["--variant", "fp16"]] {
        let run = draw(path, checkpoint.path(), &[&["--json"], variant].concat()).ok().json();
        assert_eq!(run["image_blake3"], plain["image_blake3"]);
        let seen = mm([&["inspect", path, "--json"], variant].concat()).ok().json();
        assert!(
            seen["checkpoint"]["components"]
                .as_array()
                .expect("components")
                .iter()
                .all(|c| c["variant"] == json!("fp16"))
        );
        let plan = [&["plan", path, "--device", "cpu", "--vram", "8MiB", "--json"], variant].concat();
        assert!(mm(plan).ok().json()["peak"]["device"].as_u64().is_some_and(|bytes| bytes <= 8 << 20));
    }
    assert!(mm(["inspect", path]).ok().stdout.contains("variant fp16"), "people are told");
    for command in [&["inspect", path][..], &["plan", path], &["run", path, "--prompt", "x"]] {
        let asked = [command, &["--variant", "int4"]].concat();
        mm(asked).fails(4, &["no variant `int4`", "fp16"]);
    }
}

/// A GGUF file of one quantized tensor.
fn gguf(folder: &TempDir) -> PathBuf {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend([1u64, 0, 1].map(u64::to_le_bytes).concat());
    bytes.push(b'w');
    bytes.extend(2u32.to_le_bytes());
    bytes.extend([256u64, 4].map(u64::to_le_bytes).concat());
    bytes.extend(12u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 4 * 144, 0);
    let path = file(folder, "m.gguf");
    fs::write(&path, bytes).expect("writes");
    path
}

#[test]
fn quantized_files_are_inspected_and_planned() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = gguf(&folder);
    let seen = mm(["inspect", text(&path), "--dtype", "bf16", "--json"]).ok().json();
    let component = &seen["checkpoint"]["components"][0];
    assert_eq!((&component["stored"], &component["device_bytes"]), (&json!({"q4_k": 576}), &json!(576)));
    mm(["plan", text(&path), "--vram", "1MiB"]).ok();
    fs::write(&path, b"GGUF").expect("writes");
    mm(["inspect", text(&path)]).fails(4, &["m.gguf", "truncated"]);
}

#[test]
fn what_computing_takes_is_planned_for_by_the_size_asked_for() {
    let plan = |more: &[&str]| mm([&["plan", SHAPES, "--vram", "1GiB", "--json"], more].concat()).ok().json();
    let phases = |plan: &Value| plan["phases"].as_array().expect("phases").clone();
    assert!(phases(&plan(&[])).iter().all(|phase| phase["activation"].is_null()), "unknown unless a size is asked for");
    let bytes = |more: &[&str]| -> Vec<u64> {
        let phases = phases(&plan(more));
        assert!(phases.iter().all(|phase| phase["activation"]["basis"] == json!("estimated")));
        phases.iter().map(|phase| phase["activation"]["bytes"].as_u64().expect("bytes")).collect()
    };
    let small = bytes(&["--width", "64", "--height", "64"]);
    assert_eq!(small, bytes(&["--batch", "1"]), "the size that the VAE was made for");
    let large = bytes(&["--width", "256", "--height", "256"]);
    assert!(large[1] > 2 * small[1] && large[2] > 4 * small[2], "{small:?} {large:?}");
    let two = bytes(&["--batch", "2"]);
    assert!(two.iter().zip(&small).all(|(two, one)| two > one), "{small:?} {two:?}");

    let refused = ["plan", SHAPES, "--vram", "64MiB", "--width", "512"];
    mm(refused).fails(3, &["no plan fits", "is estimated to take", "smaller --width"]);
    mm(["plan", SHAPES, "--width", "0"]).fails(2, &["--width"]);
    mm(["plan", "--spec", "-", "--batch", "2"]).fails(2, &["--batch"]);

    // On the CPU a budget is for weights: the plan is that of a run, and what comes on top is told.
    let cpu = ["plan", SHAPES, "--device", "cpu", "--vram", "8MiB", "--ram", "32GiB"];
    let with = mm([&cpu[..], &["--width", "64"]].concat()).ok().stdout;
    let without = mm(cpu).ok().stdout;
    let told = with.strip_prefix(without.trim_end()).expect("one note more");
    assert!(told.contains("on top of the weights"), "{told}");
}
