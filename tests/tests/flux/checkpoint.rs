//! A small FLUX.1 checkpoint of random weights.

use candle_core::{Device, Tensor};
use mm_diffusion::{Flux, Folder, LoadOptions, Request, Unmanaged};
use mm_fixtures::{Fill, Fixture, Model, Options};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

pub(crate) fn request() -> Request {
    Request {
        prompt: "a red cat under an Umbrella".into(),
        guidance: 3.5,
        steps: 2,
        width: 48,
        height: 32,
        ..Request::default()
    }
}

pub(crate) struct Checkpoint(TempDir);

impl Checkpoint {
    /// Two double and four single blocks. The weights are four times the fixture's, exactly, so that no part of a model
    /// vanishes beside what goes around it.
    pub(crate) fn new() -> Self {
        let checkpoint = Self(tempfile::tempdir().unwrap());
        let options =
            Options { layers: Some(2), dim: Some(144), scale: 0.0001, fill: Fill::Random, ..Options::default() };
        let written = Fixture::new(Model::FluxDev, &options).unwrap().write(checkpoint.0.path()).unwrap();
        for file in written.paths.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")) {
            let larger = |tensor: Tensor| match is_norm(&tensor) {
                true => tensor,
                false => (tensor * 4.0).unwrap(),
            };
            let tensors = load(file).into_iter().map(|(name, tensor)| (name, larger(tensor))).collect();
            candle_core::safetensors::save(&tensors, file).unwrap();
        }
        checkpoint
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.path().join(relative)
    }

    pub(crate) fn folder(&self) -> Folder {
        Folder::open(self.0.path()).unwrap()
    }

    pub(crate) fn set(&self, file: &str, key: &str, value: serde_json::Value) {
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        json[key] = value;
        fs::write(self.path(file), json.to_string()).unwrap();
    }

    /// The message must name these.
    pub(crate) fn refused(&self, parts: &[&str]) {
        let error = match Flux::load(&self.folder(), &LoadOptions::default(), &Unmanaged) {
            Ok(_) => panic!("loaded; expected an error that names {parts:?}"),
            Err(error) => error.to_string(),
        };
        assert!(parts.iter().all(|part| error.contains(part)), "{error}\nlacks some of {parts:?}");
    }

    /// Gives the transformer's weights the names and the form of Black Forest Labs' own files.
    pub(crate) fn rename_to_original(&self) {
        let mut from = load(&self.path(TRANSFORMER));
        let mut to = HashMap::new();
        let names: Vec<_> = from.keys().cloned().collect();
        let mut join = |to_name: String, parts: &[String]| {
            let parts: Vec<_> = parts.iter().map(|part| from.remove(part).unwrap()).collect();
            to.insert(to_name, Tensor::cat(&parts, 0).unwrap());
        };
        for name in names.iter().filter(|name| name.ends_with("attn.to_q.weight")) {
            let block = name.trim_end_matches("attn.to_q.weight");
            let index = block.split('.').nth(1).unwrap();
            for last in ["weight", "bias"] {
                let part = |part: &str| format!("{block}{part}.{last}");
                let three = |names: [&str; 3]| names.map(part);
                let image = three(["attn.to_q", "attn.to_k", "attn.to_v"]);
                if block.starts_with("single") {
                    let all = [&image[..], &[part("proj_mlp")]].concat();
                    join(format!("single_blocks.{index}.linear1.{last}"), &all);
                } else {
                    join(format!("double_blocks.{index}.img_attn.qkv.{last}"), &image);
                    let text = three(["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]);
                    join(format!("double_blocks.{index}.txt_attn.qkv.{last}"), &text);
                }
            }
        }
        for (name, tensor) in from {
            let swapped = name.starts_with("norm_out.linear");
            let halves = tensor.chunk(2, 0).unwrap();
            let tensor = if swapped { Tensor::cat(&[&halves[1], &halves[0]], 0).unwrap() } else { tensor };
            to.insert(original(&name), tensor);
        }
        candle_core::safetensors::save(&to, self.path(TRANSFORMER)).unwrap();
    }
}

/// The name in the original files of a tensor that is one there too.
fn original(name: &str) -> String {
    let single = name.starts_with("single_transformer_blocks.");
    let renamed = match name.starts_with("proj_out.") {
        true => name.replace("proj_out", "final_layer.linear"),
        false => name.replace("proj_out", "linear2"),
    };
    let norms = if single { "norm" } else { "img_attn.norm" };
    let pairs = [
        ("single_transformer_blocks", "single_blocks".to_owned()),
        ("transformer_blocks", "double_blocks".to_owned()),
        ("norm1_context.linear", "txt_mod.lin".to_owned()),
        ("norm1.linear", "img_mod.lin".to_owned()),
        ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale".to_owned()),
        ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale".to_owned()),
        ("attn.norm_q.weight", format!("{norms}.query_norm.scale")),
        ("attn.norm_k.weight", format!("{norms}.key_norm.scale")),
        ("attn.to_out.0", "img_attn.proj".to_owned()),
        ("attn.to_add_out", "txt_attn.proj".to_owned()),
        ("ff.net.0.proj", "img_mlp.0".to_owned()),
        ("ff.net.2", "img_mlp.2".to_owned()),
        ("ff_context.net.0.proj", "txt_mlp.0".to_owned()),
        ("ff_context.net.2", "txt_mlp.2".to_owned()),
        ("norm_out.linear", "final_layer.adaLN_modulation.1".to_owned()),
        ("x_embedder", "img_in".to_owned()),
        ("context_embedder", "txt_in".to_owned()),
        ("time_text_embed.timestep_embedder", "time_in".to_owned()),
        ("time_text_embed.guidance_embedder", "guidance_in".to_owned()),
        ("time_text_embed.text_embedder", "vector_in".to_owned()),
        ("linear_1", "in_layer".to_owned()),
        ("linear_2", "out_layer".to_owned()),
    ];
    let renamed = if single { renamed.replace(".norm.linear", ".modulation.lin") } else { renamed };
    pairs.iter().fold(renamed, |name, (from, to)| name.replace(from, to))
}

fn load(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn is_norm(tensor: &Tensor) -> bool {
    let values = tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.iter().all(|value| *value == 1.0)
}
