//! Checkpoints of FLUX.1 and Stable Diffusion are recognised, planned and run.

mod common;

use common::{file, mm, names, text};
use mm_fixtures::{Fill, Fixture, Model, Options, Quantization};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

fn checkpoint(model: Model) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let dim = if matches!(model, Model::Sd15 | Model::Sd21 | Model::Sdxl | Model::Wuerstchen) { 32 } else { 64 };
    let options = Options { layers: Some(1), dim: Some(dim), scale: 0.0001, fill: Fill::Random, ..Options::default() };
    Fixture::new(model, &options).expect("a fixture").write(folder.path()).expect("writes");
    folder
}

/// Of widths that are whole blocks.
fn of_gguf() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        layers: Some(2),
        dim: Some(256),
        scale: 1.0 / 4096.0,
        fill: Fill::Random,
        gguf: Some(Quantization::Q4K),
        ..Options::default()
    };
    Fixture::new(Model::FluxDev, &options).expect("a fixture").write(folder.path()).expect("writes");
    folder
}

fn draw(checkpoint: &Path, out: &Path, more: &[&str]) -> common::Answer {
    let flags = ["--prompt", "a red cat", "--steps", "2", "--width", "32", "--height", "48", "--json", "-o"];
    mm([&["run", text(checkpoint)], &flags[..], &[text(out)], more].concat())
}

fn passes(result: &Value) -> Vec<(&str, u64)> {
    let passes = result["passes"].as_array().expect("passes").iter();
    passes.map(|p| (p["component"].as_str().expect("a name"), p["count"].as_u64().expect("a count"))).collect()
}

#[test]
fn flux_makes_the_same_picture_under_a_budget() {
    let (checkpoint, folder) = (checkpoint(Model::FluxDev), tempfile::tempdir().expect("a folder"));
    let out = file(&folder, "out.png");
    let whole = draw(checkpoint.path(), &out, &[]).ok().json();
    assert_eq!(names(folder.path()), ["out.png"]);
    let image = image::open(&out).expect("an image");
    assert_eq!((image.width(), image.height()), (32, 48));
    assert_eq!(passes(&whole), [("text_encoder", 1), ("text_encoder_2", 1), ("transformer", 2), ("vae", 1)]);

    let smallest = draw(checkpoint.path(), &out, &["--vram", "1KiB"]).fails(3, &["needs"]).json();
    let smallest = smallest["error"]["smallest"].as_u64().expect("bytes").to_string();
    let tight = draw(checkpoint.path(), &out, &["--vram", &smallest]).ok().json();
    assert_eq!(tight["image_blake3"], whole["image_blake3"]);
    assert_eq!(tight["peak"]["device"], tight["peak"]["planned_device"]);
    assert!(tight["peak"]["device"].as_u64() < whole["peak"]["device"].as_u64());

    let plan = [
        "plan",
        text(checkpoint.path()),
        "--device",
        "cpu",
        "--vram",
        &smallest,
        "--passes",
        "transformer=2",
        "--json",
    ];
    let planned = mm(plan).ok().json();
    assert_eq!(planned["components"].as_array().map(Vec::len), Some(4));
    assert_eq!(planned["peak"]["device"], tight["peak"]["planned_device"]);

    let stronger = draw(checkpoint.path(), &out, &["--guidance", "9"]).ok().json();
    assert_ne!(stronger["image_blake3"], whole["image_blake3"], "guidance is an input of the transformer");
}

