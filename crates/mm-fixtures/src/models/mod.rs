//! The models, each built as its code builds it.

mod clip;
mod flux;
mod qwen3;
mod resnet;
mod sd;
mod sd3;
mod sdxl;
mod t5;
mod tokenizers;
mod unet;
mod vae;
mod wan;
mod wan_vae;
mod wuerstchen;
mod z_image;

use crate::{Component, Error, Layout, Options, builder::Builder, options::named, sizes::Sizes};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::{fmt, str::FromStr};

/// The models there are fixtures of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Model {
    /// Tongyi-MAI/Z-Image-Turbo: 30 layers and 4 refiners, Qwen3-4B.
    ZImageTurbo,
    /// black-forest-labs/FLUX.1-dev: 19 double and 38 single blocks, CLIP-L, T5-XXL.
    FluxDev,
    /// stabilityai/stable-diffusion-3.5-large: 38 blocks, CLIP-L, CLIP-G, T5-XXL.
    Sd35Large,
    /// stable-diffusion-v1-5/stable-diffusion-v1-5: a UNet, CLIP-L.
    Sd15,
    /// stabilityai/stable-diffusion-2-1: a UNet, CLIP-H.
    Sd21,
    /// stabilityai/stable-diffusion-xl-base-1.0: a UNet, CLIP-L, CLIP-G.
    Sdxl,
    /// warp-ai/wuerstchen: a prior, a decoder, a VQ model, CLIP-G, CLIP-H.
    Wuerstchen,
    /// Wan-AI/Wan2.1-T2V-14B: 40 blocks, UMT5-XXL.
    Wan14b,
    /// The encoder of T5-XXL alone.
    T5Xxl,
    /// Qwen3-4B alone.
    #[allow(non_camel_case_types, reason = "the name's own underscore keeps 3 and 4 apart")]
    Qwen3_4b,
}

impl Model {
    /// Every model.
    pub const ALL: [Model; 10] = [
        Model::ZImageTurbo,
        Model::FluxDev,
        Model::Sd35Large,
        Model::Sd15,
        Model::Sd21,
        Model::Sdxl,
        Model::Wuerstchen,
        Model::Wan14b,
        Model::T5Xxl,
        Model::Qwen3_4b,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Model::ZImageTurbo => "z-image-turbo",
            Model::FluxDev => "flux-dev",
            Model::Sd35Large => "sd3.5-large",
            Model::Sd15 => "sd1.5",
            Model::Sd21 => "sd2.1",
            Model::Sdxl => "sdxl",
            Model::Wuerstchen => "wuerstchen",
            Model::Wan14b => "wan-14b",
            Model::T5Xxl => "t5-xxl",
            Model::Qwen3_4b => "qwen3-4b",
        }
    }

    /// Owner and name on the hub, in the form of Diffusers.
    pub fn repository(self) -> (&'static str, &'static str) {
        match self {
            Model::ZImageTurbo => ("Tongyi-MAI", "Z-Image-Turbo"),
            Model::FluxDev => ("black-forest-labs", "FLUX.1-dev"),
            Model::Sd35Large => ("stabilityai", "stable-diffusion-3.5-large"),
            Model::Sd15 => ("stable-diffusion-v1-5", "stable-diffusion-v1-5"),
            Model::Sd21 => ("stabilityai", "stable-diffusion-2-1"),
            Model::Sdxl => ("stabilityai", "stable-diffusion-xl-base-1.0"),
            Model::Wuerstchen => ("warp-ai", "wuerstchen"),
            Model::Wan14b => ("Wan-AI", "Wan2.1-T2V-14B-Diffusers"),
            Model::T5Xxl => ("google", "t5-v1_1-xxl"),
            Model::Qwen3_4b => ("Qwen", "Qwen3-4B"),
        }
    }

    /// What the file of the layout `single` is called.
    pub fn single_file(self) -> &'static str {
        match self {
            Model::ZImageTurbo => "z_image_turbo_bf16.safetensors",
            Model::FluxDev => "flux1-dev.safetensors",
            Model::Sd35Large => "sd3.5_large_incl_clips_t5xxl.safetensors",
            Model::Sd15 => "v1-5-pruned-emaonly.safetensors",
            Model::Sd21 => "v2-1_768-ema-pruned.safetensors",
            Model::Sdxl => "sd_xl_base_1.0.safetensors",
            Model::Wuerstchen => "wuerstchen.safetensors",
            Model::Wan14b => "wan2.1_t2v_14B.safetensors",
            Model::T5Xxl => "t5xxl.safetensors",
            Model::Qwen3_4b => "qwen_3_4b.safetensors",
        }
    }
}

