//! Casts between stored and compute dtypes while a slab is filled.
//!
//! Stored bytes may lie at any address (a mapping promises no alignment), so elements are read and
//! written as little-endian bytes. Values go through `f32`, which holds every narrower float exactly;
//! narrowing rounds to nearest, ties to even, as candle and torch do.

use mm_plan::DType;

/// Writes the elements of `source` into `into`, cast. The lengths must hold the same number of
/// elements. `Err` names the pair of dtypes that has no cast.
pub(crate) fn cast(from: DType, source: &[u8], to: DType, into: &mut [u8]) -> Result<(), String> {
    if from == to {
        into.copy_from_slice(source);
        return Ok(());
    }
    match from {
        DType::F64 => widen(source, |b: [u8; 8]| f64::from_le_bytes(b) as f32, to, into),
        DType::F32 => widen(source, f32::from_le_bytes, to, into),
        DType::F16 => widen(source, |b: [u8; 2]| half::f16::from_le_bytes(b).to_f32(), to, into),
        DType::Bf16 => widen(source, |b: [u8; 2]| half::bf16::from_le_bytes(b).to_f32(), to, into),
        DType::F8e4m3 => widen(source, |[b]: [u8; 1]| float8::F8E4M3::from_bits(b).to_f32(), to, into),
        DType::F8e5m2 => widen(source, |[b]: [u8; 1]| float8::F8E5M2::from_bits(b).to_f32(), to, into),
        _ => None,
    }
    .ok_or_else(|| format!("no cast from {from} to {to}"))
}

/// Whether weights stored as `from` can be cast to `to` while a slab is filled.
pub fn can_cast(from: DType, to: DType) -> bool {
    use DType::{Bf16, F8e4m3, F8e5m2, F16, F32, F64};
    from == to || (matches!(from, F64 | F32 | F16 | Bf16 | F8e4m3 | F8e5m2) && matches!(to, F64 | F32 | F16 | Bf16))
}

fn widen<const N: usize>(source: &[u8], read: impl Fn([u8; N]) -> f32, to: DType, into: &mut [u8]) -> Option<()> {
    let values = source.as_chunks::<N>().0.iter().map(|bytes| read(*bytes));
    match to {
        DType::F64 => store(values, |x| f64::from(x).to_le_bytes(), into),
        DType::F32 => store(values, f32::to_le_bytes, into),
        DType::F16 => store(values, |x| half::f16::from_f32(x).to_le_bytes(), into),
        DType::Bf16 => store(values, |x| half::bf16::from_f32(x).to_le_bytes(), into),
        _ => return None,
    }
    Some(())
}

fn store<const N: usize>(values: impl Iterator<Item = f32>, write: impl Fn(f32) -> [u8; N], into: &mut [u8]) {
    for (slot, value) in into.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *slot = write(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_widens_exactly_and_narrows_to_even() {
        let stored: Vec<u8> =
            [1.0f32, -2.5, 3.140_625].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        let mut wide = [0u8; 12];
        cast(DType::Bf16, &stored, DType::F32, &mut wide).unwrap();
        assert_eq!(wide.as_chunks::<4>().0.map_to_f32(), [1.0, -2.5, 3.140_625]);
        let mut back = [0u8; 6];
        cast(DType::F32, &wide, DType::Bf16, &mut back).unwrap();
        assert_eq!(back.as_slice(), stored.as_slice());
        // 1 + 2^-8 lies halfway between two bf16 values; the even one is 1.
        let mut tie = [0u8; 2];
        cast(DType::F32, &(1.0 + 0.5f32.powi(8)).to_le_bytes(), DType::Bf16, &mut tie).unwrap();
        assert_eq!(tie, half::bf16::from_f32(1.0).to_le_bytes());
    }

    #[test]
    fn every_declared_pair_casts_and_no_other() {
        use DType::*;
        let all = [F64, F32, F16, Bf16, F8e4m3, F8e5m2, I64, I32, I16, I8, U64, U32, U16, U8];
        for from in all {
            for to in all {
                let source = vec![0u8; 4 * from.size() as usize];
                let mut into = vec![1u8; 4 * to.size() as usize];
                assert_eq!(cast(from, &source, to, &mut into).is_ok(), can_cast(from, to), "{from} to {to}");
            }
        }
    }

    trait MapToF32 {
        fn map_to_f32(&self) -> Vec<f32>;
    }
    impl MapToF32 for [[u8; 4]] {
        fn map_to_f32(&self) -> Vec<f32> {
            self.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
    }
}
