//! The model's weights in a file, and what it is given.

use super::model::Shape;
use mm_fixtures::{Error, Fill, Init, Tensor, write_file};
use safetensors::Dtype;
use std::{fs::File, path::Path};

/// Writes the weights, seeded; norms are ones.
pub fn write(path: &Path, shape: Shape, stored: Dtype) -> Result<(), Error> {
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let init = if shape.len() == 1 { Init::Ones } else { Init::Normal };
        Tensor { init, ..Tensor::new(name, shape, stored) }
    };
    let tensors: Vec<Tensor> = shape.tensors().into_iter().map(tensor).collect();
    write_file(path, &tensors, Fill::Random, 0)?;
    // On the disk, so that the system can drop the pages whenever it likes. Where it can't be done it is only slower.
    let _ = File::open(path).and_then(|file| file.sync_all());
    Ok(())
}

/// Writes a LoRA for every linear layer of the blocks.
pub fn write_lora(path: &Path, shape: Shape, rank: usize) -> Result<(), Error> {
    let layers = shape.tensors().into_iter().filter(|(name, shape)| name.starts_with("layers.") && shape.len() == 2);
    let factors = layers.flat_map(|(name, shape)| {
        let layer = name.trim_end_matches(".weight").to_owned();
        let factor = |part: &str, shape: Vec<usize>| Tensor {
            init: Init::Normal,
            ..Tensor::new(format!("{layer}.{part}.weight"), shape, Dtype::F32)
        };
        [factor("lora_A", vec![rank, shape[1]]), factor("lora_B", vec![shape[0], rank])]
    });
    write_file(path, &factors.collect::<Vec<_>>(), Fill::Random, 0).map(drop)
}

/// Values in -1..1.
pub fn input(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32).sin()).collect()
}
