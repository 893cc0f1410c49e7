//! A whole pipeline in less memory than its weights, and what the planner decided for it.
//!
//! `cargo run --release -p mm-diffusion --example 02-pipeline [prompt [out.png]]`

use mm_candle::Manager;
use mm_diffusion::{Folder, LoadOptions, Passes, Pipeline, Request};
use mm_plan::Policy;
use std::{env::args, path::Path};

/// Bytes of weights that may be in memory at once. All of them together are 25 MB in f32.
const BUDGET: u64 = 8 << 20;

fn main() -> anyhow::Result<()> {
    let prompt = args().nth(1).unwrap_or_else(|| "a large red circle at the left on a white background".into());
    let out = args().nth(2).unwrap_or_else(|| "pipeline.png".into());

    let machine = mm_probe::probe().host_machine(Some(BUDGET));
    let manager = Manager::cpu(machine, Policy::default())?;

    // Which pipeline it is, and all sizes, say the folder's own files.
    let folder = Folder::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes"))?;
    let passes = Passes { encode: 2, denoise: 8, decode: 1 };
    let pipeline = Pipeline::load(&folder, &LoadOptions { passes, ..LoadOptions::default() }, &manager)?;

    let plan = manager.apply()?;
    for component in &plan.components {
        let kept = component.resident_count();
        println!("{}: {}, {kept} blocks stay, {} slots", component.name, component.strategy, component.slots);
    }

    let request = Request { prompt, guidance: 3.0, seed: 1, width: 64, height: 64, ..Request::default() };
    let image = pipeline.generate(&request, |pass| println!("{} {}/{}", pass.component, pass.pass, pass.passes))?;
    image::save_buffer(&out, &image.rgb8()?, request.width, request.height, image::ExtendedColorType::Rgb8)?;
    println!("{out}: {} bytes of weights at the peak, {} planned", manager.memory().peak, plan.peak.device);
    Ok(())
}
