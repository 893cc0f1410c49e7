//! A checkpoint as a list of components and tensors, before anything is written.

use crate::{
    Error, Fill, Layout, Model, Options, layout,
    models::{self, Pipeline},
};
use safetensors::Dtype;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a checkpoint holds.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The model.
    pub model: Model,
    /// The options it was made with.
    pub options: Options,
    /// The components in the order of the pipeline; of a lone model one.
    pub components: Vec<Component>,
    pub(crate) pipeline: Option<Pipeline>,
}

/// One component of a pipeline, or a lone model.
#[derive(Debug, Clone)]
pub struct Component {
    /// `transformer`, `text_encoder_2`, …; of a lone model the model's name.
    pub name: String,
    /// The class that loads it, such as `FluxTransformer2DModel`.
    pub class: String,
    /// Whether it is a transformers class; otherwise a diffusers class. The two name their files differently.
    pub transformers: bool,
    /// What `config.json` holds.
    pub config: Value,
    /// The tensors, in the order in which the model's code makes them.
    pub tensors: Vec<Tensor>,
    /// Whether they lie in a GGUF file.
    pub(crate) gguf: bool,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The name in the file.
    pub name: String,
    /// The shape; empty: a scalar.
    pub shape: Vec<usize>,
    /// The stored dtype.
    pub dtype: Dtype,
    /// The stack it belongs to and its entry's number, as the model's code has them: `("transformer_blocks", 3)`. The
    /// innermost one where stacks lie within each other. In a single file the path begins as the names there do.
    pub block: Option<(String, usize)>,
    /// Whether the model loads it. Files also hold what none loads, such as `position_ids`.
    pub loaded: bool,
    /// What the random fill makes of it.
    pub init: Init,
}

/// What the random fill makes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// Normal with a standard deviation of 0.02.
    #[default]
    Normal,
    /// Ones: the weight of a norm.
    Ones,
    /// 0, 1, 2, …: indices, in 64-bit integers.
    Count,
}

/// What was written.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// Every file and link, in the order of writing.
    pub paths: Vec<PathBuf>,
    /// The lengths of the files, summed. A sparse file counts with its holes.
    pub bytes: u64,
}

impl Tensor {
    /// A tensor that belongs to no block.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: Dtype) -> Tensor {
        let (name, shape) = (name.into(), shape.into());
        Tensor { name, shape, dtype, block: None, loaded: true, init: Init::Normal }
    }

    /// Number of elements; None if it overflows.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))
    }

    /// Bytes in the file; None if they overflow or make no whole bytes.
    pub fn bytes(&self) -> Option<u64> {
        let bits = self.elements()?.checked_mul(u64::try_from(self.dtype.bitsize()).ok()?)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl Component {
    /// Bytes of all tensors, those that no model loads too.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes().unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
    }

    /// Elements of the tensors that the model loads.
    pub fn parameters(&self) -> u64 {
        let loaded = self.tensors.iter().filter(|t| t.loaded);
        loaded.map(|t| t.elements().unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
    }
}

impl Fixture {
    /// Lists what a checkpoint of `model` holds. The error names the flag whose value can't be.
    pub fn new(model: Model, options: &Options) -> Result<Fixture, Error> {
        options.check()?;
        let (mut components, pipeline) = models::build(model, options);
        let names: Vec<_> = components.iter().map(|c| c.name.clone()).collect();
        if let Some(unknown) = options.only.iter().find(|only| !names.contains(only)) {
            let layout = options.layout;
            let why = format!("{model} in the layout {layout} has {}", names.join(", "));
            return Err(Error::option("--only", unknown, why));
        }
        components.retain(|c| options.only.is_empty() || options.only.contains(&c.name));
        for tensor in components.iter_mut().flat_map(|c| &mut c.tensors) {
            if let Some(dtype) = options.dtype.filter(|_| tensor.dtype != Dtype::I64) {
                tensor.dtype = dtype;
            }
        }
        let total = components
            .iter()
            .try_fold(0u64, |sum, c| c.tensors.iter().try_fold(sum, |sum, tensor| sum.checked_add(tensor.bytes()?)));
        match total {
            Some(total) if total <= i64::MAX.unsigned_abs() => {
                Ok(Fixture { model, options: options.clone(), components, pipeline })
            }
            _ => Err(Error::option(
                "--dim",
                options.dim.unwrap_or_default(),
                "with --scale and --layers it is more than a file system holds",
            )),
        }
    }

    /// Writes the checkpoint into `out`, which is made, and must be empty if it is there. Each file gets its name when
    /// it is whole; the error names the one that failed, and what was written before it stays.
    pub fn write(&self, out: &Path) -> Result<Written, Error> {
        layout::write(self, out)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.components.iter().map(Component::bytes).sum()
    }

    /// The seed of a component's tensors, so that two with the same names don't hold the same values.
    pub(crate) fn seed(&self, component: &str) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.options.seed.to_le_bytes()).update(component.as_bytes());
        let digest = hasher.finalize();
        u64::from_le_bytes(std::array::from_fn(|i| digest.as_bytes()[i]))
    }

    pub(crate) fn fill(&self) -> Fill {
        self.options.fill
    }

    pub(crate) fn is_single(&self) -> bool {
        self.options.layout == Layout::Single
    }
}
