//! Small checkpoints of random weights, as folders that tests may change.
#![allow(dead_code)]

pub(crate) mod golden;
pub(crate) mod matrix;

use candle_core::{DType, Device, Tensor};
use mm_diffusion::{Error, Folder, LoadOptions, Pipeline, Request, Unmanaged};
use mm_fixtures::{Fill, Fixture, Model, Options, Quantization};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

pub(crate) const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

pub(crate) fn request() -> Request {
    Request {
        prompt: "a red cat under an Umbrella".into(),
        guidance: 3.5,
        steps: 2,
        width: 48,
        height: 32,
        ..Request::default()
    }
}

pub(crate) struct Checkpoint(TempDir);

impl Checkpoint {
    /// The weights are four times the fixture's, exactly, so that no part of a model vanishes beside what goes around it.
    pub(crate) fn of(model: Model, layers: usize, dim: usize) -> Self {
        let checkpoint = Self(tempfile::tempdir().unwrap());
        let options =
            Options { layers: Some(layers), dim: Some(dim), scale: 0.0001, fill: Fill::Random, ..Options::default() };
        let written = Fixture::new(model, &options).unwrap().write(checkpoint.0.path()).unwrap();
        for file in written.paths.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")) {
            let larger = |tensor: Tensor| if is_norm(&tensor) { tensor } else { (tensor * 4.0).unwrap() };
            let tensors = load(file).into_iter().map(|(name, tensor)| (name, larger(tensor))).collect();
            candle_core::safetensors::save(&tensors, file).unwrap();
        }
        checkpoint
    }

    /// FLUX.1 whose transformer and T5 are GGUF files. Their widths are whole blocks: 256 of the transformer, 64 of T5.
    pub(crate) fn of_gguf(quantization: Quantization) -> Self {
        let checkpoint = Self(tempfile::tempdir().unwrap());
        let options = Options {
            layers: Some(2),
            dim: Some(256),
            scale: 1.0 / 4096.0,
            fill: Fill::Random,
            gguf: Some(quantization),
            ..Options::default()
        };
        Fixture::new(Model::FluxDev, &options).unwrap().write(checkpoint.0.path()).unwrap();
        checkpoint
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.path().join(relative)
    }

    pub(crate) fn folder(&self) -> Folder {
        Folder::open(self.0.path()).unwrap()
    }

    pub(crate) fn set(&self, file: &str, key: &str, value: serde_json::Value) {
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        json[key] = value;
        fs::write(self.path(file), json.to_string()).unwrap();
    }

    /// Changes the tensors of a file.
    pub(crate) fn rewrite(&self, file: &str, change: impl FnOnce(HashMap<String, Tensor>) -> HashMap<String, Tensor>) {
        let file = self.path(file);
        candle_core::safetensors::save(&change(load(&file)), file).unwrap();
    }

    /// The message must name these.
    pub(crate) fn refused(&self, parts: &[&str]) {
        let error = match Pipeline::load(&self.folder(), &LoadOptions::default(), &Unmanaged) {
            Ok(_) => panic!("loaded; expected an error that names {parts:?}"),
            Err(error) => error.to_string(),
        };
        assert!(parts.iter().all(|part| error.contains(part)), "{error}\nlacks some of {parts:?}");
    }
}

/// What is said of a request that is changed so, before anything is computed.
pub(crate) fn refused_request(pipeline: &Pipeline, change: impl Fn(&mut Request)) -> String {
    let mut request = request();
    change(&mut request);
    match pipeline.generate(&request, |p| panic!("{} ran", p.component)) {
        Err(error @ Error::Request { .. }) => error.to_string(),
        other => panic!("{:?}", other.map(|_| "an image")),
    }
}

/// Their rows, one after the other.
pub(crate) fn joined(from: &HashMap<String, Tensor>, names: &[String]) -> Tensor {
    let parts: Vec<_> = names.iter().map(|name| from.get(name).unwrap_or_else(|| panic!("no {name}"))).collect();
    Tensor::cat(&parts, 0).unwrap()
}

/// Its halves the other way round.
pub(crate) fn swapped(tensor: &Tensor) -> Tensor {
    let halves = tensor.chunk(2, 0).unwrap();
    Tensor::cat(&[&halves[1], &halves[0]], 0).unwrap()
}

fn load(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn is_norm(tensor: &Tensor) -> bool {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.iter().all(|value| *value == 1.0)
}

/// A LoRA of rank two for every matrix and every convolution of the weights in this folder; it lies there.
pub(crate) fn lora_for(component: &Path) -> PathBuf {
    let files = fs::read_dir(component).unwrap().map(|entry| entry.unwrap().path());
    let weights =
        files.filter(|file| file.extension().is_some_and(|e| e == "safetensors")).flat_map(|file| load(&file));
    let mut factors = HashMap::new();
    for (name, weight) in weights {
        let Some(layer) = name.strip_suffix(".weight").filter(|_| weight.rank() == 2 || weight.rank() == 4) else {
            continue;
        };
        let (mut down, mut up) = (weight.dims().to_vec(), vec![1; weight.rank()]);
        (down[0], up[0], up[1]) = (2, weight.dims()[0], 2);
        let factor = |shape: &[usize], seed: usize| {
            let values = (0..shape.iter().product()).map(|i| ((i * 7919 + seed) % 2003) as f32 / 5000.0 - 0.2);
            Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
        };
        factors.insert(format!("{layer}.lora_A.weight"), factor(&down, layer.len()));
        factors.insert(format!("{layer}.lora_B.weight"), factor(&up, layer.len() + 7));
    }
    let file = component.join("lora.outside");
    candle_core::safetensors::save(&factors, &file).unwrap();
    file
}
