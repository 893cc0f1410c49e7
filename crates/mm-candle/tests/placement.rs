//! Weights of any backend come and go under a model, alone or beneath other wrappers.

mod common;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, Module, VarBuilder, VarMap, linear, var_builder::SimpleBackend};
use candle_transformers::models::t5::T5EncoderModel;
use common::{
    bits,
    outsiders::{Outsider, random_checkpoint},
    tensor, values,
};
use mm_candle::Placement;
use peak_alloc::PeakAlloc;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The counter is the process's.
static ALONE: Mutex<()> = Mutex::new(());

fn vb(weights: &Placement) -> VarBuilder<'static> {
    VarBuilder::from_backend(weights.backend(), DType::F32, Device::Cpu)
}

#[test]
fn an_unmodified_model_from_files_answers_the_same_after_its_weights_were_gone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t5.safetensors");
    random_checkpoint(&file, T5EncoderModel::build);
    let stored = candle_core::safetensors::BufferedSafetensors::new(std::fs::read(&file).unwrap()).unwrap();
    let weights = Placement::over(stored);
    let mut model = T5EncoderModel::build(vb(&weights)).unwrap();
    let expected = bits(&model.answer().unwrap());
    for _ in 0..2 {
        assert!(weights.evict("encoder.block").unwrap() > 0);
        assert_eq!(weights.evict("encoder.block").unwrap(), 0, "they are gone already");
        assert!(model.answer().is_err());
        assert!(weights.restore("").unwrap() > 0);
        assert_eq!(bits(&model.answer().unwrap()), expected);
    }
}

#[test]
fn memory_really_falls_and_what_the_backend_keeps_stays() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const SIDE: usize = 512;
    let kept = tensor(&[SIDE, SIDE], 1);
    let weights = Placement::over(HashMap::from([("a.weight".to_owned(), kept.clone())]));
    let weight = vb(&weights).pp("a").get((SIDE, SIDE), "weight").unwrap();
    let view = weight.narrow(0, 1, 2).unwrap();
    let before = HEAP.current_usage();
    assert_eq!(weights.evict("a").unwrap(), 4 * (SIDE * SIDE) as u64);
    assert!(HEAP.current_usage() + 4 * SIDE * SIDE <= before + (64 << 10), "{} of {before}", HEAP.current_usage());
    assert!(weight.sqr().is_err() && view.sqr().is_err());
    assert_eq!(bits(&kept).len(), SIDE * SIDE);
    weights.restore("a").unwrap();
    assert_eq!(bits(&weight), bits(&kept));
    assert_eq!(bits(&view), bits(&kept.narrow(0, 1, 2).unwrap()));
}

/// Another wrapper: scales whatever is below it.
struct Twice<B>(B);

impl<B: SimpleBackend> SimpleBackend for Twice<B> {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.get(shape, name, init, dtype, device)? * 2.0
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.get_unchecked(name, dtype, device)? * 2.0
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_tensor(name)
    }
}

#[test]
fn it_composes_with_other_wrappers() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let stored = HashMap::from([("l.weight".to_owned(), tensor(&[3, 4], 1)), ("l.bias".to_owned(), tensor(&[3], 2))]);
    let x = tensor(&[2, 4], 9);
    let direct = VarBuilder::from_backend(Box::new(Twice(stored.clone())), DType::F32, Device::Cpu);
    let expected = bits(&linear(4, 3, direct.pp("l")).unwrap().forward(&x).unwrap());
    let weights = Placement::over(Twice(stored));
    let layer = linear(4, 3, vb(&weights).pp("l")).unwrap();
    weights.evict("").unwrap();
    weights.restore("l.weight").unwrap();
    assert!(layer.forward(&x).is_err(), "its bias is away");
    weights.restore("l").unwrap();
    assert_eq!(bits(&layer.forward(&x).unwrap()), expected);
}

#[test]
fn a_backend_that_is_trained_in_place_is_asked_again() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let map = VarMap::new();
    let weights = Placement::over(map.clone());
    let weight = vb(&weights).get_with_hints(4, "w", Init::Const(1.0)).unwrap();
    map.data().lock().unwrap()["w"].set(&tensor(&[4], 5)).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [1.0; 4]);
    weights.evict("w").unwrap();
    weights.restore("w").unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), values(4, 5));
}

#[test]
fn what_is_not_there_or_has_changed_is_named() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let map = VarMap::new();
    let weights = Placement::over(map.clone());
    let layer = vb(&weights).pp("layer");
    let first = layer.get(4, "w").unwrap();
    assert_eq!(layer.get_unchecked("w").unwrap().dims(), first.dims(), "asked again it is the same");
    let missing = weights.evict("lay").unwrap_err().to_string();
    assert!(missing.contains("\"lay\"") && missing.contains("layer"), "{missing}");
    assert_eq!(Placement::over(VarMap::new()).evict("").unwrap(), 0);
    let wrong = layer.get(5, "w").unwrap_err().to_string();
    assert!(wrong.contains("layer.w") && wrong.contains('5'), "{wrong}");
    weights.evict("layer").unwrap();
    let replaced = candle_core::Var::from_tensor(&tensor(&[2], 1)).unwrap();
    map.data().lock().unwrap().insert("layer.w".to_owned(), replaced);
    assert!(weights.restore("layer").is_err());
    assert!(first.sqr().is_err(), "and it refuses as before");
}
