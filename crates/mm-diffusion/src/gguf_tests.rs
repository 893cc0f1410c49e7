//! Quantized checkpoints of real layout against candle's own quantized models on the same file, bit for bit.

use crate::{
    flux::{config::Config as FluxConfig, transformer::Transformer},
    invented::Invented,
    latents::noise,
    t5,
};
use candle_core::{
    DType, Device, Result, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use candle_nn::VarBuilder;
use candle_transformers::{
    models::{
        flux::{self, WithForward, quantized_model::Flux, sampling::State},
        quantized_t5,
    },
    quantized_var_builder::VarBuilder as QuantizedVarBuilder,
};
use mm_candle::{LoadSpec, load_unmanaged};
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// As converters store them: vectors in f32, matrices quantized where their rows are whole blocks, the first and last layers in
/// half precision.
fn kind_of(name: &str, shape: &[usize], wanted: GgmlDType) -> GgmlDType {
    let whole = |kind: GgmlDType| shape.last().is_some_and(|row| row.is_multiple_of(kind.block_size()));
    match shape.len() {
        0 | 1 => GgmlDType::F32,
        _ if ["img_in", "final_layer", "relative_attention_bias", "attn_rel_b"].iter().any(|n| name.contains(n)) => {
            GgmlDType::F16
        }
        // Where there are two blocks in a row; not all of candle's kernels take one.
        _ if whole(wanted) && shape[1].is_multiple_of(64) => wanted,
        _ if whole(GgmlDType::Q8_0) => GgmlDType::Q8_0,
        _ => GgmlDType::F16,
    }
}

/// Invented weights for all that `build` asks for, quantized.
fn quantize<M>(
    file: &Path,
    wanted: GgmlDType,
    rename: fn(&str) -> String,
    build: impl FnOnce(VarBuilder<'_>) -> Result<M>,
) {
    let asked = Arc::new(Mutex::new(BTreeMap::new()));
    let record = asked.clone();
    let vb = Invented::named(move |name, shape| {
        record.lock().unwrap().insert(name.to_owned(), shape.to_vec());
        Invented::tensor(name, shape).ok()
    });
    build(vb).unwrap();
    let mut tensors = Vec::new();
    for (name, shape) in asked.lock().unwrap().iter() {
        let tensor = Invented::tensor(name, shape).unwrap();
        tensors.push((rename(name), QTensor::quantize(&tensor, kind_of(name, shape, wanted)).unwrap()));
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(file).unwrap(), &[], &tensors).unwrap();
}

fn same(name: &str) -> String {
    name.to_owned()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let all = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(all.iter().all(|x| x.is_finite()));
    all.into_iter().map(f32::to_bits).collect()
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    (folder, file)
}

fn of_candle(file: &Path) -> QuantizedVarBuilder {
    QuantizedVarBuilder::from_gguf(file, &Device::Cpu).unwrap()
}

fn compare_flux(wanted: GgmlDType) -> Result<()> {
    let config: FluxConfig = serde_json::from_value(serde_json::json!({
        "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2,
        "attention_head_dim": 128, "joint_attention_dim": 96, "pooled_projection_dim": 20, "guidance_embeds": true,
        "axes_dims_rope": [16, 56, 56]
    }))
    .unwrap();
    let theirs = flux::model::Config {
        in_channels: 16,
        vec_in_dim: 20,
        context_in_dim: 96,
        hidden_size: 256,
        mlp_ratio: 4.0,
        num_heads: 2,
        depth: 2,
        depth_single_blocks: 2,
        axes_dim: vec![16, 56, 56],
        theta: 10_000,
        qkv_bias: true,
        guidance_embed: true,
    };
    let (_folder, file) = file();
    quantize(&file, wanted, same, |vb| Transformer::new(&config, vb));
    let (latents, text, pooled) = (noise(1, &[1, 4, 6, 10])?, noise(2, &[1, 15, 96])?, noise(3, &[1, 20])?);

    let theirs = Flux::new(&theirs, of_candle(&file))?;
    let State { img, img_ids, txt, txt_ids, vec } = State::new(&text, &pooled, &latents)?;
    let at = |value: f32| Tensor::new(&[value], &Device::Cpu);
    let out = theirs.forward(&img, &img_ids, &txt, &txt_ids, &at(0.37)?, &vec, Some(&at(3.5)?))?;
    let expected = flux::sampling::unpack(&out, 6 * 8, 10 * 8)?;

    let ours = load_unmanaged(&LoadSpec::new("transformer", [file]), |vb| Transformer::new(&config, vb)).unwrap();
    let out = ours.run(|m| m.forward(&latents, 370.0, 3.5, &text, &pooled)).unwrap();
    assert!(bits(&out) == bits(&expected), "{wanted:?}: other bits");
    Ok(())
}

#[test]
fn flux_equals_candles_own_quantized_model() {
    for wanted in [GgmlDType::Q4_0, GgmlDType::Q5_1, GgmlDType::Q8_0, GgmlDType::Q3K, GgmlDType::Q4K, GgmlDType::Q6K] {
        compare_flux(wanted).unwrap();
    }
}

fn t5_config() -> serde_json::Value {
    serde_json::json!({
        "vocab_size": 50, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 3, "num_heads": 4,
        "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1, "initializer_factor": 1.0,
        "is_encoder_decoder": true, "pad_token_id": 0, "eos_token_id": 1, "relative_attention_num_buckets": 32
    })
}

const IDS: [u32; 11] = [3, 10, 49, 0, 17, 3, 8, 21, 34, 1, 0];

fn encode(file: &Path, dtype: DType) -> Tensor {
    let config: t5::Config = serde_json::from_value(t5_config()).unwrap();
    let spec = LoadSpec { dtype, ..LoadSpec::new("text_encoder", [file.to_owned()]) };
    let ours = load_unmanaged(&spec, |vb| t5::Encoder::new(&config, vb)).unwrap();
    ours.run(|t5| t5.forward(&IDS)).unwrap().to_dtype(DType::F32).unwrap()
}

fn encoder(file: &Path, wanted: GgmlDType, rename: fn(&str) -> String) {
    let config: t5::Config = serde_json::from_value(t5_config()).unwrap();
    quantize(file, wanted, rename, |vb| t5::Encoder::new(&config, vb));
}

#[test]
fn t5_equals_candles_own_quantized_model() {
    for wanted in [GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::Q2K, GgmlDType::Q5K, GgmlDType::Q6K] {
        let (_folder, file) = file();
        encoder(&file, wanted, same);
        let config: quantized_t5::Config = serde_json::from_value(t5_config()).unwrap();
        let mut theirs = quantized_t5::T5EncoderModel::load(of_candle(&file), &config).unwrap();
        let ids = Tensor::new(&IDS, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected = theirs.forward(&ids).unwrap();
        assert!(bits(&encode(&file, DType::F32)) == bits(&expected), "{wanted:?}: other bits");
    }
}

/// As llama.cpp's converter names them.
fn of_llama_cpp(name: &str) -> String {
    let pairs = [
        ("shared.", "token_embd."),
        ("encoder.final_layer_norm", "enc.output_norm"),
        ("encoder.block", "enc.blk"),
        ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
        ("layer.0.SelfAttention.", "attn_"),
        ("layer.0.layer_norm", "attn_norm"),
        ("layer.1.layer_norm", "ffn_norm"),
        ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
        ("layer.1.DenseReluDense.wi_1", "ffn_up"),
        ("layer.1.DenseReluDense.wo", "ffn_down"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn t5_by_the_names_of_llama_cpp_is_the_same() {
    let (_folder, file) = file();
    encoder(&file, GgmlDType::Q4K, same);
    let expected = encode(&file, DType::F32);
    encoder(&file, GgmlDType::Q4K, of_llama_cpp);
    let file_names = mm_probe::inspect(&file, None).unwrap();
    assert_eq!(file_names.components[0].stacks[0].name, "enc.blk");
    assert!(bits(&encode(&file, DType::F32)) == bits(&expected), "other bits");
}

/// About the same: the kernels round activations to eight bits, and where those differ a little some are rounded the other way.
#[test]
fn t5_in_half_precision_is_near() {
    let (_folder, file) = file();
    encoder(&file, GgmlDType::Q8_0, of_llama_cpp);
    let exact = encode(&file, DType::F32);
    let square = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    for (dtype, most) in [(DType::F16, 0.1), (DType::BF16, 0.1)] {
        let error = (square(&(encode(&file, dtype) - &exact).unwrap()) / square(&exact)).sqrt();
        println!("{dtype:?}: {error:.1e}");
        assert!(error > 1e-5 && error < most, "{dtype:?}: {error}");
    }
}
