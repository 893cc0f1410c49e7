//! Unmodified candle models run whole, bit-identically; bad files are errors that name what is wrong.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    bert::{BertModel, Config as BertConfig},
    z_image::vae::{Decoder, VaeConfig},
};
use common::{bits, manager, random::checkpoint_of, spec, tensor};
use mm_candle::{Component, Error, LoadSpec, load_unmanaged};
use mm_plan::Strategy;

fn vae_config() -> VaeConfig {
    VaeConfig {
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 4,
        ..VaeConfig::z_image()
    }
}

#[test]
fn an_unmodified_vae_and_bert_take_turns_on_a_device_that_holds_one() {
    let folder = tempfile::tempdir().unwrap();
    let (vae_folder, bert_folder) = (folder.path().join("vae"), folder.path().join("bert"));
    let bert_config: BertConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "max_position_embeddings": 16, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }))
    .unwrap();
    let vae = |vb: VarBuilder<'_>| Decoder::new(&vae_config(), vb);
    let bert = |vb: VarBuilder<'_>| BertModel::load(vb, &bert_config);
    let vae_spec = LoadSpec::new("vae", checkpoint_of(&vae_folder, DType::F32, &[], vae));
    let bert_spec = LoadSpec::new("bert", checkpoint_of(&bert_folder, DType::F32, &[], bert));

    let latents = tensor(&[1, 4, 4, 4], 5);
    let ids = Tensor::new(&[[1u32, 7, 3]], &Device::Cpu).unwrap();
    let decode = |c: &Component<Decoder>| bits(&c.run(|m| latents.apply(m)).unwrap());
    let encode = |c: &Component<BertModel>| bits(&c.run(|m| m.forward(&ids, &ids.zeros_like()?, None)).unwrap());
    let expected =
        (decode(&load_unmanaged(&vae_spec, vae).unwrap()), encode(&load_unmanaged(&bert_spec, bert).unwrap()));

    let manager = manager(220 << 10, Strategy::ModelOffload);
    let (vae, bert) = (manager.load(&vae_spec, vae).unwrap(), manager.load(&bert_spec, bert).unwrap());
    for _ in 0..2 {
        assert_eq!(encode(&bert), expected.1);
        assert_eq!(decode(&vae), expected.0);
    }
    let plan = manager.plan().unwrap();
    let total: u64 = plan.components.iter().map(|c| c.engine_bytes).sum();
    assert!(plan.peak.device < total, "they never were there together");
    assert_eq!(manager.memory().peak, plan.peak.device);
}

#[test]
fn a_tensor_that_two_blocks_ask_for_belongs_to_the_rest() {
    use mm_candle::Blocks;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tied.safetensors");
    let stored: std::collections::HashMap<_, _> =
        [("tied", tensor(&[64], 1)), ("layers.0.w", tensor(&[64], 2)), ("layers.1.w", tensor(&[64], 3))].into();
    candle_core::safetensors::save(&stored, &file).unwrap();
    let build = |vb: VarBuilder<'_>| {
        let root = vb.root();
        Blocks::load(&vb, "layers", 2, |_, vb| Ok((vb.get(64, "w")?, root.get(64, "tied")?)))
    };
    let manager = manager(768, Strategy::GroupOffload);
    let model = manager.load(&spec("tied", &file, DType::F32), build).unwrap();
    let sums = |c: &Component<Blocks<(Tensor, Tensor)>>| {
        c.run(|blocks| blocks.iter().map(|b| b.and_then(|b| (&b.0 + &b.1)?.sum_all()?.to_scalar::<f32>())).collect())
    };
    let managed: Vec<f32> = sums(&model).unwrap();
    let plain: Vec<f32> = sums(&load_unmanaged(&spec("tied", &file, DType::F32), build).unwrap()).unwrap();
    assert_eq!(managed, plain);
    let module = manager.get_component("tied").unwrap();
    assert_eq!((module.description().rest, module.description().groups().count()), (256, 2));
}

#[test]
fn wrong_shapes_missing_tensors_and_missing_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    candle_core::safetensors::save(&[("a", tensor(&[2, 3], 1))].into(), &file).unwrap();
    let manager = manager(1 << 20, Strategy::Auto);
    let load = |make: fn(VarBuilder<'_>) -> candle_core::Result<Tensor>| {
        manager.load(&spec("w", &file, DType::F32), make).map(|_| ()).unwrap_err().to_string()
    };
    let wrong = load(|vb| vb.get((3, 2), "a"));
    assert!(wrong.contains("w.safetensors") && wrong.contains("[3, 2]") && wrong.contains("[2, 3]"), "{wrong}");
    let missing = load(|vb| vb.pp("b").get(1, "c"));
    assert!(missing.contains("b.c"), "{missing}");
    let absent = manager.load(&spec("w", &folder.path().join("no.safetensors"), DType::F32), |_| Ok(())).map(|_| ());
    assert!(matches!(&absent, Err(Error::Weights(e)) if e.to_string().contains("no.safetensors")), "{absent:?}");
}
