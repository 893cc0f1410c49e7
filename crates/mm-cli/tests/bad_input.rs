//! Each bad input has its exit code, and a message that says what is wrong with what.

mod common;

use common::{SHAPES, copy, draw, file, mm, names, text};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn bad_usage_names_the_flag() {
    let huge = "99999999999GiB";
    for (args, says) in [
        (&["plan"][..], &["PATH", "--spec"][..]),
        (&["plan", "a", "--spec", "b"], &["--spec"]),
        (&["plan", "a", "--dtype", "f64"], &["--dtype", "f64", "bf16"]),
        (&["plan", "a", "--strategy", "fast"], &["--strategy", "fast", "block_pin"]),
        (&["plan", "a", "--rule", "luck"], &["--rule", "luck", "threshold"]),
        (&["plan", "a", "--vram", "much"], &["--vram", "much", "12GiB"]),
        (&["plan", "a", "--vram", "-1GiB"], &["--vram", "never negative"]),
        (&["plan", "a", "--vram", "-1"], &["--vram", "never negative"]),
        (&["plan", "a", "--ram", "1.5"], &["--ram", "whole number"]),
        (&["plan", "a", "--ram", huge], &["--ram", "largest"]),
        (&["plan", "a", "--resident", "vae"], &["--resident", "transformer=30"]),
        (&["plan", "a", "--passes", "vae=-1"], &["--passes", "-1"]),
        (&["plan", SHAPES, "--resident", "unet=3"], &["--resident", "`unet`", "text_encoder, transformer, vae"]),
        (&["plan", SHAPES, "--passes", "unet=3"], &["--passes", "`unet`"]),
        (&["run", "a"], &["--prompt"]),
        (&["run", "a", "--prompt", "b", "--steps", "0"], &["--steps", "0"]),
        (&["run", "a", "--prompt", "b", "--steps", "-1"], &["--steps", "-1"]),
        (&["run", "a", "--prompt", "b", "--seed", "-1"], &["--seed"]),
        (&["run", "a", "--prompt", "b", "--width", "0"], &["--width"]),
        (&["run", "a", "--prompt", "b", "--device", "gpu"], &["--device", "cuda:N"]),
        (&["run", "a", "--prompt", "b", "--dtype", "int8"], &["--dtype", "int8"]),
        (&["run", "a", "--prompt", "b", "-o", "out.jpg"], &["--output", ".png"]),
        (&["run", "a", "--prompt", "b", "--timeline", "t.svg"], &["--timeline", ".json or .html", "t.svg"]),
        (&["run", "a", "--prompt", "b", "--timeline", "html"], &["--timeline", ".json or .html"]),
        (&["trace", "t.json", "--html", "t.json"], &["--html", "name a .html file", "t.json"]),
        (&["run", "a", "--prompt", "b", "--dump", "d.npz"], &["--dump", ".safetensors"]),
        (&["hash"], &["PATHS"]),
        (&["trace"], &["FILE"]),
        (&["draw"], &["draw"]),
        (&[], &["probe"]),
    ] {
        let answer = mm(args).fails(2, says);
        assert_eq!(answer.stdout, "", "{args:?}");
    }
}

#[test]
fn bad_usage_is_a_document_too() {
    for args in [&["plan", "a", "--vram", "much", "--json"][..], &["plan", SHAPES, "--passes", "unet=3", "--json"]] {
        let document = mm(args).fails(2, &[]).json();
        assert_eq!((&document["schema"], &document["error"]["code"]), (&1.into(), &"bad_usage".into()));
        assert!(document["error"]["text"].as_str().is_some_and(|text| text.contains(args[2])), "{document}");
    }
}

#[test]
fn requests_that_the_model_cannot_fulfil_name_their_flag() {
    let folder = tempfile::tempdir().expect("a folder");
    for (flags, says) in [
        (&["--width", "30"][..], &["--width", "30", "multiple of 8"][..]),
        (&["--height", "63"], &["--height", "63", "multiple of 8"]),
        (&["--width", "16000"], &["--width", "16000", "at most"]),
        (&["--guidance", "-1"], &["--guidance", "-1"]),
        (&["--guidance", "nan"], &["--guidance"]),
    ] {
        draw(SHAPES, folder.path(), flags).fails(2, says);
        assert!(names(folder.path()).is_empty(), "{flags:?}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_told_before_the_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = file(&folder, "no/out.png");
    let directory = file(&folder, "folder.png");
    fs::create_dir(&directory).expect("creates");
    for path in [&missing, &directory] {
        // The checkpoint does not exist either; it is not even looked at.
        let answer = mm(["run", "/no/checkpoint", "--prompt", "a", "--json", "-o", text(path)]);
        let answer = answer.fails(2, &[text(path), "cannot be written"]);
        assert_eq!(answer.json()["error"]["code"], "unwritable");
    }
    for (flag, name) in [("--timeline", "no/t.json"), ("--timeline", "no/t.html"), ("--dump", "no/d.safetensors")] {
        let path = file(&folder, name);
        draw(SHAPES, folder.path(), &[flag, text(&path)]).fails(2, &[text(&path), "cannot be written"]);
    }
    assert_eq!(names(folder.path()), ["folder.png"]);
}

#[test]
fn a_device_that_is_not_there_is_a_device_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = draw(SHAPES, folder.path(), &["--device", "cuda:1", "--json"]);
    let answer = answer.fails(5, &["cuda:1", "no CUDA support", "--device cpu"]);
    assert_eq!(answer.json()["error"]["code"], "no_cuda");
    assert!(names(folder.path()).is_empty());
}

fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut document = serde_json::from_slice(&fs::read(file).expect("reads")).expect("JSON");
    change(&mut document);
    fs::write(file, document.to_string()).expect("writes");
}

