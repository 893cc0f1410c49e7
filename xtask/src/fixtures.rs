//! `cargo xtask fixtures`: the flags of mm-fixtures.

use anyhow::Result;
use clap::{builder::PossibleValuesParser, builder::TypedValueParser};
use mm_fixtures::{Fill, Fixture, Layout, Model, Options, Quantization};
use safetensors::Dtype;
use std::{path::PathBuf, str::FromStr};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model whose checkpoint to write.
    #[arg(value_parser = one_of(Model::ALL.map(Model::name)).try_map(|name| Model::from_str(&name)))]
    model: Model,
    /// The folder to write into: a new or an empty one.
    #[arg(long)]
    out: PathBuf,
    /// Blocks of the main model's main stack.
    #[arg(long)]
    layers: Option<usize>,
    /// Width of the main model: a multiple of 8.
    #[arg(long)]
    dim: Option<usize>,
    /// About how many times the published bytes, for all components.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Only this component; may be repeated.
    #[arg(long, value_name = "COMPONENT")]
    only: Vec<String>,
    /// What the tensors hold; sparse takes no room on disk.
    #[arg(long, default_value_t, value_parser = one_of(Fill::ALL.map(Fill::name)).try_map(|name| Fill::from_str(&name)))]
    fill: Fill,
    /// Of the random fill.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Instead of the stored dtype.
    #[arg(long, value_parser = one_of(["f32", "bf16", "f16"]))]
    dtype: Option<String>,
    /// Largest shard, such as 600MiB or 5GB; 10GB for diffusers and 5GB for transformers unless given.
    #[arg(long, value_parser = size)]
    shard: Option<u64>,
    /// How the files lie.
    #[arg(long, default_value_t, value_parser = one_of(Layout::ALL.map(Layout::name)).try_map(|name| Layout::from_str(&name)))]
    layout: Layout,
    /// Transformers of FLUX and encoders of T5 as GGUF files, matrices quantized like this.
    #[arg(long, value_parser = one_of(Quantization::ALL.map(Quantization::name)).try_map(|name| Quantization::from_str(&name)))]
    gguf: Option<Quantization>,
    /// Also write what repositories have beside the weights: an fp16 set, .bin twins, onnx, a stray file.
    #[arg(long)]
    variants: bool,
}

fn one_of<const N: usize>(names: [&'static str; N]) -> PossibleValuesParser {
    PossibleValuesParser::new(names)
}

fn size(text: &str) -> Result<u64, String> {
    parse_size::parse_size(text).map_err(|e| format!("{e}; write a size such as 600MiB or 5GB"))
}

pub(crate) fn write(args: &Args) -> Result<()> {
    let options = Options {
        layers: args.layers,
        dim: args.dim,
        scale: args.scale,
        only: args.only.clone(),
        fill: args.fill,
        seed: args.seed,
        dtype: args.dtype.as_deref().map(|dtype| match dtype {
            "f32" => Dtype::F32,
            "f16" => Dtype::F16,
            _ => Dtype::BF16,
        }),
        shard: args.shard,
        layout: args.layout,
        gguf: args.gguf,
        variants: args.variants,
    };
    let fixture = Fixture::new(args.model, &options)?;
    let written = fixture.write(&args.out)?;
    for component in &fixture.components {
        let (tensors, bytes) = (component.tensors.len(), component.bytes());
        println!("{:<16} {:<30} {tensors:>5} tensors {bytes:>16} bytes", component.name, component.class);
    }
    println!("{} files, {} bytes in {}", written.paths.len(), written.bytes, args.out.display());
    Ok(())
}
