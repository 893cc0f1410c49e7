//! A broken or unsupported checkpoint is an error that names the file, and the key or tensor.

mod common;

use candle_core::{DType, Tensor};
use common::{golden, load, relative_error, shapes};
use mm_diffusion::Request;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A copy of the checkpoint, to be broken.
struct Copy(TempDir);

impl Copy {
    fn new() -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        for folder in ["", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"] {
            fs::create_dir_all(copy.path(folder)).unwrap();
            for entry in fs::read_dir(shapes().join(folder)).unwrap() {
                let from = entry.unwrap().path();
                if from.is_file() {
                    fs::write(copy.path(folder).join(from.file_name().unwrap()), fs::read(&from).unwrap()).unwrap();
                }
            }
        }
        copy
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.0.path().join(relative)
    }

    fn remove(&self, relative: &str) {
        fs::remove_file(self.path(relative)).unwrap();
    }

    fn edit(&self, file: &str, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
        let mut json = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        change(&mut json);
        fs::write(self.path(file), serde_json::to_vec(&json).unwrap()).unwrap();
    }

    fn set(&self, file: &str, key: &str, value: serde_json::Value) {
        self.edit(file, |json| drop(json.insert(key.to_owned(), value)));
    }

    fn rewrite(&self, file: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let device = candle_core::Device::Cpu;
        let mut tensors = candle_core::safetensors::load(self.path(file), &device).unwrap().into_iter().collect();
        change(&mut tensors);
        let tensors: HashMap<_, _> = tensors.into_iter().collect();
        candle_core::safetensors::save(&tensors, self.path(file)).unwrap();
    }

    /// The message, which must name these.
    fn refused(&self, parts: &[&str]) {
        match load(self.0.path(), DType::F32) {
            Ok(_) => panic!("loaded; expected an error that names {parts:?}"),
            Err(error) => {
                let message = error.to_string();
                let missing: Vec<_> = parts.iter().filter(|part| !message.contains(*part)).collect();
                assert!(missing.is_empty(), "{message}\nlacks {missing:?}");
            }
        }
    }

    fn makes_the_golden_image(&self) {
        let golden = golden(0);
        let request = Request { trace: false, ..golden.request };
        let image = load(self.0.path(), DType::F32).unwrap().generate(&request, |_| ()).unwrap().image;
        assert!(relative_error(&image, &golden.tensors["image"]) < 1e-3);
    }
}

const SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";
const INDEX: &str = "transformer/diffusion_pytorch_model.safetensors.index.json";

#[test]
fn files_that_are_missing() {
    let gone = load(Path::new("/nowhere/at/all"), DType::F32).err().unwrap().to_string();
    assert!(gone.contains("/nowhere/at/all is missing"), "{gone}");
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/chat_template.jinja",
        "transformer/config.json",
        SHARD,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ] {
        let copy = Copy::new();
        copy.remove(file);
        copy.refused(&[file, "is missing"]);
    }
}

#[test]
fn json_that_is_broken() {
    for file in ["model_index.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json", INDEX] {
        let copy = Copy::new();
        fs::write(copy.path(file), "{\"a\": ").unwrap();
        copy.refused(&[file, "line 1"]);
    }
    let copy = Copy::new();
    fs::write(copy.path("tokenizer/tokenizer.json"), "{}").unwrap();
    copy.refused(&["tokenizer/tokenizer.json"]);
    fs::write(copy.path("tokenizer/tokenizer.json"), [0xff, 0xfe]).unwrap();
    copy.refused(&["tokenizer/tokenizer.json"]);
}

#[test]
fn classes_that_are_not_supported() {
    let copy = Copy::new();
    copy.set("model_index.json", "_class_name", "FluxPipeline".into());
    copy.refused(&["model_index.json", "FluxPipeline", "supported: ZImagePipeline"]);
    for (component, supported) in [
        ("scheduler", "FlowMatchEulerDiscreteScheduler"),
        ("text_encoder", "Qwen3Model, Qwen3ForCausalLM"),
        ("transformer", "ZImageTransformer2DModel"),
        ("vae", "AutoencoderKL"),
    ] {
        let copy = Copy::new();
        copy.set("model_index.json", component, ["diffusers", "Unheard"].as_slice().into());
        copy.refused(&["model_index.json", component, "Unheard", supported]);
        copy.edit("model_index.json", |json| drop(json.remove(component)));
        copy.refused(&["model_index.json", component, "nothing"]);
    }
}

