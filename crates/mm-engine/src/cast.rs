//! Casts between stored and compute dtypes while a slab is filled.
//!
//! Values go through `f32`, which holds every narrower float exactly; narrowing rounds to nearest, ties to even, as candle
//! and torch do. Elements are little-endian bytes at any address.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use mm_plan::DType;
use std::sync::LazyLock;

/// Values under way at a time; as `f32` they stay in the fastest cache.
const BLOCK: usize = 1024;

/// Writes the elements of `source` into `into`, cast. The lengths must hold the same number of
/// elements. `Err` names the pair of dtypes that has no cast.
pub(crate) fn cast(from: DType, source: &[u8], to: DType, into: &mut [u8]) -> Result<(), String> {
    if from == to {
        into.copy_from_slice(source);
        return Ok(());
    }
    if !can_cast(from, to) {
        return Err(format!("no cast from {from} to {to}"));
    }
    // Where one side is `f32` in memory of its alignment, as slabs are, it needs no copy on the way.
    if cfg!(target_endian = "little") {
        if to == DType::F32
            && let Ok(values) = bytemuck::try_cast_slice_mut(into)
        {
            widen(from, source, values);
            return Ok(());
        }
        if from == DType::F32
            && let Ok(values) = bytemuck::try_cast_slice(source)
        {
            narrow(values, to, into);
            return Ok(());
        }
    }
    let mut block = [0f32; BLOCK];
    let (stored, wanted) = (from.size() as usize * BLOCK, to.size() as usize * BLOCK);
    for (source, into) in source.chunks(stored).zip(into.chunks_mut(wanted)) {
        let block = &mut block[..source.len() / from.size() as usize];
        widen(from, source, block);
        narrow(block, to, into);
    }
    Ok(())
}

/// Whether weights stored as `from` can be cast to `to` while a slab is filled.
pub fn can_cast(from: DType, to: DType) -> bool {
    use DType::{Bf16, F8e4m3, F8e5m2, F16, F32, F64};
    from == to || (matches!(from, F64 | F32 | F16 | Bf16 | F8e4m3 | F8e5m2) && matches!(to, F64 | F32 | F16 | Bf16))
}

/// Every value of an eight-bit float: computing one takes longer than looking it up.
static F8E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| table(|bits| float8::F8E4M3::from_bits(bits).to_f32()));
static F8E5M2: LazyLock<[f32; 256]> = LazyLock::new(|| table(|bits| float8::F8E5M2::from_bits(bits).to_f32()));

fn table(value: impl Fn(u8) -> f32) -> [f32; 256] {
    std::array::from_fn(|bits| value(bits as u8))
}

fn widen(from: DType, source: &[u8], values: &mut [f32]) {
    match from {
        DType::F64 => each(source, values, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => each(source, values, f32::from_le_bytes),
        DType::Bf16 => each(source, values, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F8e4m3 => look_up(source, values, &F8E4M3),
        DType::F8e5m2 => look_up(source, values, &F8E5M2),
        // `half` finds the processor's instruction at run time, for whole slices at their own alignment only.
        _ => match bytemuck::try_cast_slice::<_, f16>(source) {
            Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(values),
            _ => each(source, values, |b| f16::from_le_bytes(b).to_f32()),
        },
    }
}

fn narrow(values: &[f32], to: DType, into: &mut [u8]) {
    match to {
        DType::F64 => store(values, into, |x| f64::from(x).to_le_bytes()),
        DType::F32 => store(values, into, f32::to_le_bytes),
        DType::Bf16 => store(values, into, |x| bf16::from_f32(x).to_le_bytes()),
        _ => match bytemuck::try_cast_slice_mut::<_, f16>(into) {
            Ok(halves) if cfg!(target_endian = "little") => halves.convert_from_f32_slice(values),
            _ => store(values, into, |x| f16::from_f32(x).to_le_bytes()),
        },
    }
}

fn each<const N: usize>(source: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(source.as_chunks::<N>().0) {
        *value = read(*bytes);
    }
}

fn look_up(source: &[u8], values: &mut [f32], table: &[f32; 256]) {
    for (value, bits) in values.iter_mut().zip(source) {
        *value = table[usize::from(*bits)];
    }
}

fn store<const N: usize>(values: &[f32], into: &mut [u8], write: impl Fn(f32) -> [u8; N]) {
    for (bytes, value) in into.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = write(*value);
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

    /// Any address, and lengths around those that are cast at once: the same as one element alone.
    #[test]
    fn neither_address_nor_length_matters() {
        use DType::*;
        for (from, to) in
            [F64, F32, F16, Bf16, F8e4m3, F8e5m2].into_iter().flat_map(|f| [F64, F32, F16, Bf16].map(|t| (f, t)))
        {
            let (stored, wanted) = (from.size() as usize, to.size() as usize);
            for (count, shift) in [(1, 0), (7, 1), (BLOCK - 1, 3), (BLOCK, 0), (BLOCK + 1, 1), (2 * BLOCK + 5, 2)] {
                let source: Vec<u8> = (0..shift + count * stored).map(|i| (i * 7919 / 8) as u8).collect();
                let mut into = vec![0; shift + count * wanted];
                cast(from, &source[shift..], to, &mut into[shift..]).unwrap();
                for index in 0..count {
                    let mut one = vec![0; wanted];
                    let element = source[shift + index * stored..][..stored].to_vec();
                    cast(from, &element, to, &mut one).unwrap();
                    assert_eq!(into[shift + index * wanted..][..wanted], one, "{from} to {to}, {index} of {count}");
                }
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
