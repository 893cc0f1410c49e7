//! `mm hash`: what the index knows, components, tensors.

mod common;

use common::{Answer, SHAPES, copy, mm_indexing};
use mm_cache::{ContentId, Index, Weights, joint_id};
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;

/// Files that were just written are not remembered; the demo's were written long ago, and so is what this dates back.
fn date_back(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => date_back(&path),
            false => {
                let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
                File::options().write(true).open(&path).expect("opens").set_modified(hour_ago).expect("dates");
            }
        }
    }
}

fn hash(index: &Path, args: &[&str]) -> Answer {
    mm_indexing(index, [&["hash"], args].concat()).ok()
}

fn components(document: &Value) -> Vec<(&str, &str)> {
    let parts = document["components"].as_array().expect("a list").iter();
    parts.map(|part| (part["name"].as_str().expect("a name"), part["id"].as_str().expect("an id"))).collect()
}

#[test]
fn what_is_known_is_not_hashed_again() {
    let index = tempfile::tempdir().expect("a folder");
    let first = hash(index.path(), &[SHAPES, "--json"]).json();
    let again = hash(index.path(), &[SHAPES, "--json"]).json();
    assert_eq!((&first["files"], &first["components"]), (&again["files"], &again["components"]));
    let count = first["files"].as_array().expect("files").len();
    assert_eq!((&first["index"]["hits"], &first["index"]["misses"]), (&0.into(), &count.into()));
    assert_eq!((&again["index"]["hits"], &again["index"]["misses"]), (&count.into(), &0.into()));
    assert_eq!(again["index"]["hashed_bytes"], 0);
    assert!(first["index"]["hashed_bytes"].as_u64() > Some(10_000_000), "{first}");
    assert!(Path::new(again["index"]["path"].as_str().expect("a path")).starts_with(index.path()));
    assert_eq!(hash(index.path(), &[SHAPES]).stdout, hash(index.path(), &[SHAPES, "--no-index"]).stdout);
}

#[test]
fn without_the_index_nothing_is_written() {
    let index = tempfile::tempdir().expect("a folder");
    let document = hash(index.path(), &[SHAPES, "--json", "--no-index"]).json();
    assert_eq!(document["index"]["path"], Value::Null);
    assert_eq!(fs::read_dir(index.path()).expect("a folder").count(), 0);
}

#[test]
fn an_index_that_cannot_be_is_a_note() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a file, no folder");
    fs::write(&file, "").expect("writes");
    let answer = hash(&file, &[SHAPES, "--json"]);
    let document = answer.json();
    let note = document["notes"][0].as_str().expect("a note");
    assert!(note.contains("a file, no folder") && answer.stderr.contains(note), "{note}\n{}", answer.stderr);
    assert_eq!(document["files"], hash(folder.path(), &[SHAPES, "--json"]).json()["files"]);
}

#[test]
fn a_component_has_the_id_of_its_files_wherever_they_lie() {
    let index = tempfile::tempdir().expect("a folder");
    let document = hash(index.path(), &[SHAPES, "--json"]).json();
    let here = components(&document);
    assert_eq!(here.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["text_encoder", "transformer", "vae"]);
    let files = ["config.json", "diffusion_pytorch_model.safetensors"];
    let vae = files.map(|file| mm_cache::content_id(Path::new(SHAPES).join("vae").join(file)).expect("hashes"));
    assert_eq!(here[2].1, joint_id(vae).to_string());
    assert!(hash(index.path(), &[SHAPES]).stdout.ends_with(&format!("{}  {SHAPES}/vae/\n", here[2].1)));

    let copied = copy();
    fs::write(copied.path().join("transformer/README.md"), "no part of it").expect("writes");
    let path = copied.path().to_str().expect("text");
    let other = hash(index.path(), &[path, "--json"]).json();
    assert_eq!(components(&other), here);
    let config = copied.path().join("vae/config.json");
    fs::write(&config, fs::read_to_string(&config).expect("reads") + " ").expect("writes");
    let changed = hash(index.path(), &[path, "--json"]).json();
    let changed = components(&changed);
    assert_eq!(changed[..2], here[..2]);
    assert_ne!(changed[2], here[2], "another configuration is another component");
}

#[test]
fn a_folder_that_is_no_checkpoint_any_longer_has_files_and_a_note() {
    let (index, copied) = (tempfile::tempdir().expect("a folder"), copy());
    fs::write(copied.path().join("model_index.json"), "{").expect("writes");
    let document = hash(index.path(), &[copied.path().to_str().expect("text"), "--json"]).json();
    assert!(document["files"].as_array().expect("files").len() > 10);
    assert_eq!(components(&document), []);
    assert!(document["notes"][0].as_str().expect("a note").contains("model_index.json"), "{document}");
}

#[test]
fn a_changed_file_has_another_id() {
    let (index, copied) = (tempfile::tempdir().expect("a folder"), copy());
    date_back(copied.path());
    let file = copied.path().join("vae/diffusion_pytorch_model.safetensors");
    let path = file.to_str().expect("text");
    let known = hash(index.path(), &[path]).stdout;
    let modified = file.metadata().expect("there").modified().expect("a time");
    let mut bytes = fs::read(&file).expect("reads");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&file, &bytes).expect("writes");
    File::options().write(true).open(&file).expect("opens").set_modified(modified).expect("dates");
    let now = hash(index.path(), &[path]).stdout;
    assert_ne!(known, now);
    assert_eq!(now, format!("{}  {path}\n", ContentId::of(&bytes)));
}

#[test]
fn tensors_have_ids_too() {
    let index = tempfile::tempdir().expect("a folder");
    let file = Path::new(SHAPES).join("vae/diffusion_pytorch_model.safetensors");
    let path = file.to_str().expect("text");
    let weights = Weights::open(&[&file]).expect("opens");
    let ids = weights.content_ids(&Index::none()).expect("hashes");
    for _ in 0..2 {
        let document = hash(index.path(), &[path, "--tensors", "--json"]).json();
        let tensors = document["files"][0]["tensors"].as_array().expect("a list");
        assert_eq!(tensors.len(), ids.len());
        for ((tensor, id), found) in weights.tensors().zip(&ids).zip(tensors) {
            assert_eq!((&found["name"], &found["id"]), (&tensor.name().into(), &id.to_string().into()));
            assert_eq!(*id, ContentId::of(tensor.bytes().expect("maps")));
        }
    }
    let lines = hash(index.path(), &[path, "--tensors"]).stdout;
    let (first, id) = (weights.tensors().next().expect("one"), ids[0]);
    assert!(lines.lines().any(|line| line == format!("{id}  {path}#{}", first.name())), "{lines}");
}