#[test]
fn options_that_are_not_supported() {
    for (file, key, value) in [
        ("scheduler/scheduler_config.json", "use_karras_sigmas", true.into()),
        ("scheduler/scheduler_config.json", "use_exponential_sigmas", true.into()),
        ("scheduler/scheduler_config.json", "use_beta_sigmas", true.into()),
        ("scheduler/scheduler_config.json", "invert_sigmas", true.into()),
        ("scheduler/scheduler_config.json", "stochastic_sampling", true.into()),
        ("scheduler/scheduler_config.json", "shift", (-1.0).into()),
        ("text_encoder/config.json", "hidden_act", "gelu".into()),
        ("text_encoder/config.json", "use_sliding_window", true.into()),
        ("text_encoder/config.json", "num_key_value_heads", 3.into()),
        ("text_encoder/config.json", "num_hidden_layers", 0.into()),
        ("transformer/config.json", "n_heads", 0.into()),
        ("transformer/config.json", "n_layers", u64::MAX.into()),
        ("transformer/config.json", "axes_dims", vec![8, 8, 10].into()),
        ("transformer/config.json", "all_patch_size", vec![4].into()),
        ("transformer/config.json", "siglip_feat_dim", 64.into()),
        ("transformer/config.json", "cap_feat_dim", 64.into()),
        ("vae/config.json", "up_block_types", vec!["AttnUpDecoderBlock2D"; 4].into()),
        ("vae/config.json", "block_out_channels", serde_json::json!([])),
        ("vae/config.json", "norm_num_groups", 7.into()),
    ] {
        let copy = Copy::new();
        copy.set(file, key, value);
        copy.refused(&[file, key]);
    }
}

#[test]
fn weights_that_are_damaged() {
    let copy = Copy::new();
    let bytes = fs::read(copy.path(SHARD)).unwrap();
    fs::write(copy.path(SHARD), &bytes[..bytes.len() / 2]).unwrap();
    copy.refused(&["transformer: ", SHARD, "truncated"]);

    let copy = Copy::new();
    copy.rewrite("text_encoder/model.safetensors", |tensors| drop(tensors.remove("layers.3.mlp.up_proj.weight")));
    copy.refused(&["text_encoder: ", "layers.3.mlp.up_proj.weight"]);

    let copy = Copy::new();
    copy.rewrite("vae/diffusion_pytorch_model.safetensors", |tensors| {
        let bias = tensors["decoder.conv_in.bias"].narrow(0, 0, 10).unwrap().contiguous().unwrap();
        tensors.insert("decoder.conv_in.bias".into(), bias);
    });
    copy.refused(&["vae: ", "decoder.conv_in.bias", "expected: [64]", "got: [10]"]);
}

#[test]
fn an_index_that_leads_elsewhere() {
    for shard in ["../vae/diffusion_pytorch_model.safetensors", "/etc/hostname", ".."] {
        let copy = Copy::new();
        copy.edit(INDEX, |json| drop(json.insert("weight_map".into(), serde_json::json!({ "layers.0": shard }))));
        copy.refused(&[INDEX, shard, "outside its folder"]);
    }
    let copy = Copy::new();
    copy.set(INDEX, "weight_map", serde_json::json!({}));
    copy.refused(&[INDEX, "names no file"]);
}

#[test]
fn a_token_beyond_the_vocabulary() {
    let copy = Copy::new();
    copy.set("text_encoder/config.json", "vocab_size", 8.into());
    copy.rewrite("text_encoder/model.safetensors", |tensors| {
        let embed = tensors["embed_tokens.weight"].narrow(0, 0, 8).unwrap().contiguous().unwrap();
        tensors.insert("embed_tokens.weight".into(), embed);
    });
    let request = golden(0).request;
    let error = load(copy.0.path(), DType::F32).unwrap().generate(&request, |_| ()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("vocab_size, 8"), "{error}");
}

/// How the released checkpoint differs in form: a causal language model, `rope_theta` at the top, the
/// template in the tokenizer's configuration, one weight file.
#[test]
fn other_forms_of_the_same_checkpoint() {
    let copy = Copy::new();
    copy.set("model_index.json", "text_encoder", ["transformers", "Qwen3ForCausalLM"].as_slice().into());
    copy.edit("text_encoder/config.json", |json| {
        json.remove("rope_parameters");
        json.insert("rope_theta".into(), 10_000.into());
        json.insert("rope_scaling".into(), serde_json::Value::Null);
    });
    copy.rewrite("text_encoder/model.safetensors", |tensors| {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (format!("model.{name}"), t)).collect();
        // What the pipeline doesn't need is not asked for.
        tensors.retain(|name, _| name != "model.norm.weight" && !name.starts_with("model.layers.8."));
    });
    let template = fs::read_to_string(copy.path("tokenizer/chat_template.jinja")).unwrap();
    copy.remove("tokenizer/chat_template.jinja");
    copy.set("tokenizer/tokenizer_config.json", "chat_template", template.into());
    copy.remove(INDEX);
    let mut all = HashMap::new();
    for shard in 1..=3 {
        let shard = copy.path(&format!("transformer/diffusion_pytorch_model-0000{shard}-of-00003.safetensors"));
        all.extend(candle_core::safetensors::load(&shard, &candle_core::Device::Cpu).unwrap());
        fs::remove_file(shard).unwrap();
    }
    candle_core::safetensors::save(&all, copy.path("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    copy.makes_the_golden_image();
}
