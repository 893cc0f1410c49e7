//! What the tests share.
#![allow(dead_code)]

use candle_core::{DType, Device, Tensor};
use mm_diffusion::{Error, Folder, LoadOptions, Request, Unmanaged, ZImage};
use std::{collections::HashMap, path::PathBuf};

pub(crate) fn shapes() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes")
}

pub(crate) fn load(root: impl Into<PathBuf>, dtype: DType) -> Result<ZImage, Error> {
    ZImage::load(&Folder::open(root)?, &LoadOptions { dtype, ..Default::default() }, &Unmanaged)
}

pub(crate) struct Golden {
    pub(crate) tensors: HashMap<String, Tensor>,
    pub(crate) request: Request,
}

/// What diffusers computed, and what it was asked for.
pub(crate) fn golden(case: usize) -> Golden {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{case}.safetensors"));
    let bytes = std::fs::read(&file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let meta = header.metadata().clone().unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let request = Request {
        prompt: meta["prompt"].clone(),
        guidance: meta["guidance_scale"].parse().unwrap(),
        steps: meta["steps"].parse().unwrap(),
        width: meta["width"].parse().unwrap(),
        height: meta["height"].parse().unwrap(),
        initial_latents: Some(tensors["initial_latents"].clone()),
        trace: true,
        ..Request::default()
    };
    Golden { tensors, request }
}

/// norm(a - b) / norm(b), in f64.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (values(a), values(b));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}