#[test]
fn what_flux_cannot_do_is_refused() {
    let (checkpoint, folder) = (checkpoint(Model::FluxDev), tempfile::tempdir().expect("a folder"));
    let out = file(&folder, "out.png");
    draw(checkpoint.path(), &out, &["--negative", "blurry"]).fails(2, &["--negative", "leave it empty"]);
    let size = ["run", text(checkpoint.path()), "--prompt", "a", "--width", "40", "-o", text(&out)];
    mm(size).fails(2, &["--width", "multiple of 16"]);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn sd3_makes_the_same_picture_under_a_budget() {
    let (checkpoint, folder) = (checkpoint(Model::Sd35Large), tempfile::tempdir().expect("a folder"));
    let out = file(&folder, "out.png");
    let whole = draw(checkpoint.path(), &out, &["--negative", "a dog"]).ok().json();
    let expected = [("text_encoder", 2), ("text_encoder_2", 2), ("text_encoder_3", 2), ("transformer", 2), ("vae", 1)];
    assert_eq!(passes(&whole), expected);
    let smallest = draw(checkpoint.path(), &out, &["--vram", "1KiB"]).fails(3, &["needs"]).json();
    let smallest = smallest["error"]["smallest"].as_u64().expect("bytes").to_string();
    let tight = draw(checkpoint.path(), &out, &["--negative", "a dog", "--vram", &smallest]).ok().json();
    assert_eq!(tight["image_blake3"], whole["image_blake3"]);
}

#[test]
fn sd_makes_the_same_picture_under_a_budget() {
    let encoders = [("text_encoder", 2)];
    let both = [("text_encoder", 2), ("text_encoder_2", 2)];
    // PNDM takes a step twice.
    for (model, encoders, steps) in
        [(Model::Sd15, &encoders[..], 3), (Model::Sd21, &encoders, 2), (Model::Sdxl, &both, 2)]
    {
        let (checkpoint, folder) = (checkpoint(model), tempfile::tempdir().expect("a folder"));
        let out = file(&folder, "out.png");
        let whole = draw(checkpoint.path(), &out, &["--negative", "a dog"]).ok().json();
        let mut seen = passes(&whole);
        assert_eq!(seen.split_off(encoders.len()), [("unet", steps), ("vae", 1)], "{model}");
        assert_eq!(seen, encoders, "{model}");
        let image = image::open(&out).expect("an image").into_rgb8();
        assert_eq!((image.width(), image.height()), (32, 48), "{model}");
        let first = image.pixels().next().copied();
        assert!(image.pixels().any(|pixel| Some(*pixel) != first), "{model}: one colour");

        let smallest = draw(checkpoint.path(), &out, &["--vram", "1KiB"]).fails(3, &["needs"]).json();
        let smallest = smallest["error"]["smallest"].as_u64().expect("bytes").to_string();
        let tight = draw(checkpoint.path(), &out, &["--negative", "a dog", "--vram", &smallest]).ok().json();
        assert_eq!(tight["image_blake3"], whole["image_blake3"], "{model}");
        assert_eq!(tight["peak"]["device"], tight["peak"]["planned_device"], "{model}");
        assert!(tight["peak"]["device"].as_u64() < whole["peak"]["device"].as_u64(), "{model}");
        let other = draw(checkpoint.path(), &out, &["--negative", "a dog", "--seed", "1"]).ok().json();
        assert_ne!(other["image_blake3"], whole["image_blake3"], "{model}: the seed");

        let plan = ["plan", text(checkpoint.path()), "--device", "cpu", "--vram", &smallest, "--json"];
        let planned = mm(plan).ok().json();
        assert_eq!(planned["components"].as_array().map(Vec::len), Some(encoders.len() + 2), "{model}");
    }
}

#[test]
fn flux_of_gguf_files_is_inspected_planned_and_run() {
    let (checkpoint, folder) = (of_gguf(), tempfile::tempdir().expect("a folder"));
    let (path, out) = (text(checkpoint.path()), file(&folder, "out.png"));
    let inspected = mm(["inspect", path, "--dtype", "f32", "--json"]).ok().json();
    let components = inspected["components"].as_array().expect("components");
    let device = |name: &str| -> u64 {
        let component = components.iter().find(|c| c["name"] == name).expect("the component");
        let sum = |group: &Value| match group["slabs"].as_object() {
            Some(slabs) => slabs.values().map(|bytes| bytes.as_u64().expect("bytes")).sum::<u64>(),
            None => group["bytes"].as_u64().expect("bytes"),
        };
        let stacks = component["stacks"].as_array().expect("stacks").iter();
        let groups: u64 = stacks.flat_map(|stack| stack["groups"].as_array().expect("groups")).map(sum).sum();
        groups + component["rest"].as_u64().expect("bytes")
    };
    let whole = draw(checkpoint.path(), &out, &["--strategy", "no_offload"]).ok().json();
    let sum = ["text_encoder", "text_encoder_2", "transformer"].map(device).iter().sum::<u64>();
    let peak = whole["peak"]["device"].as_u64().expect("bytes");
    assert!(peak >= sum && peak <= sum + device("vae"), "{peak}: the three are {sum} as inspected, all on the device");

    let smallest = draw(checkpoint.path(), &out, &["--vram", "1KiB"]).fails(3, &["needs"]).json();
    let smallest = smallest["error"]["smallest"].as_u64().expect("bytes").to_string();
    let tight = draw(checkpoint.path(), &out, &["--vram", &smallest]).ok().json();
    assert_eq!(tight["image_blake3"], whole["image_blake3"]);
    assert_eq!(tight["peak"]["device"], tight["peak"]["planned_device"]);
    let flags = ["--device", "cpu", "--vram", &smallest, "--passes", "transformer=2", "--json"];
    let planned = mm([&["plan", path], &flags[..]].concat()).ok().json();
    assert_eq!(planned["peak"]["device"], tight["peak"]["planned_device"]);

    // In the file's own name, whichever component it is of.
    let lone = checkpoint.path().join("transformer/flux-dev-Q4_K.gguf");
    let stored = mm(["inspect", text(&lone)]).ok().stdout;
    assert!(stored.contains("q4_k") && stored.contains("double_blocks"), "{stored}");
    let bytes = std::fs::read(&lone).expect("reads");
    std::fs::write(&lone, &bytes[..bytes.len() / 2]).expect("writes");
    draw(checkpoint.path(), &out, &[]).fails(4, &["flux-dev-Q4_K.gguf", "truncated"]);
    std::fs::write(&lone, &bytes).expect("writes");
    std::fs::copy(&lone, checkpoint.path().join("transformer/other.gguf")).expect("copies");
    draw(checkpoint.path(), &out, &[]).fails(4, &["other.gguf", "leave one of them"]);
}

#[test]
fn wuerstchen_makes_the_same_picture_under_a_budget() {
    let (checkpoint, folder) = (checkpoint(Model::Wuerstchen), tempfile::tempdir().expect("a folder"));
    let out = file(&folder, "out.png");
    let draw = |more: &[&str]| {
        let flags = ["--prompt", "a red cat", "--steps", "6", "--width", "128", "--height", "256", "--json", "-o"];
        mm([&["run", text(checkpoint.path())], &flags[..], &[text(&out)], more].concat())
    };
    let whole = draw(&[]).ok().json();
    let mut seen = passes(&whole);
    seen.sort_unstable();
    let expected = [("decoder", 2), ("prior_prior", 6), ("prior_text_encoder", 2), ("text_encoder", 1), ("vqgan", 1)];
    assert_eq!(seen, expected);
    let image = image::open(&out).expect("an image").into_rgb8();
    assert_eq!((image.width(), image.height()), (128, 256));
    let first = image.pixels().next().copied();
    assert!(image.pixels().any(|pixel| Some(*pixel) != first), "one colour");
    let smallest = draw(&["--vram", "1KiB"]).fails(3, &["needs"]).json();
    let smallest = smallest["error"]["smallest"].as_u64().expect("bytes").to_string();
    let tight = draw(&["--vram", &smallest]).ok().json();
    assert_eq!(tight["image_blake3"], whole["image_blake3"]);
    assert!(tight["peak"]["device"].as_u64() < whole["peak"]["device"].as_u64());
    let size = ["run", text(checkpoint.path()), "--prompt", "a", "--width", "48", "-o", text(&out)];
    mm(size).fails(2, &["--width", "multiple of 128"]);
}
