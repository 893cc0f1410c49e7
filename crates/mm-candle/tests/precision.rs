//! Stored and compute dtypes differ freely: weights are cast as candle casts them, value by value, and streaming changes no bit.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{BLOCKS, DIM, Net, bits, checkpoint, manager, spec, tensor};
use mm_candle::{Blocks, Component, LoadSpec, describe, load_unmanaged};
use mm_plan::Strategy;
use std::{collections::HashMap, path::Path};

const STORED: [DType; 4] = [DType::F8E4M3, DType::BF16, DType::F16, DType::F32];
const COMPUTED: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

fn lazy(file: &Path, dtype: DType) -> LoadSpec {
    LoadSpec { lazy: true, ..spec("net", file, dtype) }
}

/// By candle alone: its reader, its cast, its `VarBuilder`.
fn of_candle(file: &Path, dtype: DType, x: &Tensor) -> Vec<u32> {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap())).collect();
    let net = Net::new(BLOCKS, &VarBuilder::from_tensors(tensors, dtype, &Device::Cpu)).unwrap();
    bits(&net.forward(x).unwrap())
}

#[test]
fn every_pair_computes_what_candle_does_whatever_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut distinct = Vec::new();
    for stored in STORED {
        let file = folder.path().join(format!("{stored:?}.safetensors"));
        checkpoint(&file, BLOCKS, stored);
        for dtype in COMPUTED {
            let x = tensor(&[2, DIM], 1).to_dtype(dtype).unwrap();
            let expected = of_candle(&file, dtype, &x);
            let run = |net: &Component<Net>| bits(&net.run(|net| net.forward(&x)).unwrap());
            let plain = load_unmanaged(&spec("net", &file, dtype), |vb| Net::new(BLOCKS, &vb)).unwrap();
            assert!(run(&plain) == expected, "{stored:?} as {dtype:?}: unmanaged");
            let (described, _) = describe(&spec("net", &file, dtype), |vb| Net::new(BLOCKS, &vb)).unwrap();
            let all = described.bytes();
            let group = described.groups().next().unwrap();
            // On the device they are of the dtype that is computed in, on the host of the one that is stored.
            let (wide, narrow) = (group.bytes() / dtype.size_in_bytes() as u64, stored.size_in_bytes() as u64);
            assert!(group.host_bytes <= wide * narrow && group.host_bytes > wide * narrow * 9 / 10, "{group:?}");
            let smallest = described.rest + 2 * group.bytes();
            for (budget, strategy) in [
                (2 * all, Strategy::NoOffload),
                (all, Strategy::Auto),
                ((smallest + all) / 2, Strategy::BlockPin),
                (smallest, Strategy::GroupOffload),
            ] {
                let manager = manager(budget, strategy);
                let net = manager.load(&lazy(&file, dtype), |vb| Net::new(BLOCKS, &vb)).unwrap();
                for pass in 0..2 {
                    assert!(run(&net) == expected, "{stored:?} as {dtype:?}, {strategy} in {budget}, pass {pass}");
                }
                let plan = manager.plan().unwrap();
                assert_eq!(manager.memory().peak, plan.peak.device);
                let streams = plan.component("net").unwrap().streamed_count() > 0;
                assert!(streams == (budget < all) || strategy == Strategy::Auto, "{strategy} in {budget} of {all}");
            }
            distinct.push(expected);
        }
    }
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > STORED.len() * COMPUTED.len() / 2, "the pairs don't differ, which says little");
}

/// Every pattern of a narrow dtype; of f32 those around which casts go wrong, and many more.
fn patterns(dtype: DType) -> Tensor {
    let cpu = &Device::Cpu;
    match dtype {
        DType::F8E4M3 => {
            let all: Vec<u8> = (0..=u8::MAX).collect();
            Tensor::from_raw_buffer(&all, dtype, &[all.len()], cpu).unwrap()
        }
        DType::BF16 | DType::F16 => {
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            Tensor::from_raw_buffer(&all, dtype, &[1 << 16], cpu).unwrap()
        }
        _ => {
            let edges = [0.0, 1.0, 65504.0, 65519.9, 65520.0, 3.39e38, 1e-8, 5.96e-8, 2.98e-8, 6.1e-5, 1.17e-38, 1e-45];
            let ties = (0..64u32).map(|i| f32::from_bits(0x3f80_8000 + (i << 15)));
            let infinities = [f32::INFINITY, f32::NAN];
            let spread = (0..1u32 << 16).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)));
            let values: Vec<f32> = edges.into_iter().chain(ties).chain(infinities).chain(spread).collect();
            let values: Vec<f32> = values.iter().flat_map(|x| [*x, -x]).collect();
            Tensor::new(values, cpu).unwrap()
        }
    }
}

/// As f32, which tells all values of these dtypes apart; any NaN is one.
fn values(tensor: &Tensor) -> Vec<u32> {
    let nan = f32::NAN.to_bits();
    bits(tensor).into_iter().map(|bits| if f32::from_bits(bits).is_nan() { nan } else { bits }).collect()
}

#[test]
fn every_value_is_cast_as_candle_casts_it() {
    let folder = tempfile::tempdir().unwrap();
    for stored in STORED {
        let all = patterns(stored);
        let file = folder.path().join(format!("{stored:?}.safetensors"));
        // Two blocks, so that what streams is seen; an odd one out before, so that what follows begins in a slab's middle.
        let tensors: HashMap<String, Tensor> = (0..2)
            .flat_map(|i| {
                let few = all.narrow(0, 0, 7).unwrap();
                [(format!("layers.{i}.all"), all.clone()), (format!("layers.{i}.few"), few)]
            })
            .collect();
        candle_core::safetensors::save(&tensors, &file).unwrap();
        for dtype in COMPUTED {
            let expected = values(&all.to_dtype(dtype).unwrap());
            let (few, count) = (7, all.elem_count());
            let build = |vb: VarBuilder<'_>| {
                Blocks::load(&vb, "layers", 2, |_, vb| Ok((vb.get(few, "few")?, vb.get(count, "all")?)))
            };
            let (described, _) = describe(&spec("net", &file, dtype), build).unwrap();
            // One slot: each block is read anew in each pass.
            for budget in [described.bytes(), described.groups().next().unwrap().bytes()] {
                let manager = manager(budget, Strategy::GroupOffload);
                let model = manager.load(&lazy(&file, dtype), build).unwrap();
                for _ in 0..2 {
                    let read = |blocks: &mut Blocks<(Tensor, Tensor)>| {
                        blocks.iter().map(|block| block.map(|block| (values(&block.0), values(&block.1)))).collect()
                    };
                    let found: Vec<(Vec<u32>, Vec<u32>)> = model.run(read).unwrap();
                    for (few, all) in found {
                        assert!(few == expected[..7] && all == expected, "{stored:?} as {dtype:?} in {budget}");
                    }
                }
            }
        }
    }
}
