//! An unmodified model that streams by its spans, with a LoRA: the same bits as without a manager, and the original ones when it goes.

mod common;

use candle_transformers::models::{bert::BertModel, t5::T5EncoderModel};
use common::{
    F32, LoadSpec, bits, manager,
    outsiders::{Outsider, random_checkpoint},
    spec, tensor,
};
use mm_candle::{Component, Error, Lora, load_unmanaged};
use mm_plan::Strategy;
use std::{collections::HashMap, path::Path};

/// For every matrix whose name ends so.
fn write(weights: &Path, layers: &[&str], file: &Path) -> Lora {
    let tensors = candle_core::safetensors::load(weights, &candle_core::Device::Cpu).unwrap();
    let mut factors = HashMap::new();
    for (name, weight) in &tensors {
        let Some(layer) = name.strip_suffix(".weight").filter(|layer| layers.iter().any(|l| layer.ends_with(l))) else {
            continue;
        };
        let (outputs, inputs) = weight.dims2().unwrap();
        factors.insert(format!("{layer}.lora_A.weight"), tensor(&[2, inputs], layer.len()));
        factors.insert(format!("{layer}.lora_B.weight"), tensor(&[outputs, 2], layer.len() + 7));
    }
    assert!(factors.len() > 4);
    candle_core::safetensors::save(&factors, file).unwrap();
    Lora::open(file).unwrap()
}

fn answer<M: Outsider>(component: &Component<M>) -> Result<Vec<u32>, Error> {
    component.run(|model| model.answer()).map(|y| bits(&y))
}

fn same_bits<M: Outsider>(layers: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    random_checkpoint(&file, M::build);
    let lora = write(&file, layers, &folder.path().join("lora.safetensors"));
    let spec = LoadSpec { spans: true, ..spec("model", &file, F32) };

    let plain = load_unmanaged(&spec, M::build).unwrap();
    let original = answer(&plain).unwrap();
    plain.apply_lora(&lora, 0.5).unwrap();
    let expected = answer(&plain).unwrap();
    assert_ne!(expected, original);

    for strategy in [Strategy::GroupOffload, Strategy::BlockPin, Strategy::NoOffload] {
        let manager = manager(1 << 20, strategy);
        let model = manager.load(&spec, M::build).unwrap();
        assert_eq!(answer(&model).unwrap(), original);
        for _ in 0..2 {
            model.apply_lora(&lora, 0.5).unwrap();
            for pass in 0..3 {
                assert_eq!(answer(&model).unwrap(), expected, "{strategy} pass {pass}");
            }
            assert!(model.remove_lora(lora.file()).unwrap());
            for pass in 0..2 {
                assert_eq!(answer(&model).unwrap(), original, "{strategy} pass {pass} without it");
            }
        }
        assert!(model.spans().unwrap().whole.is_none(), "it streams by its spans");
        let plan = manager.plan().unwrap();
        assert_eq!(manager.memory().in_use, plan.peak.device);
        drop(model);
        assert_eq!(manager.memory().in_use, 0);
    }
}

#[test]
fn bert() {
    same_bits::<BertModel>(&["self.query", "self.value", "output.dense"]);
}

#[test]
fn t5() {
    same_bits::<T5EncoderModel>(&["SelfAttention.q", "DenseReluDense.wo"]);
}
