//! LoRAs of a run.

mod common;

use common::{SHAPES, draw, file, text};
use serde_json::json;
use std::path::Path;

fn outline(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../checkpoints/outline/{name}.safetensors"));
    path.to_str().expect("text").to_owned()
}

#[test]
fn a_lora_changes_the_image_and_a_budget_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |more: &[&str]| draw(SHAPES, folder.path(), &[more, &["--json"]].concat()).ok().json();
    let plain = run(&[]);
    assert_eq!(plain["loras"], json!([]));
    let lora = outline("outline");
    let with = run(&["--lora", &lora]);
    assert_ne!(with["image_blake3"], plain["image_blake3"]);
    let expected = json!([{"file": lora, "scale": 1.0, "weights": {"transformer": 98}, "left": []}]);
    assert_eq!(with["loras"], expected);
    let tight = run(&["--lora", &lora, "--vram", "5MiB"]);
    assert_eq!(tight["image_blake3"], with["image_blake3"]);
    assert_eq!(tight["peak"]["device"], tight["peak"]["planned_device"]);
    assert_eq!(run(&["--lora", &format!("{lora}:0")])["image_blake3"], plain["image_blake3"]);
    // Two that undo each other leave next to nothing.
    let other = file(&folder, "other.safetensors");
    std::fs::copy(&lora, &other).expect("copies");
    let both = run(&["--lora", &lora, "--lora", &format!("{}:-1", text(&other))]);
    assert_eq!(both["loras"].as_array().map(Vec::len), Some(2));
    assert_ne!(both["image_blake3"], with["image_blake3"]);
    // Plans know what it takes.
    let plan = file(&folder, "plan.json");
    std::fs::write(&plan, tight["plan"].to_string()).expect("writes");
    let again = run(&["--lora", &lora, "--plan", text(&plan), "--vram", "5MiB"]);
    assert_eq!(again["image_blake3"], with["image_blake3"]);
    draw(SHAPES, folder.path(), &["--plan", text(&plan), "--vram", "5MiB"]).fails(3, &["is refused", "transformer"]);
}

#[test]
fn a_lora_that_can_not_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let lora = outline("outline");
    let weights = format!("{SHAPES}/vae/diffusion_pytorch_model.safetensors");
    let answer = draw(SHAPES, folder.path(), &["--lora", &weights, "--json"]).fails(4, &[&weights, "holds no LoRA"]);
    let error = answer.json()["error"].clone();
    assert_eq!((&error["code"], &error["file"]), (&json!("bad_lora"), &json!(weights)));
    draw(SHAPES, folder.path(), &["--lora", "/no/such.safetensors"]).fails(4, &["/no/such.safetensors"]);
    draw(SHAPES, folder.path(), &["--lora", &lora, "--lora", &format!("{lora}:2")]).fails(2, &["--lora", "twice"]);
    draw(SHAPES, folder.path(), &["--lora", &format!("{lora}:nan")]).fails(2, &["--lora", "scale"]);
    assert_eq!(common::names(folder.path()), Vec::<String>::new());
}
