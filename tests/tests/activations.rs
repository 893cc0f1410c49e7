//! Estimated activations against measured peaks: every allocation is counted while candle's models and this project's
//! pipeline run.
//!
//! One test: the counter is the process's.

#[path = "activations/measure.rs"]
mod measure;
#[path = "activations/models.rs"]
mod models;
#[path = "activations/pipeline.rs"]
mod pipeline;

use candle_core::DType;
use measure::Measured;
use mm_plan::DeviceKind;
use mm_probe::Workload;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Below this, what an allocator and threads hold besides tensors would count.
const LEAST: u64 = 16 << 20;

/// Estimates and what was measured.
#[derive(Default)]
struct Table(Vec<(String, u64, u64)>);

impl Table {
    fn add(&mut self, expected: &str, about: &str, workload: Workload, measured: candle_core::Result<Measured>) {
        let measured = measured.unwrap_or_else(|error| panic!("{expected} {about}: {error}"));
        let tensors = measured.tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        let (architecture, bytes) = mm_probe::estimate(tensors, measured.config.as_ref(), None, &workload)
            .unwrap_or_else(|| panic!("{expected} {about}: not recognized"));
        assert_eq!(architecture.name(), expected, "{about}");
        self.push(expected, about, &workload, bytes, measured.peak);
    }

    fn push(&mut self, name: &str, about: &str, workload: &Workload, estimate: u64, measured: u64) {
        let Workload { width, height, batch, dtype, .. } = workload;
        let name = format!("{name} {about} {width}x{height} batch {batch} {dtype}");
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (ratio, [e, m]) = (ratio(estimate, measured), [estimate, measured].map(mib));
        println!("{ratio:5.2} = {e:8.1} MiB estimated / {m:8.1} MiB measured: {name}");
        self.0.push((name, estimate, measured));
    }
}

fn ratio(estimate: u64, measured: u64) -> f64 {
    estimate as f64 / measured as f64
}

fn square(side: u32, batch: u32, dtype: mm_plan::DType) -> Workload {
    Workload { width: side, height: side, batch, dtype, device: DeviceKind::Host, ..Workload::default() }
}

#[test]
fn estimates_are_close_to_what_was_measured() {
    use mm_plan::DType::{Bf16, F16, F32};
    let mut table = Table::default();

    table.add("flux", "", square(256, 1, F32), models::flux(256, 1, DType::F32));
    table.add("flux", "", square(512, 1, F32), models::flux(512, 1, DType::F32));
    table.add("flux", "", square(256, 2, F32), models::flux(256, 2, DType::F32));
    table.add("flux", "", square(512, 1, Bf16), models::flux(512, 1, DType::BF16));
    table.add("flux", "", square(512, 1, F16), models::flux(512, 1, DType::F16));

    table.add("sd3", "", square(256, 2, F16), models::sd3(256, 2, &[]));
    table.add("sd3", "", square(512, 1, F16), models::sd3(512, 1, &[]));
    let dual = ["ln_k.weight", "x_block.attn2.qkv.weight"];
    table.add("sd3", "dual", square(512, 1, F16), models::sd3(512, 1, &dual));

    let attention = [Some(2), Some(4), None];
    table.add("unet", "", square(256, 2, F32), models::unet(256, 2, attention, DType::F32));
    table.add("unet", "", square(384, 1, F32), models::unet(384, 1, attention, DType::F32));
    table.add("unet", "", square(256, 2, F16), models::unet(256, 2, attention, DType::F16));
    let small = [None, Some(2), Some(2)];
    table.add("unet", "attention inside", square(512, 1, F32), models::unet(512, 1, small, DType::F32));
    table.add("unet", "attention inside", square(256, 4, F32), models::unet(256, 4, small, DType::F32));

    table.add("t5", "", square(64, 1, F32), models::t5(1, true, DType::F32));
    table.add("t5", "", square(64, 2, Bf16), models::t5(2, true, DType::BF16));
    table.add("t5", "not gated", square(64, 2, F32), models::t5(2, false, DType::F32));
    table.add("clip", "", square(64, 12, F32), models::clip());
    table.add("qwen3", "candle's", square(64, 1, F32), models::candle_qwen3(1));
    table.add("qwen3", "candle's", square(64, 2, F32), models::candle_qwen3(2));

    table.add("z_image", "candle's", square(256, 1, F32), models::candle_z_image(256, 1, DType::F32));
    table.add("z_image", "candle's", square(512, 1, F32), models::candle_z_image(512, 1, DType::F32));

    table.add("autoencoder_kl", "z_image", square(256, 1, F32), models::z_image_vae(256, 1));
    table.add("autoencoder_kl", "z_image", square(192, 2, F32), models::z_image_vae(192, 2));
    table.add("autoencoder_kl", "flux", square(256, 1, F32), models::flux_vae(256));
    table.add("autoencoder_kl", "stable_diffusion", square(256, 1, F32), models::stable_diffusion_vae(256));

    pipeline::measure(&mut table, DType::F32, 0.0, (256, 256));
    pipeline::measure(&mut table, DType::F32, 3.0, (128, 256));
    pipeline::measure(&mut table, DType::BF16, 0.0, (256, 256));

    for (name, estimate, measured) in &table.0 {
        assert!(*measured >= LEAST, "{name}: {measured} bytes are too few to tell");
        let ratio = ratio(*estimate, *measured);
        assert!((0.9..=1.25).contains(&ratio), "{name}: {ratio:.2}");
    }
}
