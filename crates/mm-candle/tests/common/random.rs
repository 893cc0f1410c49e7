//! Random weights for whatever a model asks for: no name or shape is written down anywhere.

use super::values;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Makes up every tensor that is asked for, and keeps it.
struct Recorder {
    made: Arc<Mutex<BTreeMap<String, Tensor>>>,
    /// Ends of the names that are there when a model looks before it asks.
    present: Vec<String>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut made = self.made.lock().unwrap();
        let tensor = match made.get(name) {
            // Some ask twice.
            Some(tensor) if *tensor.shape() == shape => tensor.clone(),
            Some(_) => candle_core::bail!("{name}: asked for in two shapes"),
            None => make(name, &shape, init)?,
        };
        made.insert(name.to_owned(), tensor.clone());
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: no shape to make up")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.present.iter().any(|end| name.ends_with(end)) || self.made.lock().unwrap().contains_key(name)
    }
}

/// The same for the same name: of a size that neither vanishes nor explodes in a layer, vectors around what they start from.
fn make(name: &str, shape: &Shape, init: Init) -> Result<Tensor> {
    let seed = name.bytes().fold(7usize, |seed, byte| (seed * 31 + usize::from(byte)) % 1_000_003);
    let random = Tensor::from_vec(values(shape.elem_count(), seed), shape, &Device::Cpu)?;
    match (init, shape.dims()) {
        (Init::Const(center), [] | [_]) => random.affine(0.5, center),
        (_, [_, inner @ ..]) => random.affine(5.0 / (inner.iter().product::<usize>() as f64).sqrt(), 0.0),
        (_, []) => Ok(random),
    }
}

/// Writes random weights, stored as `dtype` in two files, for whatever `build` asks for. `present`: what it finds there where it looks first.
pub fn checkpoint_of<M>(
    folder: &Path,
    dtype: DType,
    present: &[&str],
    build: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> Vec<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    let made = Arc::new(Mutex::new(BTreeMap::new()));
    let present = present.iter().map(|&end| end.to_owned()).collect();
    let backend = Recorder { made: made.clone(), present };
    build(VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu)).unwrap();
    let made = std::mem::take(&mut *made.lock().unwrap());
    // Every other one, so that each layer is in both.
    let (even, odd): (Vec<_>, Vec<_>) = made.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let files = [("00001-of-00002", even), ("00002-of-00002", odd)].into_iter().map(|(part, tensors)| {
        let file = folder.join(format!("model-{part}.safetensors"));
        let tensors = tensors.into_iter().map(|(_, (name, tensor))| (name, tensor.to_dtype(dtype).unwrap()));
        candle_core::safetensors::save(&tensors.collect(), &file).unwrap();
        file
    });
    files.collect()
}

/// A LoRA of rank two for every matrix and every convolution of these files.
pub fn lora_for(files: &[PathBuf], folder: &Path) -> PathBuf {
    let mut factors = std::collections::HashMap::new();
    for (name, weight) in files.iter().flat_map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap()) {
        let Some(layer) = name.strip_suffix(".weight").filter(|_| weight.rank() == 2 || weight.rank() == 4) else {
            continue;
        };
        let (mut down, mut up) = (weight.dims().to_vec(), vec![1; weight.rank()]);
        (down[0], up[0], up[1]) = (2, weight.dims()[0], 2);
        let factor =
            |shape: &[usize], seed| Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu);
        factors.insert(format!("{layer}.lora_A.weight"), factor(&down, layer.len()).unwrap());
        factors.insert(format!("{layer}.lora_B.weight"), factor(&up, layer.len() + 7).unwrap());
    }
    let file = folder.join("lora.safetensors");
    candle_core::safetensors::save(&factors, &file).unwrap();
    file
}