fn truncate(file: &Path) {
    let bytes = fs::read(file).expect("reads");
    fs::write(file, &bytes[..bytes.len() - 100]).expect("writes");
}

/// Damages a checkpoint, and sees what every command that reads it says.
fn damaged(damage: impl FnOnce(&Path), commands: &[&str], says: &[&str]) {
    let (checkpoint, out) = (copy(), tempfile::tempdir().expect("a folder"));
    damage(checkpoint.path());
    let path = text(checkpoint.path());
    for command in commands {
        let answer = match *command {
            "run" => draw(path, out.path(), &["--json"]),
            command => mm([command, path, "--json"]),
        };
        let error = answer.fails(4, says).json()["error"].clone();
        assert_eq!(error["code"], "bad_checkpoint", "{command}");
        assert!(names(out.path()).is_empty(), "no image, nor part of one");
    }
}

const ALL: [&str; 3] = ["inspect", "plan", "run"];
const SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";

#[test]
fn broken_checkpoints_are_named() {
    damaged(|c| truncate(&c.join(SHARD)), &ALL, &[SHARD, "truncated"]);
    damaged(|c| fs::remove_file(c.join(SHARD)).expect("removes"), &ALL, &[SHARD, "missing"]);
    damaged(|c| fs::write(c.join(SHARD), "12345678nonsense").expect("writes"), &ALL, &[SHARD]);
    damaged(|c| fs::remove_dir_all(c.join("vae")).expect("removes"), &ALL, &["vae", "missing"]);
    damaged(|c| fs::write(c.join("model_index.json"), "{").expect("writes"), &ALL, &["model_index.json"]);
}

#[test]
fn what_no_pipeline_is_for_is_named() {
    let class = |name: &'static str, class: Value| {
        move |c: &Path| edit(&c.join("model_index.json"), |index| index[name] = class)
    };
    damaged(class("_class_name", "OtherPipeline".into()), &["run"], &["OtherPipeline", "ZImagePipeline"]);
    let unknown = serde_json::json!(["diffusers", "OtherModel"]);
    damaged(class("transformer", unknown), &["run"], &["OtherModel", "ZImageTransformer2DModel", "model_index.json"]);
    damaged(
        |c| edit(&c.join("transformer/config.json"), |config| config["n_heads"] = 7.into()),
        &["run"],
        &["transformer/config.json", "n_heads"],
    );
    damaged(
        |c| edit(&c.join("transformer/config.json"), |config| config["n_layers"] = 11.into()),
        &["run"],
        &["transformer", "layers.10"],
    );
    damaged(
        |c| edit(&c.join("text_encoder/config.json"), |config| config["intermediate_size"] = 128.into()),
        &["run"],
        &["text_encoder/model.safetensors", "layers.0.mlp.gate_proj.weight", "[128, 96]", "[256, 96]"],
    );
}

#[test]
fn paths_that_are_no_checkpoint_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = text(folder.path());
    let out = tempfile::tempdir().expect("a folder");
    for command in ALL {
        for path in ["/no/such/checkpoint", empty] {
            let answer = if command == "run" { draw(path, out.path(), &[]) } else { mm([command, path]) };
            answer.fails(4, &[path]);
        }
    }
    assert!(names(out.path()).is_empty());
    mm(["hash", SHAPES, "/no/such/file"]).fails(4, &["/no/such/file"]);
}

#[test]
fn broken_timelines_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, "t.json");
    let other = r#""otherData": {"schema": 1, "budget": 1, "planned": 1}"#;
    for (text, part) in [
        ("".to_owned(), "is no timeline"),
        ("[]".to_owned(), "is no timeline"),
        ("{\"traceEvents\": []}".to_owned(), "otherData"),
        (format!("{{{other}}}"), "traceEvents"),
        ("{\"traceEvents\": [], \"otherData\": {\"schema\": 2, \"budget\": 1, \"planned\": 1}}".to_owned(), "schema 2"),
        (format!("{{\"traceEvents\": [{{\"ph\": 3}}], {other}}}"), "is no timeline"),
        (format!("{{\"traceEvents\": [{{\"ph\": \"X\", \"cat\": \"copy\", \"ts\": -1}}], {other}}}"), "event 0"),
        (format!("{{\"traceEvents\": [{{\"ph\": \"C\", \"cat\": \"free\", \"ts\": 1}}], {other}}}"), "`bytes`"),
    ] {
        fs::write(&path, &text).expect("writes");
        let answer = mm(["trace", common::text(&path), "--json"]).fails(4, &[common::text(&path), part]);
        assert_eq!(answer.json()["error"]["code"], "bad_trace", "{text}");
    }
    let page = file(&folder, "t.html");
    mm(["trace", common::text(&path), "--html", common::text(&page)]).fails(4, &[common::text(&path), "`bytes`"]);
    assert!(!page.exists(), "a page of what can't be read");
    mm(["trace", "/no/t.json"]).fails(4, &["/no/t.json", "cannot be read"]);
    fs::write(&path, format!("{{\"traceEvents\": [], {other}}}")).expect("writes");
    assert_eq!(mm(["trace", text(&path), "--json"]).ok().json()["duration_ns"], 0);
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_do_no_harm() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff.safetensors"));
    fs::copy(format!("{SHAPES}/vae/diffusion_pytorch_model.safetensors"), &path).expect("copies");
    let mm = |command: &str| mm([command.as_ref(), path.as_os_str(), "--json".as_ref()]);
    assert!(
        mm("hash").ok().json()["files"][0]["path"].as_str().is_some_and(|path| path.ends_with("\u{fffd}.safetensors"))
    );
    mm("inspect").fails(2, &["UTF-8"]);
    mm("plan").ok();
    mm("trace").fails(4, &["is no timeline"]);
}
