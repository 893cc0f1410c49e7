//! Z-Image's transformer under the names of other files than Diffusers': the same bits, and streamed too.

mod common;
mod random;

use candle_core::{DType, Tensor};
use common::{folder, manager, options, request, root};
use mm_diffusion::{Folder, Pipeline, Unmanaged, describe};
use mm_plan::{Component, Strategy};
use random::{joined, matrix::bits};
use std::{collections::HashMap, fs, path::Path};
use tempfile::TempDir;

/// The demo, with the transformer's weights under these names, in one file.
fn renamed(rename: impl FnOnce(HashMap<String, Tensor>) -> HashMap<String, Tensor>) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&root().join("checkpoints/shapes"), copy.path());
    let transformer = copy.path().join("transformer");
    let mut tensors = HashMap::new();
    for entry in fs::read_dir(&transformer).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|e| e == "safetensors") {
            tensors.extend(candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap());
        }
        if file.file_name().is_some_and(|name| name != "config.json") {
            fs::remove_file(file).unwrap();
        }
    }
    candle_core::safetensors::save(&rename(tensors), transformer.join("diffusion_pytorch_model.safetensors")).unwrap();
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// As the model's single files have them: queries, keys and values in one, no sizes of patches, and a norm that nobody loads.
fn original(prefix: &str, mut from: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut to = HashMap::new();
    let first: Vec<_> = from.keys().filter_map(|name| Some(name.strip_suffix("to_q.weight")?.to_owned())).collect();
    for attention in first {
        let parts = ["to_q", "to_k", "to_v"].map(|part| format!("{attention}{part}.weight"));
        to.insert(format!("{attention}qkv.weight"), joined(&from, &parts));
        parts.iter().for_each(|part| drop(from.remove(part)));
    }
    let pairs = [
        ("all_x_embedder.2-1", "x_embedder"),
        ("all_final_layer.2-1", "final_layer"),
        ("attention.to_out.0", "attention.out"),
        ("attention.norm_q", "attention.q_norm"),
        ("attention.norm_k", "attention.k_norm"),
    ];
    let norm = from["x_pad_token"].squeeze(0).unwrap();
    to.extend(from.into_iter().map(|(name, tensor)| (pairs.iter().fold(name, |n, (a, b)| n.replace(a, b)), tensor)));
    to.insert("norm_final.weight".to_owned(), norm);
    prefixed(prefix, to)
}

fn prefixed(prefix: &str, tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

fn draw(folder: &Folder) -> Vec<u32> {
    let pipeline = Pipeline::load(folder, &options(DType::F32), &Unmanaged).unwrap();
    bits(&pipeline.generate(&request(2), |_| {}).unwrap().image)
}

#[test]
fn other_names_make_the_same_image() {
    const PREFIX: &str = "model.diffusion_model.";
    let expected = draw(&folder());
    let bytes =
        |folder: &Folder| -> u64 { describe(folder, &options(DType::F32)).unwrap().iter().map(Component::bytes).sum() };
    let weights = bytes(&folder());
    for (prefix, checkpoint) in [
        ("", renamed(|tensors| original("", tensors))),
        (PREFIX, renamed(|tensors| original(PREFIX, tensors))),
        (PREFIX, renamed(|tensors| prefixed(PREFIX, tensors))),
    ] {
        let folder = Folder::open(checkpoint.path()).unwrap();
        assert!(draw(&folder) == expected, "{prefix:?}: other bits");
        assert_eq!(bytes(&folder), weights, "{prefix:?}: what nobody loads is not counted");
        let manager = manager(weights * 3 / 10, Strategy::GroupOffload);
        let pipeline = Pipeline::load(&folder, &options(DType::F32), &manager).unwrap();
        assert!(bits(&pipeline.generate(&request(2), |_| {}).unwrap().image) == expected, "{prefix:?}: streamed");
        let plan = manager.plan().unwrap();
        assert_eq!(manager.memory().peak, plan.peak.device);
        let transformer = plan.component("transformer").unwrap();
        assert!(transformer.streamed_count() > 0);
        let mut stacks: Vec<_> = transformer.stacks.iter().map(|stack| stack.name.clone()).collect();
        stacks.sort();
        assert_eq!(stacks, ["context_refiner", "layers", "noise_refiner"].map(|name| format!("{prefix}{name}")));
    }
}
