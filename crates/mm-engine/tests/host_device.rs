//! Host memory as the device: the budget is hard, the account is exact, casts are the ones of `half`.

mod common;

use common::host::{slab, tensor};
use half::{bf16, f16};
use mm_cache::TensorSlice;
use mm_engine::{Device, EngineError, HostBuffer, HostDevice, Slab, timeline::Label, timeline::Timeline};
use mm_plan::{DType, HostTier};
use safetensors::Dtype;
use std::sync::Arc;

fn device(budget: u64) -> HostDevice {
    HostDevice::with_workers(budget, 2, Arc::new(Timeline::default()))
}

fn label() -> Label {
    Label { component: "transformer".into(), group: "layers.0".into() }
}

#[test]
fn the_budget_is_hard_to_the_byte() {
    let device = device(1000);
    let held = device.allocate(DType::U8, 600).unwrap();
    for need in [401, u64::MAX] {
        match device.allocate(DType::U8, need) {
            Err(EngineError::OverBudget { need: told, in_use: 600, budget: 1000 }) => assert_eq!(told, need),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((device.memory().in_use, device.memory().allocations), (600, 1));
    let rest = device.allocate(DType::F32, 400).unwrap();
    assert_eq!((device.memory().in_use, device.memory().peak), (1000, 1000));
    device.free(held);
    device.free(rest);
    assert_eq!((device.memory().in_use, device.memory().peak), (0, 1000));
}

#[test]
fn memory_the_system_does_not_have_is_an_error_and_is_not_booked() {
    let device = device(u64::MAX);
    assert!(matches!(device.allocate(DType::U8, u64::MAX), Err(EngineError::OverBudget { .. })));
    assert_eq!(device.memory().in_use, 0);
}

#[test]
fn half_an_element_and_unknown_types_are_refused() {
    let device = device(1000);
    assert!(matches!(device.allocate(DType::F32, 6), Err(EngineError::Misuse(_))));
    assert!(matches!(device.allocate(DType::F8e5m2, 8), Err(EngineError::Misuse(_))));
    assert_eq!(device.memory().in_use, 0);
}

/// Quantized weights: nobody looks into them here, and they begin where a number of four bytes may.
#[test]
fn bytes_are_taken_as_they_are() {
    let device = device(4096);
    let stored: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
    let parts = [&stored[..18], &stored[18..]];
    let mut slab = Slab::new(DType::Bytes);
    for (i, part) in parts.iter().enumerate() {
        let tensor = TensorSlice::from_bytes(format!("q{i}"), Dtype::U8, [part.len()], part.to_vec()).unwrap();
        assert_eq!(slab.push(tensor), 256 * i as u64);
    }
    assert_eq!((slab.bytes(), slab.host_bytes()), (256 + 512, 300));
    let slab = Arc::new(slab);
    for source in [device.in_files(slab.clone()), device.in_memory(&[slab], HostTier::Pageable).unwrap().remove(0)] {
        let buffer = device.allocate(DType::Bytes, 1024).unwrap();
        let mut buffer = device.finish(device.copy(label(), source, buffer, None)).map_err(|f| f.error).unwrap();
        assert!(matches!(&buffer, HostBuffer::U32(words) if words.len() == 256), "{buffer:?}");
        let bytes = buffer.bytes_mut();
        assert_eq!((&bytes[..18], &bytes[256..256 + 282]), (parts[0], parts[1]));
        device.free(buffer);
        assert_eq!(device.memory().in_use, 0);
    }
    assert!(matches!(device.allocate(DType::Bytes, 30), Err(EngineError::Misuse(_))));
    // Numbers are no bytes of anything.
    let numbers = TensorSlice::from_bytes("f", Dtype::F32, [1], vec![0; 4]).unwrap();
    let mut slab = Slab::new(DType::Bytes);
    slab.push(numbers);
    assert!(matches!(slab.fill(&mut [0; 256]), Err(EngineError::Source { .. })));
}

#[test]
fn widening_is_exact_for_every_value() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    type Widen = fn(u16) -> f32;
    let cases: [(Dtype, Widen); 2] =
        [(Dtype::BF16, |b| bf16::from_bits(b).to_f32()), (Dtype::F16, |b| f16::from_bits(b).to_f32())];
    for (stored, expected) in cases {
        let mut filled = vec![0; 4 << 16];
        slab(DType::F32, stored, all.clone()).fill(&mut filled).unwrap();
        let expected: Vec<u8> = (0..=u16::MAX).flat_map(|bits| expected(bits).to_bits().to_le_bytes()).collect();
        assert!(filled == expected, "{stored:?}");
    }
}

#[test]
fn narrowing_rounds_as_half_does() {
    // Around every bf16 value: the value, its neighbours in f32, and the tie above it.
    let values = (0..=u16::MAX).flat_map(|high| [0, 1, 0x7FFF, 0x8000, 0x8001].map(|low| u32::from(high) << 16 | low));
    let values: Vec<f32> = values.map(f32::from_bits).collect();
    let stored: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    type Narrow = fn(f32) -> u16;
    let cases: [(DType, Narrow); 2] =
        [(DType::Bf16, |x| bf16::from_f32(x).to_bits()), (DType::F16, |x| f16::from_f32(x).to_bits())];
    for (to, expected) in cases {
        let packed = slab(to, Dtype::F32, stored.clone());
        let mut filled = vec![0; packed.bytes() as usize];
        packed.fill(&mut filled).unwrap();
        let expected: Vec<u8> = values.iter().flat_map(|value| expected(*value).to_le_bytes()).collect();
        assert!(filled[..expected.len()] == expected, "{to}");
    }
}

#[test]
fn tensors_lie_at_multiples_of_256_and_what_lies_between_is_left_alone() {
    let mut packed = Slab::new(DType::U8);
    assert_eq!(packed.push(tensor(Dtype::U8, vec![1; 3])), 0);
    assert_eq!(packed.push(tensor(Dtype::U8, vec![2; 257])), 256);
    assert_eq!((packed.bytes(), packed.host_bytes()), (768, 260));
    let mut into = vec![9; 1000];
    packed.fill(&mut into).unwrap();
    assert_eq!((&into[..4], &into[255..258], &into[512..514]), (&[1, 1, 1, 9][..], &[9, 2, 2][..], &[2, 9][..]));
    assert!(packed.fill(&mut [0; 300]).is_err());
}

#[test]
fn a_cast_that_does_not_exist_names_the_tensor_and_gives_the_memory_back() {
    let device = device(4096);
    let bad = Arc::new(slab(DType::F32, Dtype::I64, vec![0; 64]));
    let buffer = device.allocate(DType::F32, bad.bytes()).unwrap();
    let failed = device.finish(device.copy(label(), device.in_files(bad), buffer, None)).err().unwrap();
    assert!(matches!(&failed.error, EngineError::Source { tensor, .. } if tensor == "weight"), "{}", failed.error);
    device.free(failed.buffer.unwrap());
    assert_eq!(device.memory().in_use, 0);
}

#[test]
fn a_copy_dropped_unfinished_gives_its_memory_back() {
    let device = device(1 << 20);
    let source = Arc::new(slab(DType::F32, Dtype::F32, vec![0; 4096]));
    for _ in 0..50 {
        let buffer = device.allocate(DType::F32, source.bytes()).unwrap();
        drop(device.copy(label(), device.in_files(source.clone()), buffer, None));
        assert_eq!(device.memory().in_use, 0);
    }
}

#[test]
fn copies_end_after_their_device_is_dropped() {
    let device = device(1 << 24);
    let source = Arc::new(slab(DType::F32, Dtype::F32, 1.5f32.to_le_bytes().repeat(1024)));
    let start = |_| {
        let buffer = device.allocate(DType::F32, source.bytes()).unwrap();
        device.copy(label(), device.in_files(source.clone()), buffer, None)
    };
    let copies: Vec<_> = (0..32).map(start).collect();
    drop(device);
    let other = HostDevice::new(0, Arc::new(Timeline::default()));
    for copy in copies {
        match other.finish(copy) {
            Ok(HostBuffer::F32(values)) => assert_eq!(values, [1.5; 1024]),
            _ => panic!("a copy was lost"),
        }
    }
}

#[test]
fn a_reservation_counts_until_it_is_dropped() {
    let device = Arc::new(device(1000));
    let mut reservation = device.reserve(300);
    reservation.grow(200);
    assert_eq!(device.memory().in_use, 500);
    reservation.grow(u64::MAX);
    drop(reservation);
    assert_eq!(device.memory().in_use, 0);
}
