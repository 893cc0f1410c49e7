//! The command line.

use crate::size;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use mm_plan::{DType, Rule, Strategy};
use std::path::PathBuf;
use std::str::FromStr;

const FOOTER: &str = "\
Sizes are 12GiB, 12GB, 800MiB or plain bytes; rates are sizes per second. With --json, standard output is one JSON document.
Exit codes: 0 done, 2 bad usage, 3 no feasible plan, 4 bad checkpoint or spec, 5 device error.";

/// Runs models whose weights do not fit the device.
#[derive(Debug, Parser)]
#[command(name = "mm", version, after_help = FOOTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what this machine has
    Probe(ProbeArgs),
    /// Show what a checkpoint holds; only headers are read
    Inspect(InspectArgs),
    /// Decide which weights stay on the device and which stream, and say why
    Plan(Box<PlanArgs>),
    /// Generate an image within a memory budget
    Run(Box<RunArgs>),
    /// Sum up a recorded timeline, or make a page of it
    Trace(TraceArgs),
    /// Print the content ids of files, as the cache computes them
    Hash(HashArgs),
}

impl Command {
    pub(crate) const fn json(&self) -> bool {
        match self {
            Self::Probe(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Plan(args) => args.json,
            Self::Run(args) => args.json,
            Self::Trace(args) => args.json,
            Self::Hash(args) => args.json,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Answer with a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Diffusers folder, model folder, .safetensors or .gguf file, *.safetensors.index.json, or the id of a repository in the
    /// local Hugging Face cache, as org/name or org/name@revision
    pub(crate) path: PathBuf,
    /// Count this variant of the weights where there is one: fp16
    #[arg(long)]
    pub(crate) variant: Option<String>,
    /// Count weights as cast to this type instead of as stored
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<ComputeType>,
    /// Answer with a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["path", "spec"]))]
pub(crate) struct PlanArgs {
    /// Checkpoint to take the components from, as for `mm inspect`
    pub(crate) path: Option<PathBuf>,
    /// Take this variant of the weights where there is one: fp16
    #[arg(long, conflicts_with = "spec")]
    pub(crate) variant: Option<String>,
    /// Plan this JSON spec instead, `-` for standard input; several, one a line, are answered one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,
    /// Plan for a device with this much memory, all of it free
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse)]
    pub(crate) vram: Option<u64>,
    /// Plan for a host with this much memory, all of it available
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse)]
    pub(crate) ram: Option<u64>,
    /// Rate of copies to the device in bytes per second, as if it had been measured: 25GB
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = size::parse_rate)]
    pub(crate) link: Option<u64>,
    /// Rate of filling page-locked memory in bytes per second, as if measured; half of the link's where not known
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = size::parse_rate)]
    pub(crate) staging: Option<u64>,
    /// Strategy of all components
    #[arg(long, value_enum)]
    pub(crate) strategy: Option<StrategyName>,
    /// Rule by which `auto` decides
    #[arg(long, value_enum)]
    pub(crate) rule: Option<RuleName>,
    /// Blocks of a component that stay resident under block_pin; may be repeated
    #[arg(long, value_name = "NAME=N")]
    pub(crate) resident: Vec<Count>,
    /// Passes of a component per request; may be repeated
    #[arg(long, value_name = "NAME=N")]
    pub(crate) passes: Vec<Count>,
    /// Pixels of the image: keeps free on the device what computing is estimated to take on top of the weights
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "spec", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) width: Option<u32>,
    /// Pixels of the image, as for --width; what is not given is as the VAE was made for
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "spec", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) height: Option<u32>,
    /// Images at a time, as for --width; 1 unless given
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "spec", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: Option<u32>,
    /// Plan exactly as `mm run` with this device would, for a pipeline it can run: cpu, cuda or cuda:N
    #[arg(long, conflicts_with = "spec")]
    pub(crate) device: Option<DeviceName>,
    /// Count weights as cast to this type instead of as stored, or as the device's default
    #[arg(long, value_enum, conflicts_with = "spec")]
    pub(crate) dtype: Option<ComputeType>,
    /// Draw what a request is predicted to do to this .svg file; the link has to be known, from the spec or by --link
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Answer with a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Diffusers folder of the pipeline, or the id of a repository in the local Hugging Face cache
    pub(crate) path: PathBuf,
    /// Load this variant of the weights where there is one: fp16
    #[arg(long)]
    pub(crate) variant: Option<String>,
    /// What to draw
    #[arg(long)]
    pub(crate) prompt: String,
    /// Image file to write, .png
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    pub(crate) output: PathBuf,
    /// What to lead away from
    #[arg(long, default_value = "")]
    pub(crate) negative: String,
    /// How strongly to follow the prompt; 0 makes no negative pass (Stable Diffusion: up to 1; FLUX.1 never makes one)
    #[arg(long, value_name = "X", allow_negative_numbers = true, default_value_t = 3.0)]
    pub(crate) guidance: f64,
    /// Denoising steps
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) steps: u32,
    /// Seed of the initial latents; the same image on every platform
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Pixels; the size the VAE was made for unless given
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) width: Option<u32>,
    /// Pixels; the size the VAE was made for unless given
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) height: Option<u32>,
    /// Add this LoRA, .safetensors, in kohya's, PEFT's or diffusers' names, at this scale, or 1; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]")]
    pub(crate) lora: Vec<LoraArg>,
    /// Start from the tensor `initial_latents` of this .safetensors file
    #[arg(long, value_name = "FILE")]
    pub(crate) latents: Option<PathBuf>,
    /// Write the tensors on the way, every step's latents among them, to this .safetensors file
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    /// Device to compute on: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Type to compute in: f32 on the CPU and bf16 on CUDA unless given
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<ComputeType>,
    /// Budget for weights on the device; on the CPU the available RAM unless given
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse)]
    pub(crate) vram: Option<u64>,
    /// Plan for a host with this much memory available
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse)]
    pub(crate) ram: Option<u64>,
    /// Strategy of all components
    #[arg(long, value_enum, conflicts_with = "plan")]
    pub(crate) strategy: Option<StrategyName>,
    /// Run exactly this plan, or the one in this answer of `mm run --json`
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Measure this machine and the model while it runs, plan with what was measured, and keep it for the next run that is
    /// calibrated
    #[arg(long, conflicts_with = "plan")]
    pub(crate) calibrate: bool,
    /// Record what happened when: as a page for a browser, .html, or as a Chrome trace, .json, which opens in Perfetto and
    /// with `mm trace`
    #[arg(long, value_name = "FILE")]
    pub(crate) timeline: Option<PathBuf>,
    /// Answer with a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Timeline that `mm run --timeline` wrote, .json
    pub(crate) file: PathBuf,
    /// Draw it as a page for a browser to this .html file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Answer with a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HashArgs {
    /// Files, folders for all files under them, or ids of repositories in the local cache. Of a Diffusers folder each component
    /// has an id too, that of its configuration and the weights that would be loaded
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Also the id of each tensor in a .safetensors file
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Hash everything, whatever the index in the user's cache folder ($MM_CACHE_DIR) knows, and remember nothing
    #[arg(long)]
    pub(crate) no_index: bool,
    /// Answer with a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Types that weights are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComputeType {
    F32,
    Bf16,
    F16,
}

