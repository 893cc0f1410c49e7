//! The demo pipeline under a manager.
#![allow(dead_code, unreachable_pub, missing_docs)]

use candle_core::{DType, Device, Tensor};
use mm_candle::Manager;
use mm_diffusion::{Folder, LoadOptions, Request, ZImage};
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

pub const COMPONENTS: [&str; 3] = ["text_encoder", "transformer", "vae"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub fn folder() -> Folder {
    Folder::open(root().join("checkpoints/shapes")).unwrap()
}

pub fn options(dtype: DType) -> LoadOptions {
    LoadOptions { dtype, ..LoadOptions::default() }
}

/// The CPU as a device of `budget` bytes, as `mm run --vram` has it.
pub fn manager(budget: u64, strategy: Strategy) -> Manager {
    Manager::cpu(machine(budget), Policy { strategy, ..Policy::default() }).unwrap()
}

pub fn machine(budget: u64) -> Machine {
    Machine {
        device: DeviceKind::Host,
        vram_free: Some(budget),
        vram_total: Some(budget),
        ram_available: 64 << 30,
        ram_total: 64 << 30,
        os: "linux".into(),
        ..Machine::default()
    }
}

pub fn request(steps: u32) -> Request {
    Request {
        prompt: "a small blue triangle at the right on a black background".into(),
        guidance: 3.0,
        steps,
        seed: 7,
        width: 64,
        height: 64,
        ..Request::default()
    }
}

/// Bytes of everything the pipeline's models ask for, as they lie on the device.
pub fn weight_bytes(dtype: DType) -> u64 {
    let manager = manager(1 << 40, Strategy::Auto);
    let _pipeline = ZImage::load(&folder(), &options(dtype), &manager).unwrap();
    COMPONENTS.iter().map(|name| manager.get_component(name).unwrap().description().bytes()).sum()
}

pub fn golden(case: usize) -> (HashMap<String, Tensor>, Request) {
    let (tensors, request, _) = golden_of(&case.to_string());
    (tensors, request)
}

/// What diffusers made, what it was asked for, and all that the file says of it.
pub fn golden_of(case: &str) -> (HashMap<String, Tensor>, Request, HashMap<String, String>) {
    let file = root().join(format!("crates/mm-diffusion/tests/golden/{case}.safetensors"));
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().clone().unwrap();
    let request = Request {
        prompt: about["prompt"].clone(),
        guidance: about["guidance_scale"].parse().unwrap(),
        steps: about["steps"].parse().unwrap(),
        width: about["width"].parse().unwrap(),
        height: about["height"].parse().unwrap(),
        initial_latents: Some(tensors["initial_latents"].clone()),
        trace: true,
        ..Request::default()
    };
    (tensors, request, about)
}

/// ‖a − b‖ / ‖b‖.
pub fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b)
}
