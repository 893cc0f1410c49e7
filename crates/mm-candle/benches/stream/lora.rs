//! A LoRA for the model, in a file.

use super::model::Shape;
use mm_fixtures::{Error, Fill, Init, Tensor, write_file};
use safetensors::Dtype;
use std::path::Path;

/// Writes a LoRA for every linear layer of the blocks.
pub fn write(path: &Path, shape: Shape, rank: usize) -> Result<(), Error> {
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
