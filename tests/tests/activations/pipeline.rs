//! This project's own forwards: the demo checkpoint with a text encoder of more heads, so that it takes enough to count.

use crate::{HEAP, Table};
use candle_core::{DType, Device, Tensor};
use mm_diffusion::{Folder, LoadOptions, Request, Tokenizer, Unmanaged, ZImage};
use mm_plan::DeviceKind;
use mm_probe::Workload;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Four times as many heads, and everything that goes with them.
const TIMES: usize = 4;
const HEAD: usize = 24;
/// The longest prompt, in tokens.
const TOKENS: usize = 512;

/// Components with their tensors' shapes.
type Shapes = BTreeMap<&'static str, BTreeMap<String, Vec<usize>>>;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else if from.extension().is_none_or(|extension| extension != "safetensors") {
            std::fs::copy(from, to).unwrap();
        }
    }
}

fn configure(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(file, config.to_string()).unwrap();
}

/// Writes the changed checkpoint with made-up weights.
fn checkpoint(root: &Path) -> Shapes {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("checkpoints/shapes");
    copy(&demo, root);
    configure(&root.join("text_encoder/config.json"), |config| {
        for key in ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size"] {
            config[key] = json!(config[key].as_u64().unwrap() as usize * TIMES);
        }
    });
    configure(&root.join("transformer/config.json"), |config| {
        config["cap_feat_dim"] = json!(config["cap_feat_dim"].as_u64().unwrap() as usize * TIMES);
        config["axes_lens"] = json!([2 * TOKENS, 64, 64]);
    });
    let index = root.join("transformer/diffusion_pytorch_model.safetensors.index.json");
    std::fs::remove_file(index).unwrap();

    let mut shapes = Shapes::new();
    for (name, file) in [
        ("text_encoder", "model.safetensors"),
        ("transformer", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ] {
        let component = shapes.entry(name).or_default();
        for entry in std::fs::read_dir(demo.join(name)).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.extension().is_none_or(|extension| extension != "safetensors") {
                continue;
            }
            for (tensor, value) in candle_core::safetensors::load(entry, &Device::Cpu).unwrap() {
                let scale = |size: usize| match (name, tensor.as_str()) {
                    ("text_encoder", _) if size != HEAD => size * TIMES,
                    ("transformer", "cap_embedder.0.weight") => size * TIMES,
                    _ => size,
                };
                let mut shape: Vec<usize> = value.dims().iter().map(|&size| scale(size)).collect();
                if tensor == "cap_embedder.1.weight" {
                    shape[1] *= TIMES;
                }
                component.insert(tensor, shape);
            }
        }
        let value = |shape: &Vec<usize>| Tensor::full(0.01f32, shape.as_slice(), &Device::Cpu).unwrap();
        let tensors: HashMap<_, _> = component.iter().map(|(name, shape)| (name.as_str(), value(shape))).collect();
        candle_core::safetensors::save(&tensors, root.join(name).join(file)).unwrap();
    }
    shapes
}

/// A prompt of at most as many tokens as there may be, and nearly that many.
fn prompt(folder: &Folder, most: usize) -> String {
    let tokenizer = Tokenizer::open(folder).unwrap();
    let mut prompt = "a blue".to_owned();
    while tokenizer.encode(&format!("{prompt} triangle")).unwrap().len() < most {
        prompt.push_str(" triangle");
    }
    prompt
}

pub(crate) fn measure(table: &mut Table, dtype: DType, guidance: f64, (width, height): (u32, u32)) {
    let root = tempfile::tempdir().unwrap();
    let shapes = checkpoint(root.path());
    let folder = Folder::open(root.path()).unwrap();
    // Captions are filled up to a multiple of 32 tokens; the other must differ by more for one of them to be masked.
    let (prompt, negative) = (prompt(&folder, TOKENS), prompt(&folder, TOKENS - 64));
    let pipeline = ZImage::load(&folder, &LoadOptions { dtype, ..LoadOptions::default() }, &Unmanaged).unwrap();
    let request = Request { prompt, negative, guidance, steps: 2, width, height, ..Request::default() };

    let mut peaks = BTreeMap::<_, usize>::new();
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let image = pipeline.generate(&request, |progress| {
        let peak = peaks.entry(progress.component).or_default();
        *peak = (*peak).max(HEAP.peak_usage() - before);
        HEAP.reset_peak_usage();
    });
    drop(image.unwrap());

    let plan_dtype = if dtype == DType::F32 { mm_plan::DType::F32 } else { mm_plan::DType::Bf16 };
    let mut workload = Workload {
        width,
        height,
        dtype: plan_dtype,
        guided: guidance > 0.0,
        device: DeviceKind::Host,
        ..Workload::default()
    };
    for name in ["vae", "text_encoder", "transformer"] {
        let tensors = shapes[name].iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        let (architecture, bytes) = mm_probe::estimate(tensors, None, None, &workload).unwrap();
        workload.pixels_per_latent = workload.pixels_per_latent.or(architecture.pixels_per_latent());
        let about = if guidance > 0.0 { "mm-diffusion's, guided" } else { "mm-diffusion's" };
        table.push(architecture.name(), about, &workload, bytes, peaks[name] as u64);
    }
}
