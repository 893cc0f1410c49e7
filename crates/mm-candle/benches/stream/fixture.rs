//! Writes a model's weights to a safetensors file: seeded, a piece at a time, however large.

use super::model::Shape;
use half::bf16;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

/// Values in -1..1 that depend on the seed alone (splitmix64, two values a step).
pub fn values(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0xA076_1D64_78BD_642F);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        [z as u32, (z >> 32) as u32].map(|bits| bits as i32 as f32 / 2_147_483_648.0)
    })
    .flatten()
}

/// Writes the file whole or not at all. Values are as large as keeps activations at their size; norms are near one.
pub fn write(path: &Path, shape: Shape, as_bf16: bool) -> io::Result<()> {
    let tensors = shape.tensors();
    let (name, size) = if as_bf16 { ("BF16", 2) } else { ("F32", 4) };
    let mut offset = 0u64;
    let header: serde_json::Map<_, _> = tensors
        .iter()
        .map(|(tensor, shape)| {
            let start = offset;
            offset += shape.iter().product::<usize>() as u64 * size;
            (tensor.clone(), serde_json::json!({"dtype": name, "shape": shape, "data_offsets": [start, offset]}))
        })
        .collect();
    let header = serde_json::to_vec(&header)?;
    let unfinished = path.with_extension("unfinished");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (seed, (_, shape)) in tensors.iter().enumerate() {
        let (base, scale) = match shape[..] {
            [_, fan_in] => (0.0, (3.0 / fan_in as f32).sqrt()),
            _ => (1.0, 0.1),
        };
        for value in values(seed as u64).take(shape.iter().product()) {
            let value = base + scale * value;
            match as_bf16 {
                true => file.write_all(&bf16::from_f32(value).to_le_bytes())?,
                false => file.write_all(&value.to_le_bytes())?,
            }
        }
    }
    // On the disk, so that the system can drop the pages whenever it likes.
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(unfinished, path)
}
