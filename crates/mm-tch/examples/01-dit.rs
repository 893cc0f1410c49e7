//! A small diffusion transformer on tch in less than a third of its weights: `LIBTORCH=… cargo run -p mm-tch --features libtorch --example 01-dit`

#[allow(unreachable_pub, missing_docs)]
mod transformer;

use mm_plan::{DeviceKind, Machine, Policy};
use mm_tch::{LoadSpec, Manager};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use transformer::{Config, Transformer};

/// Bytes of weights that may be there at once.
const BUDGET: u64 = 6 << 20;

const STEPS: i32 = 8;

fn main() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes/transformer");
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let files: Vec<_> =
        (1..=3).map(|i| folder.join(format!("diffusion_pytorch_model-0000{i}-of-00003.safetensors"))).collect();

    let budget = Some(BUDGET);
    let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
    let manager = Manager::cpu(machine, Policy::default())?;
    let spec = LoadSpec { passes: STEPS as u32, ..LoadSpec::new("transformer", files) };
    let transformer = manager.load(&spec, |path| Transformer::new(&config, path))?;

    // Noise, and a caption of noise: what is drawn means nothing, what it takes is what a picture takes.
    tch::manual_seed(7);
    let mut latents = Tensor::randn([1, 8, 16, 16], (Kind::Float, Device::Cpu));
    let caption = Tensor::randn([11, 96], (Kind::Float, Device::Cpu));
    for step in 0..STEPS {
        let t = f64::from(step) / f64::from(STEPS);
        let velocity = transformer.run(|model| model.forward(&latents, t, &caption))?;
        latents += velocity / f64::from(STEPS);
    }

    let (plan, memory) = (manager.apply()?, manager.memory());
    let weights: u64 =
        plan.components.iter().filter_map(|c| manager.get_component(&c.name)).map(|m| m.description().bytes()).sum();
    println!("{:?}: {weights} bytes of weights ran in {} of {}", plan.strategy, memory.peak, memory.budget);
    println!("latents: mean {:.4}, {:?}", f64::try_from(latents.mean(Kind::Double))?, latents.size());
    Ok(())
}
