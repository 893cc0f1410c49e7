//! Two pipelines of one manager that share a text encoder and a VAE: what is the same is loaded once, wherever it lies.
//!
//! `cargo run --release -p mm-diffusion --example 03-shared-encoder [folder for the pictures]`

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Lora, LoraBackend, Manager};
use mm_diffusion::{Folder, LoadOptions, Request, ZImage};
use mm_plan::Policy;
use std::{collections::HashMap, env::args, fs, path::Path};

const BUDGET: u64 = 12 << 20;

fn main() -> anyhow::Result<()> {
    let out = args().nth(1).unwrap_or_else(|| ".".into());
    let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints");
    let shapes = checkpoints.join("shapes");
    let scratch = tempfile::tempdir()?;
    let outlines = scratch.path().join("outlines");
    write_fine_tune(&shapes, &checkpoints.join("outline/outline.safetensors"), &outlines)?;

    let manager = Manager::cpu(mm_probe::probe().host_machine(Some(BUDGET)), Policy::default())?;
    // Names tell the components apart: `shapes.transformer`, `outlines.transformer`.
    let load = |name: &str, folder: &Path| {
        let options = LoadOptions { name: Some(name.into()), ..LoadOptions::default() };
        ZImage::load(&Folder::open(folder)?, &options, &manager)
    };
    let (shapes, outlines) = (load("shapes", &shapes)?, load("outlines", &outlines)?);

    // Sameness is of bytes, not of paths: the second folder has files of its own.
    for name in ["text_encoder", "transformer", "vae"] {
        let of = |pipeline: &str| manager.get_component(&format!("{pipeline}.{name}"));
        let shared = of("shapes").zip(of("outlines")).is_some_and(|(a, b)| std::sync::Arc::ptr_eq(&a, &b));
        println!("{name}: {}", if shared { "one of both pipelines" } else { "one for each pipeline" });
    }

    for (pipeline, name) in [(&shapes, "shapes.png"), (&outlines, "outlines.png")] {
        let prompt = "a large red circle at the left on a white background".into();
        let request = Request { prompt, guidance: 3.0, width: 64, height: 64, ..Request::default() };
        let (image, file) = (pipeline.generate(&request, |_| {})?.rgb8()?, Path::new(&out).join(name));
        image::save_buffer(&file, &image, request.width, request.height, image::ExtendedColorType::Rgb8)?;
        println!("{}", file.display());
    }
    println!("at most {} bytes of weights", manager.memory().peak);
    Ok(())
}

/// A second checkpoint: the first with a LoRA merged into its transformer for good, and copies of all else.
fn write_fine_tune(from: &Path, lora: &Path, to: &Path) -> anyhow::Result<()> {
    copy(from, to)?;
    let transformer = to.join("transformer");
    let mut base = HashMap::<String, Tensor>::new();
    for file in fs::read_dir(&transformer)? {
        let file = file?.path();
        if file.extension().is_some_and(|e| e == "safetensors") {
            base.extend(candle_core::safetensors::load(&file, &Device::Cpu)?);
            fs::remove_file(file)?;
        }
    }
    fs::remove_file(transformer.join("diffusion_pytorch_model.safetensors.index.json"))?;
    let names: Vec<String> = base.keys().cloned().collect();
    // Any backend of candle's, with a LoRA over it.
    let backend = LoraBackend::new(Box::new(base), [(Lora::open(lora)?, 1.0)]);
    let vb = VarBuilder::from_backend(Box::new(backend), DType::BF16, Device::Cpu);
    let merged = names.into_iter().map(|name| Ok((name.clone(), vb.get_unchecked(&name)?)));
    let merged = merged.collect::<candle_core::Result<HashMap<_, _>>>()?;
    Ok(candle_core::safetensors::save(&merged, transformer.join("diffusion_pytorch_model.safetensors"))?)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