impl FromStr for Model {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        named(&Model::ALL, Model::name, "MODEL", text)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What makes components a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Pipeline {
    pub(crate) class: &'static str,
    /// The parts that hold no weights.
    pub(crate) parts: Vec<Part>,
    /// Further entries of `model_index.json`.
    pub(crate) extra: Value,
}

/// A scheduler or tokenizer: an entry of `model_index.json` and a folder of small files.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) library: &'static str,
    pub(crate) class: &'static str,
    pub(crate) files: Vec<(&'static str, Value)>,
}

/// The components of a model; the pipeline is None for a lone model.
pub(crate) fn build(model: Model, options: &Options) -> (Vec<Component>, Option<Pipeline>) {
    let sizes = Sizes::new(options);
    let single = options.layout == Layout::Single;
    match model {
        Model::ZImageTurbo => z_image::build(sizes, single),
        Model::FluxDev => flux::build(sizes, single, options.gguf.is_some()),
        Model::Sd35Large => sd3::build(sizes, single),
        Model::Sd15 => sd::one(sizes, single),
        Model::Sd21 => sd::two(sizes, single),
        Model::Sdxl => sdxl::build(sizes, single),
        Model::Wuerstchen => wuerstchen::build(sizes, single),
        Model::Wan14b => wan::build(sizes, single),
        Model::T5Xxl if options.gguf.is_some() => (vec![t5::T5::xxl(sizes).gguf(model.name())], None),
        Model::T5Xxl => (vec![t5::T5::xxl(sizes).component(model.name(), Dtype::BF16)], None),
        Model::Qwen3_4b => (vec![qwen3::Qwen3::new(sizes).component(model.name(), Dtype::BF16)], None),
    }
}

/// A component of a class of diffusers.
fn diffusers(name: &str, config: Value, dtype: Dtype, build: impl FnOnce(&mut Builder)) -> Component {
    let class = config["_class_name"].as_str().unwrap_or_default().to_owned();
    component(name, class, false, config, dtype, build)
}

/// A component of a class of transformers.
fn transformers(name: &str, config: Value, dtype: Dtype, build: impl FnOnce(&mut Builder)) -> Component {
    let class = config["architectures"][0].as_str().unwrap_or_default().to_owned();
    component(name, class, true, config, dtype, build)
}

fn component(
    name: &str,
    class: String,
    transformers: bool,
    mut config: Value,
    dtype: Dtype,
    build: impl FnOnce(&mut Builder),
) -> Component {
    if transformers {
        config["torch_dtype"] = match dtype {
            Dtype::F16 => "float16",
            Dtype::F32 => "float32",
            _ => "bfloat16",
        }
        .into();
    }
    let mut builder = Builder::new(dtype);
    build(&mut builder);
    Component { name: name.to_owned(), class, transformers, config, tensors: builder.finish(), gguf: false }
}

fn scheduler(class: &'static str, config: Value) -> Part {
    Part { name: "scheduler", library: "diffusers", class, files: vec![("scheduler_config.json", config)] }
}

/// A tokenizer's small files.
fn tokenizer(name: &'static str, class: &'static str, longest: usize, mut files: Vec<(&'static str, Value)>) -> Part {
    files.push(("tokenizer_config.json", json!({ "tokenizer_class": class, "model_max_length": longest })));
    files.push(("special_tokens_map.json", json!({ "pad_token": "<pad>", "unk_token": "<unk>" })));
    Part { name, library: "transformers", class, files }
}
