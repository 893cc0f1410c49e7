//! The bytes of a tensor, made piece by piece, each piece by itself.

use crate::{Fill, Init, Tensor};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use safetensors::Dtype;
use std::sync::OnceLock;

/// Of the normal fill.
const DEVIATION: f64 = 0.02;
/// Elements of a piece. A piece has a random stream of its own, so this is part of what the bytes depend on.
const PIECE: u64 = 1 << 18;

/// A piece of a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    piece: u64,
    elements: u64,
    size: u64,
}

impl Job {
    /// The pieces that make the tensor.
    pub(crate) fn all(tensor: &Tensor) -> impl Iterator<Item = Job> + use<> {
        let (elements, bytes) = (tensor.elements().unwrap_or(0), tensor.bytes().unwrap_or(0));
        // A dtype of less than a byte is filled as bytes.
        let (elements, size) = if bytes < elements { (bytes, 1) } else { (elements, bytes / elements.max(1)) };
        (0..elements.div_ceil(PIECE)).map(move |piece| Job {
            piece,
            elements: PIECE.min(elements - piece * PIECE),
            size,
        })
    }

    /// Its first byte, from the tensor's start.
    pub(crate) fn start(&self) -> u64 {
        self.piece * PIECE * self.size
    }
}

/// What a thread makes pieces in, again and again.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// The bytes of the piece.
    pub(crate) bytes: Vec<u8>,
    ranks: Vec<u8>,
}

/// Makes the bytes of pieces.
pub(crate) struct Filler {
    fill: Fill,
    seed: u64,
    quantiles: Vec<f32>,
    bf16: OnceLock<Vec<[u8; 2]>>,
    f16: OnceLock<Vec<[u8; 2]>>,
    f32: OnceLock<Vec<[u8; 4]>>,
    f64: OnceLock<Vec<[u8; 8]>>,
}

impl Filler {
    pub(crate) fn new(fill: Fill, seed: u64) -> Filler {
        let quantiles = match fill {
            Fill::Random => {
                (0..1 << 16).map(|i| (DEVIATION * quantile((f64::from(i) + 0.5) / 65536.0)) as f32).collect()
            }
            Fill::Zeros | Fill::Sparse => Vec::new(),
        };
        let (bf16, f16, f32, f64) = Default::default();
        Filler { fill, seed, quantiles, bf16, f16, f32, f64 }
    }

    /// Replaces what `buffer` holds by the bytes of the piece.
    pub(crate) fn fill(&self, tensor: &Tensor, job: &Job, buffer: &mut Buffer) {
        let elements = job.elements as usize;
        let bytes = &mut buffer.bytes;
        bytes.clear();
        if self.fill != Fill::Random {
            bytes.resize(elements * job.size as usize, 0);
            return;
        }
        match (tensor.init, tensor.dtype) {
            (Init::Count, Dtype::I64) => {
                let first = job.piece * PIECE;
                bytes.extend((first..first + job.elements).flat_map(u64::to_le_bytes));
            }
            (Init::Ones, dtype) if number(dtype, 1.0).is_some() => {
                bytes.extend(number(dtype, 1.0).unwrap_or_default().repeat(elements));
            }
            (_, Dtype::BF16) => {
                let table = self.bf16.get_or_init(|| self.table(|v| half::bf16::from_f32(v).to_le_bytes()));
                self.normal(tensor, job, buffer, table);
            }
            (_, Dtype::F16) => {
                let table = self.f16.get_or_init(|| self.table(|v| half::f16::from_f32(v).to_le_bytes()));
                self.normal(tensor, job, buffer, table);
            }
            (_, Dtype::F32) => {
                self.normal(tensor, job, buffer, self.f32.get_or_init(|| self.table(f32::to_le_bytes)));
            }
            (_, Dtype::F64) => {
                let table = self.f64.get_or_init(|| self.table(|v| f64::from(v).to_le_bytes()));
                self.normal(tensor, job, buffer, table);
            }
            _ => {
                bytes.resize(elements * job.size as usize, 0);
                self.stream(tensor, job).fill_bytes(bytes);
            }
        }
    }

    /// A random 16-bit number is the rank of a value among the 65536 quantiles: normal, and as fast as the generator.
    fn normal<const N: usize>(&self, tensor: &Tensor, job: &Job, buffer: &mut Buffer, table: &[[u8; N]]) {
        let elements = job.elements as usize;
        buffer.ranks.resize(2 * elements, 0);
        self.stream(tensor, job).fill_bytes(&mut buffer.ranks);
        buffer.bytes.resize(N * elements, 0);
        for (value, rank) in buffer.bytes.chunks_exact_mut(N).zip(buffer.ranks.chunks_exact(2)) {
            value.copy_from_slice(&table[usize::from(u16::from_le_bytes([rank[0], rank[1]]))]);
        }
    }

    fn table<const N: usize>(&self, bytes: impl Fn(f32) -> [u8; N]) -> Vec<[u8; N]> {
        self.quantiles.iter().map(|v| bytes(*v)).collect()
    }

    fn stream(&self, tensor: &Tensor, job: &Job) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(tensor.name.as_bytes());
        let mut stream = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        stream.set_stream(job.piece);
        stream
    }
}

/// The little-endian bytes of a number in a float dtype.
fn number(dtype: Dtype, value: f32) -> Option<Vec<u8>> {
    match dtype {
        Dtype::BF16 => Some(half::bf16::from_f32(value).to_le_bytes().to_vec()),
        Dtype::F16 => Some(half::f16::from_f32(value).to_le_bytes().to_vec()),
        Dtype::F32 => Some(value.to_le_bytes().to_vec()),
        Dtype::F64 => Some(f64::from(value).to_le_bytes().to_vec()),
        _ => None,
    }
}

/// The value that a normal variable stays below with this probability: Acklam's approximation, to nine digits. libm's
/// functions, unlike the system's, give the same bits on every platform.
fn quantile(probability: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    let polynomial = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = libm::sqrt(-2.0 * libm::log(p));
        polynomial(&C, q) / polynomial(&D, q)
    };
    if probability < 0.02425 {
        tail(probability)
    } else if probability > 1.0 - 0.02425 {
        -tail(1.0 - probability)
    } else {
        let q = probability - 0.5;
        polynomial(&A, q * q) * q / polynomial(&B, q * q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_normal_ones() {
        for (probability, value) in [(0.5, 0.0), (0.975, 1.959_963_985), (0.01, -2.326_347_874), (0.84134474607, 1.0)] {
            assert!((quantile(probability) - value).abs() < 1e-8, "{probability}: {}", quantile(probability));
        }
        let filler = Filler::new(Fill::Random, 0);
        let squares: f64 = filler.quantiles.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!(((squares / 65536.0).sqrt() - DEVIATION).abs() < 1e-4 * DEVIATION);
    }

    #[test]
    fn pieces_make_the_tensor() {
        let tensor = Tensor::new("t", [3, PIECE as usize], Dtype::BF16);
        let jobs: Vec<_> = Job::all(&tensor).collect();
        assert_eq!(jobs.iter().map(|j| j.elements).sum::<u64>(), 3 * PIECE);
        assert_eq!(jobs[2].start(), 4 * PIECE);
        assert_eq!(Job::all(&Tensor::new("t", [0, 7], Dtype::F32)).count(), 0);
        assert_eq!(Job::all(&Tensor::new("t", [], Dtype::F32)).map(|j| j.elements).sum::<u64>(), 1);
    }
}
