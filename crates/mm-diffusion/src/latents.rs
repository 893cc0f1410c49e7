//! Initial latents: the same numbers for a seed on every platform.

use candle_core::{Device, Result, Tensor};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Standard normal noise of this shape.
///
/// ChaCha20 keyed by the seed, and Box–Muller in `libm`'s software arithmetic: neither depends on the
/// machine, the standard library or the order of threads.
pub(crate) fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha20Rng::from_seed(key);
    let count = shape.iter().product();
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - uniform(&mut rng)));
        let (sin, cos) = libm::sincos(std::f64::consts::TAU * uniform(&mut rng));
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// 53 random bits as a number in [0, 1).
fn uniform(rng: &mut ChaCha20Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, shape: &[usize]) -> Vec<f32> {
        noise(seed, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_seed_is_the_same_noise_and_another_seed_is_not() {
        assert_eq!(values(7, &[1, 8, 16, 16]), values(7, &[1, 8, 16, 16]));
        assert_ne!(values(7, &[4]), values(8, &[4]));
        assert_eq!(values(7, &[3]), values(7, &[4])[..3]);
        assert_ne!(values(u64::MAX, &[4]), values(u64::from(u32::MAX), &[4]));
    }

    #[test]
    fn noise_is_standard_normal() {
        let noise = values(1, &[100_000]);
        let count = noise.len() as f64;
        let mean = noise.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let square = noise.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count;
        let inner = noise.iter().filter(|x| x.abs() < 1.0).count() as f64 / count;
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.02, "mean {mean}, mean square {square}");
        assert!((inner - 0.6827).abs() < 0.005, "{inner} within one deviation");
    }
}
