//! What to write: the flags of `cargo xtask fixtures`.

use crate::Error;
use safetensors::Dtype;
use std::{fmt, str::FromStr};

/// How a fixture differs from the published checkpoint. The default is the full size, sparse, as a Diffusers folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Blocks of the main stack of the main model. FLUX gets twice as many single blocks; the shallower levels of
    /// SDXL follow in proportion.
    pub layers: Option<usize>,
    /// Width of the main model: a multiple of 8. For SDXL the channels of the first level.
    pub dim: Option<usize>,
    /// Bytes of all components, about: widths and vocabularies times its root.
    pub scale: f64,
    /// Only these components; empty: all.
    pub only: Vec<String>,
    /// What the tensors hold.
    pub fill: Fill,
    /// Of the random fill.
    pub seed: u64,
    /// Instead of the stored dtype: F32, BF16 or F16. Integers stay integers.
    pub dtype: Option<Dtype>,
    /// Bytes of tensors in a file at most, but at least one tensor. None: 10 GB, text encoders 5 GB.
    pub shard: Option<u64>,
    /// How the files lie.
    pub layout: Layout,
    /// Transformers of FLUX and encoders of T5 as GGUF files in their folders, with the names that are usual there; matrices of
    /// this type where their rows are whole blocks.
    pub gguf: Option<Quantization>,
    /// Also writes what repositories have beside the weights and no loader may count.
    pub variants: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            layers: None,
            dim: None,
            scale: 1.0,
            only: Vec::new(),
            fill: Fill::Sparse,
            seed: 0,
            dtype: None,
            shard: None,
            layout: Layout::Diffusers,
            gguf: None,
            variants: false,
        }
    }
}

const MOST_LAYERS: usize = 10_000;
const WIDEST: usize = 1 << 20;
const LARGEST_SCALE: f64 = 10_000.0;

impl Options {
    /// Refuses what no checkpoint can be made from; the error names the flag.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(layers) = self.layers.filter(|n| !(1..=MOST_LAYERS).contains(n)) {
            return Err(Error::option("--layers", layers, format!("give 1 to {MOST_LAYERS} blocks")));
        }
        if let Some(dim) = self.dim.filter(|n| !(8..=WIDEST).contains(n) || n % 8 != 0) {
            return Err(Error::option("--dim", dim, format!("give a multiple of 8, at most {WIDEST}")));
        }
        // Negated, so that a NaN is refused too.
        if !(self.scale > 0.0 && self.scale <= LARGEST_SCALE) {
            return Err(Error::option(
                "--scale",
                self.scale,
                format!("give a number above 0, at most {LARGEST_SCALE}"),
            ));
        }
        if let Some(dtype) = self.dtype.filter(|d| ![Dtype::F32, Dtype::BF16, Dtype::F16].contains(d)) {
            return Err(Error::option("--dtype", format!("{dtype:?}"), "give f32, bf16 or f16"));
        }
        if let Some(quantization) = self.gguf.filter(|_| self.layout == Layout::Single || self.variants) {
            let why = "a GGUF file lies in a component's folder, alone; leave --layout single and --variants out";
            return Err(Error::option("--gguf", quantization.name(), why));
        }
        match self.shard {
            Some(0) => Err(Error::option("--shard", 0, "a file holds at least one byte; give a size such as 5GB")),
            Some(size) if self.layout == Layout::Single => {
                Err(Error::option("--shard", size, "the layout `single` is one file; leave one of the two out"))
            }
            _ => Ok(()),
        }
    }
}

/// What the tensors of a file hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fill {
    /// Normal with a standard deviation of 0.02, weights of norms ones: what is computed with it stays finite.
    Random,
    /// Zeros that take their room on disk.
    Zeros,
    /// Zeros that take no room on disk, where the file system knows holes.
    #[default]
    Sparse,
}

/// How the files of a checkpoint lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// A pipeline's folder with a folder for each component; a lone model's folder as transformers writes it.
    #[default]
    Diffusers,
    /// One file with the original names.
    Single,
    /// The hub's cache: blobs, and a snapshot of relative links to them.
    HfCache,
    /// The hub's cache as it is where there are no links: the files lie in the snapshot.
    HfCacheCopies,
}

/// How matrices in GGUF files are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Blocks of 32: a scale, four bits each.
    Q4_0,
    /// Blocks of 32: a scale, eight bits each.
    Q8_0,
    /// Blocks of 256: scales and minima of each 32, four bits each.
    Q4K,
}

impl Quantization {
    /// Every quantization.
    pub const ALL: [Quantization; 3] = [Quantization::Q4_0, Quantization::Q8_0, Quantization::Q4K];

    /// The name on the command line, and in ggml.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Q4_0 => "q4_0",
            Quantization::Q8_0 => "q8_0",
            Quantization::Q4K => "q4_k",
        }
    }
}

impl FromStr for Quantization {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        named(&Quantization::ALL, Quantization::name, "--gguf", text)
    }
}

impl Fill {
    /// Every fill.
    pub const ALL: [Fill; 3] = [Fill::Random, Fill::Zeros, Fill::Sparse];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fill::Random => "random",
            Fill::Zeros => "zeros",
            Fill::Sparse => "sparse",
        }
    }
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 4] = [Layout::Diffusers, Layout::Single, Layout::HfCache, Layout::HfCacheCopies];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Diffusers => "diffusers",
            Layout::Single => "single",
            Layout::HfCache => "hf-cache",
            Layout::HfCacheCopies => "hf-cache-copies",
        }
    }
}

/// Finds the one of `all` with this name; the error lists the names there are.
pub(crate) fn named<T: Copy>(
    all: &[T],
    name: fn(T) -> &'static str,
    flag: &'static str,
    text: &str,
) -> Result<T, Error> {
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        Error::option(flag, text, format!("give one of {}", names.join(", ")))
    })
}

impl FromStr for Fill {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        named(&Fill::ALL, Fill::name, "--fill", text)
    }
}

impl FromStr for Layout {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        named(&Layout::ALL, Layout::name, "--layout", text)
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
