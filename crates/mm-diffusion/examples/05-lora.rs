//! A LoRA put on, turned down and taken off again, with the weights streaming all the while.
//!
//! `cargo run --release -p mm-diffusion --example 05-lora [folder for the pictures]`

use mm_candle::{Lora, Manager};
use mm_diffusion::{Folder, LoadOptions, Pipeline, Request};
use mm_plan::Policy;
use std::{env::args, path::Path};

/// Bytes of weights that may be in memory at once, the LoRA's with them.
const BUDGET: u64 = 8 << 20;

fn main() -> anyhow::Result<()> {
    let out = args().nth(1).unwrap_or_else(|| ".".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let manager = Manager::cpu(mm_probe::probe().host_machine(Some(BUDGET)), Policy::default())?;
    let folder = Folder::open(root.join("checkpoints/shapes"))?;
    let pipeline = Pipeline::load(&folder, &LoadOptions::default(), &manager)?;

    let draw = |name: &str| -> anyhow::Result<Vec<u8>> {
        let prompt = "a large red circle at the left on a white background".into();
        let request = Request { prompt, guidance: 3.0, width: 64, height: 64, ..Request::default() };
        let pixels = pipeline.generate(&request, |_| {})?.rgb8()?;
        let file = Path::new(&out).join(name);
        image::save_buffer(&file, &pixels, request.width, request.height, image::ExtendedColorType::Rgb8)?;
        Ok(pixels)
    };
    let before = draw("shape.png")?;

    // In diffusers', PEFT's or kohya's names: which they are is seen from the file. This one makes outlines of shapes.
    let lora = Lora::open(root.join("checkpoints/outline/outline.safetensors"))?;
    let adapted = pipeline.apply_lora(&lora, 1.0)?;
    for (component, weights) in &adapted.components {
        println!("{component}: {weights} weights changed");
    }
    anyhow::ensure!(draw("outline.png")? != before, "it changed nothing");

    // Another scale; the base is not loaded anew.
    pipeline.apply_lora(&lora, 0.5)?;
    draw("half.png")?;

    // Off: the weights are copied from where they came from, so they are what they were, to the bit.
    pipeline.remove_lora(lora.file())?;
    anyhow::ensure!(draw("shape.png")? == before, "not the original bits");
    println!("{out}: shape.png, outline.png, half.png, with at most {} bytes of weights", manager.memory().peak);
    Ok(())
}
