//! One model of candle's, unmodified, under a manager: a picture through a VAE and back.
//!
//! `cargo run --release -p mm-diffusion --example 01-one-model [picture.png [out.png]]`

use candle_core::{Device, Module, Tensor};
use candle_transformers::models::z_image::vae::{AutoEncoderKL, VaeConfig};
use mm_candle::{LoadSpec, Manager};
use mm_plan::Policy;
use std::{env::args, path::Path};

/// Bytes of weights that may be in memory at once. The model has 3.2 MB of them in f32; with less than that it is refused.
const BUDGET: u64 = 4 << 20;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let picture = args().nth(1).map_or(root.join("docs/red-circle.png"), Into::into);
    let out = args().nth(2).unwrap_or_else(|| "round-trip.png".into());

    // The device is host memory, so the budget is of host memory too.
    let manager = Manager::cpu(mm_probe::probe().host_machine(Some(BUDGET)), Policy::default())?;

    // What it takes: a name, files, and the closure that would build the model anyway.
    let weights = root.join("checkpoints/shapes/vae/diffusion_pytorch_model.safetensors");
    let vae = manager.load(&LoadSpec::new("vae", [weights]), |vb| AutoEncoderKL::new(&config(), vb))?;

    let image = image::open(&picture)?.to_rgb8();
    let (width, height) = image.dimensions();
    let pixels = Tensor::from_vec(image.into_raw(), (1, height as usize, width as usize, 3), &Device::Cpu)?;
    let pixels = pixels.permute((0, 3, 1, 2))?.to_dtype(candle_core::DType::F32)?.affine(2.0 / 255.0, -1.0)?;

    // The model is reached only inside `run`: there its weights are on the device.
    let back = vae.run(|vae| vae.forward(&pixels))?;

    let bytes = back.affine(127.5, 127.5)?.round()?.clamp(0f32, 255f32)?.to_dtype(candle_core::DType::U8)?;
    let bytes = bytes.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<u8>()?;
    image::save_buffer(&out, &bytes, width, height, image::ExtendedColorType::Rgb8)?;
    println!(
        "{out}: {} went through a VAE; at most {} bytes of weights were there",
        picture.display(),
        manager.memory().peak
    );
    Ok(())
}

/// As `checkpoints/shapes/vae/config.json` has it.
fn config() -> VaeConfig {
    VaeConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 8,
        block_out_channels: vec![24, 48, 64],
        layers_per_block: 1,
        scaling_factor: 0.957_925_804_728_393_8,
        shift_factor: -0.030_786_661_431_193_352,
        norm_num_groups: 8,
    }
}