impl From<ComputeType> for DType {
    fn from(dtype: ComputeType) -> Self {
        match dtype {
            ComputeType::F32 => Self::F32,
            ComputeType::Bf16 => Self::Bf16,
            ComputeType::F16 => Self::F16,
        }
    }
}

/// [`Strategy`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StrategyName {
    Auto,
    NoOffload,
    ModelOffload,
    BlockPin,
    GroupOffload,
}

impl From<StrategyName> for Strategy {
    fn from(name: StrategyName) -> Self {
        match name {
            StrategyName::Auto => Self::Auto,
            StrategyName::NoOffload => Self::NoOffload,
            StrategyName::ModelOffload => Self::ModelOffload,
            StrategyName::BlockPin => Self::BlockPin,
            StrategyName::GroupOffload => Self::GroupOffload,
        }
    }
}

/// [`Rule`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RuleName {
    Threshold,
    Cost,
}

impl From<RuleName> for Rule {
    fn from(name: RuleName) -> Self {
        match name {
            RuleName::Threshold => Self::Threshold,
            RuleName::Cost => Self::Cost,
        }
    }
}

/// A component and a number: `transformer=30`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) name: String,
    pub(crate) count: u32,
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once('=').ok_or("write a component's name and a number: transformer=30")?;
        let count = count.parse().map_err(|_| format!("`{count}` is no number from 0 to {}", u32::MAX))?;
        match name {
            "" => Err("the component's name is missing before `=`".into()),
            name => Ok(Self { name: name.into(), count }),
        }
    }
}

/// A LoRA and its scale: `outline.safetensors:0.5`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraArg {
    pub(crate) file: PathBuf,
    pub(crate) scale: f64,
}

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What follows the last colon is a scale if it is a number; file names may have colons too.
        let scaled = text.rsplit_once(':').and_then(|(file, scale)| Some((file, scale.parse::<f64>().ok()?)));
        let (file, scale) = scaled.unwrap_or((text, 1.0));
        if file.is_empty() {
            return Err("write a file, or a file and a scale: outline.safetensors:0.5".into());
        }
        if !scale.is_finite() {
            return Err(format!("{scale} is no scale; give a number"));
        }
        Ok(Self { file: file.into(), scale })
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Cpu,
    Cuda(u32),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').map_or((text, Ok(0)), |(kind, index)| (kind, index.parse())) {
            ("cpu", _) if text == "cpu" => Ok(Self::Cpu),
            ("cuda", Ok(index)) => Ok(Self::Cuda(index)),
            _ => Err("devices are cpu, cuda and cuda:N".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn loras() {
        for (text, file, scale) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.5", "a.safetensors", 0.5),
            ("a:b:-2", "a:b", -2.0),
            ("c:/a.safetensors", "c:/a.safetensors", 1.0),
            ("a:", "a:", 1.0),
        ] {
            assert_eq!(text.parse(), Ok(LoraArg { file: file.into(), scale }), "{text}");
        }
        for text in ["", ":1", "a:nan", "a:inf"] {
            assert!(text.parse::<LoraArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn counts_and_devices() {
        assert_eq!("a=b=3".parse::<Count>().map(|c| c.count), Err("`b=3` is no number from 0 to 4294967295".into()));
        assert_eq!("vae=3".parse(), Ok(Count { name: "vae".into(), count: 3 }));
        for text in ["", "vae", "=3", "vae=", "vae=-1", "vae=4294967296"] {
            assert!(text.parse::<Count>().is_err(), "{text}");
        }
        assert_eq!("cpu".parse(), Ok(DeviceName::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(3)));
        for text in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(text.parse::<DeviceName>().is_err(), "{text}");
        }
    }
}
