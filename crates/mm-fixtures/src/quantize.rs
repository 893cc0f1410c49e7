//! Values into blocks, as ggml's reference code quantizes them.

use crate::Quantization;
use half::f16;

impl Quantization {
    /// Its number in GGUF files.
    pub(crate) fn number(self) -> u32 {
        match self {
            Quantization::Q4_0 => 2,
            Quantization::Q8_0 => 8,
            Quantization::Q4K => 12,
        }
    }

    /// Values in a block.
    pub(crate) fn values(self) -> usize {
        if self == Quantization::Q4K { 256 } else { 32 }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Quantization::Q4_0 => 2 + 16,
            Quantization::Q8_0 => 2 + 32,
            Quantization::Q4K => 2 * 2 + 12 + 128,
        }
    }

    /// Appends the blocks of these values, of which there is a whole number.
    pub(crate) fn blocks(self, values: &[f32], into: &mut Vec<u8>) {
        for block in values.chunks_exact(self.values()) {
            match self {
                Quantization::Q4_0 => q4_0(block, into),
                Quantization::Q8_0 => q8_0(block, into),
                Quantization::Q4K => q4_k(block, into),
            }
        }
    }
}

fn half(value: f32, into: &mut Vec<u8>) {
    into.extend(f16::from_f32(value).to_le_bytes());
}

/// One over it, or zero.
fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

fn q8_0(block: &[f32], into: &mut Vec<u8>) {
    let scale = block.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    half(scale, into);
    into.extend(block.iter().map(|x| (x * inverse(scale)).round() as i8 as u8));
}

fn q4_0(block: &[f32], into: &mut Vec<u8>) {
    // The value farthest from zero becomes -8.
    let farthest = block.iter().fold(0f32, |far, x| if x.abs() > far.abs() { *x } else { far });
    let scale = farthest / -8.0;
    half(scale, into);
    let level = |x: f32| ((x * inverse(scale) + 8.5) as u8).min(15);
    into.extend((0..16).map(|i| level(block[i]) | level(block[i + 16]) << 4));
}

/// Eight parts of 32, each with a scale and a minimum of six bits, which two halves scale in turn.
fn q4_k(block: &[f32], into: &mut Vec<u8>) {
    let parts: Vec<(f32, f32)> = (block.chunks_exact(32))
        .map(|part| {
            let least = part.iter().copied().fold(0f32, f32::min);
            let most = part.iter().copied().fold(0f32, f32::max);
            ((most - least) / 15.0, -least)
        })
        .collect();
    let largest = |of: fn(&(f32, f32)) -> f32| parts.iter().map(of).fold(0f32, f32::max) / 63.0;
    let (scale, minimum) = (largest(|part| part.0), largest(|part| part.1));
    half(scale, into);
    half(minimum, into);
    let six = |x: f32, unit: f32| ((x * inverse(unit)).round() as u8).min(63);
    let scales: Vec<u8> = parts.iter().map(|part| six(part.0, scale)).collect();
    let minima: Vec<u8> = parts.iter().map(|part| six(part.1, minimum)).collect();
    let mut packed = [0u8; 12];
    for i in 0..4 {
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        packed[i + 4] = minima[i] | (minima[i + 4] >> 4) << 6;
        packed[i + 8] = (scales[i + 4] & 15) | (minima[i + 4] & 15) << 4;
    }
    into.extend(packed);
    let level = |index: usize| {
        let part = index / 32;
        let (step, least) = (scale * f32::from(scales[part]), minimum * f32::from(minima[part]));
        (((block[index] + least) * inverse(step)).round() as u8).min(15)
    };
    // 64 values in 32 bytes: the first half of them in the low bits.
    for chunk in 0..4 {
        into.extend((0..32).map(|i| level(64 * chunk + i) | level(64 * chunk + 32 + i) << 4));
    }
}
