//! What probe, inspect, plan and hash answer.

mod common;

use common::{SHAPES, mm, mm_reading, text};
use mm_cache::ContentId;
use serde_json::{Value, json};
use std::fs;

const MIB: u64 = 1 << 20;

#[test]
fn help_names_what_there_is_and_nothing_else() {
    let help = mm(["--help"]).ok().stdout;
    for command in ["probe", "inspect", "plan", "run", "trace", "hash", "Exit codes"] {
        assert!(help.contains(command), "{command}");
    }
    assert!(mm(["run", "--help"]).ok().stdout.contains("--lora <FILE"));
    assert!(!mm(["probe", "--help"]).ok().stdout.contains("--measure"), "it is not there yet");
    mm(["probe", "--measure"]).fails(2, &["--measure"]);
    let plan = mm(["plan", "--help"]).ok().stdout;
    for flag in ["--link <RATE>", "--staging <RATE>", "--svg <FILE>"] {
        assert!(plan.contains(flag), "{flag}");
    }
    mm(["--version"]).ok();
}

#[test]
fn probes_machine_and_inspected_components_make_a_spec() {
    let probe = mm(["probe", "--json"]).ok().json();
    let inspected = mm(["inspect", SHAPES, "--json"]).ok().json();
    assert_eq!((&probe["schema"], &inspected["schema"]), (&json!(1), &json!(1)));
    assert!(probe["machine"]["ram_total"].as_u64().is_some_and(|bytes| bytes > 0));
    let spec = json!({"schema": 1, "machine": probe["machine"], "components": inspected["components"]}).to_string();
    let sizes = ["--vram", "8MiB", "--ram", "32GiB", "--json"];
    let by_spec = mm_reading(&[&["plan", "--spec", "-"][..], &sizes[..]].concat(), &spec).ok();
    let by_path = mm([&["plan", SHAPES][..], &sizes[..]].concat()).ok();
    assert_eq!(by_spec.stdout, by_path.stdout);
}

#[test]
fn people_get_tables() {
    let probe = mm(["probe"]).ok().stdout;
    assert!(probe.contains("RAM") && probe.contains("available of"), "{probe}");
    let inspect = mm(["inspect", SHAPES]).ok().stdout;
    for part in ["ZImagePipeline", "Qwen3Model", "AutoencoderKL", "transformer.layers", "651.75 KiB"] {
        assert!(inspect.contains(part), "{part} is not in {inspect}");
    }
    let plan = mm(["plan", SHAPES, "--vram", "8MiB"]).ok().stdout;
    for part in ["block_pin: at most", "8.00 MiB free", "\n- "] {
        assert!(plan.contains(part), "{part} is not in {plan}");
    }
    for line in [probe, inspect, plan].iter().flat_map(|text| text.lines()) {
        assert_eq!(line, line.trim_end(), "nothing trails");
    }
}

#[test]
fn a_checkpoint_counts_in_the_type_asked_for() {
    let bytes = |dtype: &[&str]| {
        let document = mm([&["inspect", SHAPES, "--json"], dtype].concat()).ok().json();
        let parts = document["checkpoint"]["components"].as_array().expect("components").clone();
        assert_eq!(parts.len(), 3);
        parts.iter().map(|part| part["device_bytes"].as_u64().expect("bytes")).sum::<u64>()
    };
    let stored = bytes(&[]);
    assert_eq!(bytes(&["--dtype", "bf16"]), stored);
    assert_eq!(bytes(&["--dtype", "f32"]), 2 * stored);
}

#[test]
fn a_single_file_and_an_index_are_checkpoints_too() {
    let name = |path: &str| {
        mm(["inspect", &format!("{SHAPES}/{path}"), "--json"]).ok().json()["components"][0]["name"].clone()
    };
    assert_eq!(name("vae/diffusion_pytorch_model.safetensors"), "vae");
    assert_eq!(name("transformer/diffusion_pytorch_model.safetensors.index.json"), "transformer");
}

fn plan(flags: &[&str]) -> Value {
    mm([&["plan", SHAPES, "--json", "--ram", "32GiB"], flags].concat()).ok().json()
}

fn residents(plan: &Value, component: &str) -> usize {
    let components = plan["components"].as_array().expect("components");
    let part = components.iter().find(|part| part["name"] == component).expect("the component");
    let stacks = part["stacks"].as_array().expect("stacks");
    stacks.iter().flat_map(|stack| stack["resident"].as_array().expect("residents")).filter(|r| **r == true).count()
}

