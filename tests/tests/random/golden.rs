//! Every tensor on the way against diffusers', for the same checkpoint.

use super::request;
use crate::common::{options, relative_error, root};
use candle_core::{DType, Device, Tensor};
use mm_diffusion::{Folder, Pipeline, Request, Unmanaged};
use std::collections::HashMap;

/// `name` is a file of mm-diffusion's golden tensors; `most` bounds the relative error.
pub(crate) fn compare(folder: &Folder, name: &str, dtype: DType, most: f32) {
    let golden = tensors(name);
    let latents = golden["initial_latents"].clone();
    let request = Request { initial_latents: Some(latents), trace: true, ..request() };
    let pipeline = Pipeline::load(folder, &options(dtype), &Unmanaged).unwrap();
    let trace = pipeline.generate(&request, |_| {}).unwrap().trace.unwrap();
    let mut names: Vec<_> = golden.keys().collect();
    names.sort();
    for name in names {
        let theirs = &golden[name];
        let ours = trace.tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
        if name.starts_with("input_ids") {
            assert_eq!(ours.to_vec1::<i64>().unwrap(), theirs.to_vec1::<i64>().unwrap(), "{name}");
            continue;
        }
        // Of sequences the file has the first tokens.
        let ours =
            if name == "prompt_embeds" { ours.narrow(1, 0, theirs.dim(1).unwrap()).unwrap() } else { ours.clone() };
        assert_eq!(ours.dims(), theirs.dims(), "{name}");
        let error = relative_error(&ours, theirs);
        println!("{name}: {error:.1e}");
        assert!(error < most, "{name}: {error}");
    }
}

/// Of a file of golden tensors.
pub(crate) fn tensors(name: &str) -> HashMap<String, Tensor> {
    let file = root().join(format!("crates/mm-diffusion/tests/golden/{name}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}
