//! Images, made within a budget.

mod common;

use common::{SHAPES, draw, file, mm, names, text};
use mm_cache::ContentId;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn passes(result: &Value) -> Vec<(String, u64)> {
    let passes = result["passes"].as_array().expect("passes").iter();
    passes
        .map(|p| (p["component"].as_str().expect("a name").to_owned(), p["count"].as_u64().expect("a count")))
        .collect()
}

#[test]
fn a_budget_changes_the_memory_and_not_the_image() {
    let folder = folder();
    let out = file(&folder, "out.png");
    let whole = draw(SHAPES, folder.path(), &["--json"]).ok().json();
    let image = fs::read(&out).expect("an image");
    assert_eq!(names(folder.path()), ["out.png"], "nothing else is left");
    assert_eq!((&whole["schema"], &whole["image"]), (&json!(1), &json!(out)));
    assert_eq!(whole["image_blake3"], json!(ContentId::of(&image).to_string()));
    let decoded = image::load_from_memory(&image).expect("an image");
    assert_eq!((decoded.width(), decoded.height()), (64, 64), "the size that the VAE was made for");
    let three = [("text_encoder", 2), ("transformer", 2), ("vae", 1)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(passes(&whole), three);
    let cache = json!({"hits": 0, "misses": 3, "waits": 0, "evictions": 0, "bytes": whole["cache"]["bytes"], "shared_bytes": 0});
    assert_eq!(whole["cache"], cache);
    assert!(whole["cache"]["bytes"].as_u64() > Some(10_000_000));

    let tight = draw(SHAPES, folder.path(), &["--vram", "4MiB", "--json"]).ok().json();
    assert_eq!(tight["image_blake3"], whole["image_blake3"]);
    assert_eq!((&whole["strategy"], &tight["strategy"]), (&json!("no_offload"), &json!("block_pin")));
    for result in [&whole, &tight] {
        assert_eq!(result["peak"]["device"], result["peak"]["planned_device"]);
        assert!(result["peak"]["device"].as_u64() <= result["peak"]["budget"].as_u64());
        assert!(result["passes"][1]["median_ns"].as_u64().is_some_and(|ns| ns > 0));
    }
    assert_eq!(tight["peak"]["budget"], json!(4 << 20));
    assert!(tight["copied_bytes"].as_u64() > whole["copied_bytes"].as_u64(), "what streams is copied again");
    assert!(
        tight["notes"].as_array().is_some_and(|notes| notes.iter().any(|note| note["code"] == "phase_over_budget"))
    );
    #[cfg(target_os = "linux")]
    assert!(
        whole["peak"]["host_anon"].as_u64() > whole["peak"]["device"].as_u64(),
        "weights are anonymous memory here"
    );
}

#[test]
fn seed_size_prompt_and_guidance_make_the_image() {
    let folder = folder();
    let id = |more: &[&str]| draw(SHAPES, folder.path(), &[more, &["--json"]].concat()).ok().json();
    let plain = id(&["--width", "32", "--height", "48"]);
    let image = image::open(file(&folder, "out.png")).expect("an image");
    assert_eq!((image.width(), image.height()), (32, 48));
    let other = id(&["--width", "32", "--height", "48", "--seed", "1"]);
    assert_ne!(other["image_blake3"], plain["image_blake3"]);
    let unguided = id(&["--width", "32", "--height", "48", "--guidance", "0"]);
    assert_ne!(unguided["image_blake3"], plain["image_blake3"]);
    assert_eq!(passes(&unguided)[0], ("text_encoder".to_owned(), 1), "no negative pass");
}

#[test]
fn a_budget_that_is_too_small_names_one_that_works() {
    let folder = folder();
    fs::write(file(&folder, "out.png"), "old").expect("writes");
    let answer = draw(SHAPES, folder.path(), &["--vram", "1MB", "--json"]);
    let answer = answer.fails(3, &["`transformer` needs", "the smallest budget that works is"]);
    let error = answer.json()["error"].clone();
    assert_eq!((&error["code"], &error["have"]), (&json!("never_fits"), &json!(1_000_000)));
    assert_eq!(fs::read(file(&folder, "out.png")).expect("reads"), b"old", "what was there stays");
    assert_eq!(names(folder.path()), ["out.png"]);

    let smallest = error["smallest"].as_u64().expect("bytes");
    assert!(answer.stderr.ends_with(&format!("--vram {smallest}\n")), "{}", answer.stderr);
    draw(SHAPES, folder.path(), &["--vram", &smallest.to_string()]).ok();
    draw(SHAPES, folder.path(), &["--vram", &(smallest - 1).to_string()]).fails(3, &["--vram"]);
    draw(SHAPES, folder.path(), &["--vram", "8MiB", "--strategy", "no_offload"]).fails(3, &["no plan fits"]);
}

#[test]
fn people_get_a_summary_and_no_bar_when_piped() {
    let folder = folder();
    let answer = draw(SHAPES, folder.path(), &["--strategy", "group_offload"]).ok();
    for part in ["out.png in ", "by group_offload", "blake3 ", "transformer ", "\n- "] {
        assert!(answer.stdout.contains(part), "{part} is not in {}", answer.stdout);
    }
    assert_eq!(answer.stderr, "");
}

#[test]
fn latents_that_were_dumped_make_the_same_image() {
    let folder = folder();
    let dump = file(&folder, "dump.safetensors");
    let first = draw(SHAPES, folder.path(), &["--dump", text(&dump), "--json"]).ok().json();
    assert_eq!(names(folder.path()), ["dump.safetensors", "out.png"]);
    let header = fs::read(&dump).expect("reads");
    let header = String::from_utf8_lossy(&header[8..4096.min(header.len())]).into_owned();
    for tensor in ["input_ids", "prompt_embeds", "negative_prompt_embeds", "initial_latents", "transformer_out_t0.25"] {
        assert!(header.contains(&format!("\"{tensor}\"")), "{tensor} is not in {header}");
    }
    for tensor in ["timesteps", "sigmas", "latents", "image"] {
        assert!(header.contains(&format!("\"{tensor}\"")), "{tensor} is not in {header}");
    }
    let again = draw(SHAPES, folder.path(), &["--latents", text(&dump), "--seed", "9", "--json"]).ok().json();
    assert_eq!(again["image_blake3"], first["image_blake3"]);
    let other = draw(SHAPES, folder.path(), &["--seed", "9", "--json"]).ok().json();
    assert_ne!(other["image_blake3"], first["image_blake3"]);

    let smaller = ["--latents", text(&dump), "--width", "32"];
    draw(SHAPES, folder.path(), &smaller).fails(2, &["--latents", "expected the shape"]);
    let weights = format!("{SHAPES}/vae/diffusion_pytorch_model.safetensors");
    draw(SHAPES, folder.path(), &["--latents", &weights]).fails(4, &["initial_latents", &weights]);
    draw(SHAPES, folder.path(), &["--latents", "/no/such.safetensors"]).fails(4, &["/no/such.safetensors"]);
}

#[test]
fn a_plan_that_was_run_can_be_run_again() {
    let folder = folder();
    let (answer, plan) = (file(&folder, "answer.json"), file(&folder, "plan.json"));
    let first = draw(SHAPES, folder.path(), &["--vram", "5MiB", "--strategy", "group_offload", "--json"]).ok().json();
    fs::write(&answer, first.to_string()).expect("writes");
    fs::write(&plan, first["plan"].to_string()).expect("writes");
    // Under a larger budget another plan would be made.
    for file in [&answer, &plan] {
        let again = draw(SHAPES, folder.path(), &["--plan", text(file), "--vram", "64MiB", "--json"]).ok().json();
        assert_eq!(again["plan"], first["plan"]);
        assert_eq!(again["peak"]["device"], first["peak"]["device"]);
        assert_eq!(again["image_blake3"], first["image_blake3"]);
    }
    let tight = draw(SHAPES, folder.path(), &["--plan", text(&plan), "--vram", "1MiB", "--json"]);
    assert_eq!(tight.fails(3, &["is refused", text(&plan)]).json()["error"]["code"], "plan_refused");
}

#[test]
fn a_plan_for_the_cpu_is_what_a_run_does() {
    let folder = folder();
    let file = file(&folder, "plan.json");
    for budget in ["4MiB", "12MiB", "64MiB"] {
        let sizes = ["--vram", budget, "--ram", "8GiB", "--json"];
        let planned = mm([&["plan", SHAPES, "--device", "cpu"][..], &sizes[..]].concat()).ok();
        let made = draw(SHAPES, folder.path(), &sizes).ok().json();
        assert_eq!(made["plan"], planned.json(), "{budget}");
        fs::write(&file, planned.stdout).expect("writes");
        let given = draw(SHAPES, folder.path(), &[&["--plan", text(&file)][..], &sizes[..]].concat()).ok().json();
        assert_eq!((&given["plan"], &given["peak"]["device"]), (&made["plan"], &made["peak"]["planned_device"]));
    }
}

#[test]
fn a_plan_that_is_not_for_this_checkpoint_is_refused() {
    let folder = folder();
    let plan = file(&folder, "plan.json");
    // Of the stored bf16, where the run computes in f32.
    fs::write(&plan, mm(["plan", SHAPES, "--vram", "64MiB", "--json"]).ok().stdout).expect("writes");
    let answer = draw(SHAPES, folder.path(), &["--plan", text(&plan), "--json"]);
    let answer = answer.fails(3, &["is refused", text(&plan), "text_encoder", "mm plan --device cpu"]);
    assert_eq!(answer.json()["error"]["code"], "plan_refused");
    assert_eq!(names(folder.path()), ["plan.json"]);

    for (document, part) in
        [("{}", "missing field"), ("x", "holds no plan"), ("{\"schema\": 1, \"error\": {}}", "missing")]
    {
        fs::write(&plan, document).expect("writes");
        draw(SHAPES, folder.path(), &["--plan", text(&plan)]).fails(4, &[text(&plan), part]);
    }
    draw(SHAPES, folder.path(), &["--plan", "/no/plan.json"]).fails(4, &["/no/plan.json"]);
    draw(SHAPES, folder.path(), &["--plan", text(&plan), "--strategy", "auto"]).fails(2, &["--plan", "--strategy"]);
}

#[test]
fn a_timeline_is_summed_up_as_the_run_was_counted() {
    let folder = folder();
    let timeline = file(&folder, "t.json");
    let flags = ["--vram", "4MiB", "--timeline", text(&timeline), "--json"];
    let result = draw(SHAPES, folder.path(), &flags).ok().json();
    let summary = mm(["trace", text(&timeline), "--json"]).ok().json();
    assert_eq!(summary["schema"], 1);
    assert_eq!(summary["copied_bytes"], result["copied_bytes"]);
    assert_eq!(summary["peak"]["planned_device"], result["peak"]["planned_device"]);
    assert_eq!(summary["peak"]["device"], result["peak"]["device"]);
    assert_eq!(summary["peak"]["budget"], result["peak"]["budget"]);
    let counts: Vec<_> =
        summary["components"].as_array().expect("components").iter().map(|c| c["passes"].clone()).collect();
    assert_eq!(counts, [json!(2), json!(2), json!(1)]);
    assert!(summary["duration_ns"].as_u64() >= summary["pass_ns"].as_u64());
    assert!(summary["overlap_permille"].as_u64().is_some_and(|share| share <= 1000));
    let table = mm(["trace", text(&timeline)]).ok().stdout;
    for part in ["duration", "overlap", "peak", "transformer", "all "] {
        assert!(table.contains(part), "{part} is not in {table}");
    }
    let page = file(&folder, "p.html");
    assert_eq!(mm(["trace", text(&timeline), "--html", text(&page)]).ok().stdout, table);
    assert_eq!(page_data(&page)["summary"], summary);
}

/// What the script of a timeline's page reads.
fn page_data(page: &Path) -> Value {
    let page = fs::read_to_string(page).expect("a page");
    let (_, data) = page.split_once("<script type=\"application/json\" id=\"data\">").expect("data");
    serde_json::from_str(data.split_once("</script>").expect("an end").0).expect("JSON")
}

#[test]
fn a_timeline_is_a_page_where_its_file_is_called_so() {
    let folder = folder();
    let page = file(&folder, "t.html");
    let result = draw(SHAPES, folder.path(), &["--vram", "4MiB", "--timeline", text(&page), "--json"]).ok().json();
    let data = page_data(&page);
    assert_eq!(data["summary"]["copied_bytes"], result["copied_bytes"]);
    assert_eq!(data["summary"]["peak"]["planned_device"], result["peak"]["planned_device"]);
    let kinds: Vec<_> = data["rows"].as_array().expect("rows").iter().map(|row| row["kind"].clone()).collect();
    for kind in ["pass", "wait", "compute", "copy"] {
        assert!(kinds.contains(&json!(kind)), "{kind} is not in {kinds:?}");
    }
}

#[test]
fn other_types_compute_another_image() {
    let folder = folder();
    let flags = ["--dtype", "bf16", "--width", "32", "--height", "32", "--json"];
    let result = draw(SHAPES, folder.path(), &flags).ok().json();
    assert!(result["peak"]["device"].as_u64() < Some(15 << 20), "half of the bytes but for the VAE: {result}");
}