#[test]
fn flags_override_machine_and_policy() {
    let card = plan(&["--vram", "64MiB"]);
    assert_eq!((&card["strategy"], &card["budget"]), (&json!("no_offload"), &json!(64 * MIB)));
    assert_eq!(plan(&["--vram", "64MiB", "--strategy", "group_offload"])["strategy"], "group_offload");
    let pinned = |count: &str| plan(&["--vram", "32MiB", "--strategy", "block_pin", "--resident", count]);
    // The transformer's two other stacks of two blocks each count as rest.
    assert_eq!(residents(&pinned("transformer=0"), "transformer"), 4);
    assert_eq!(residents(&pinned("transformer=3"), "transformer"), 7);
    assert_eq!(residents(&pinned("transformer=4000000000"), "transformer"), 14);
    // Weights of 13 MiB and 16 GiB of headroom.
    let low =
        |ram: &str| mm(["plan", SHAPES, "--json", "--vram", "8MiB", "--ram", ram]).ok().json()["low_cpu_mem"].clone();
    assert_eq!((low("16GiB"), low("17GiB")), (json!(true), json!(false)));
    plan(&["--vram", "64MiB", "--passes", "transformer=28", "--dtype", "f16"]);
}

#[test]
fn rule_cost_needs_a_link() {
    let cost = plan(&["--vram", "64MiB", "--rule", "cost"]);
    assert_eq!(cost["rule"], "threshold");
    let extra = cost["notes"].as_array().map(Vec::len);
    let notes = plan(&["--vram", "64MiB", "--rule", "threshold"])["notes"].as_array().map(Vec::len);
    assert_eq!(extra, notes.map(|n| n + 1));
    assert_eq!(plan(&["--vram", "64MiB", "--link", "25GB"])["rule"], "cost");
    assert_eq!(plan(&["--vram", "64MiB", "--link", "25GB", "--rule", "threshold"])["rule"], "threshold");
}

#[test]
fn a_checkpoint_that_does_not_fit_names_the_budget_that_does() {
    let answer = mm(["plan", SHAPES, "--vram", "1MiB", "--json"]);
    let answer = answer.fails(3, &["`transformer` needs", "the smallest budget that works is"]);
    let document = answer.json();
    let error = &document["error"];
    assert_eq!((&document["schema"], &error["code"]), (&json!(1), &json!("never_fits")));
    assert_eq!((&error["component"], &error["have"]), (&json!("transformer"), &json!(MIB)));
    let smallest = error["smallest"].as_u64().expect("bytes");
    assert!(answer.stderr.contains(&format!("--vram {smallest}\n")), "{}", answer.stderr);
    let text = error["text"].as_str().expect("text");
    assert!(answer.stderr.contains(text));
    mm(["plan", SHAPES, "--vram", &smallest.to_string()]).ok();
    mm(["plan", SHAPES, "--vram", &(smallest - 1).to_string()]).fails(3, &[]);
}

#[test]
fn hashes_are_blake3_of_the_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&a, "abc").expect("writes");
    fs::write(&b, "").expect("writes");
    let lines = [(&a, "abc"), (&b, "")]
        .map(|(path, bytes)| format!("{}  {}\n", ContentId::of(bytes.as_bytes()), path.display()));
    assert_eq!(mm(["hash", text(&a), text(&b)]).ok().stdout, lines.concat());
    assert_eq!(mm(["hash", text(&b), text(&a)]).ok().stdout, format!("{}{}", lines[1], lines[0]), "in the order asked");
    assert_eq!(mm(["hash", text(folder.path())]).ok().stdout, lines.concat());
    assert!(lines[0].starts_with("6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85  "), "{}", lines[0]);
    let document = mm(["hash", "--json", text(&a)]).ok().json();
    assert_eq!(document["files"], json!([{"path": a, "id": ContentId::of(b"abc").to_string()}]));
    assert_eq!((&document["schema"], &document["components"]), (&json!(1), &json!([])));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_mm"))
        .args(["inspect", SHAPES])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let mut program = program.expect("starts");
    drop(program.stdout.take());
    let answer = program.wait_with_output().expect("ends");
    assert!(answer.status.success() && answer.stderr.is_empty(), "{answer:?}");
}
