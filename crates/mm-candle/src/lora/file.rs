//! A LoRA's file: its layers, each two factors and a scale.

use super::{
    LoraError,
    alpha::Alphas,
    names::{Names, Role, parse},
};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{can_cast, dtype_of};
use mm_plan::DType;
use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A LoRA: for each of a model's layers that it changes, what it adds to the weight is a product of two small factors. Cloning it
/// clones references; factors are read when they are used.
#[derive(Clone)]
pub struct Lora {
    file: Arc<Path>,
    pub(crate) pieces: Vec<Piece>,
    ignored: Arc<Vec<String>>,
}

/// What a LoRA adds to one weight, or to some rows of it.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) factors: Arc<Factors>,
    pub(crate) names: Names,
    /// Which rows of the upper factor.
    pub(crate) from: Range<usize>,
    /// The first of the weight's rows; `None`: it has these rows and no others.
    pub(crate) at: Option<usize>,
}

/// Both factors of a layer.
pub(crate) struct Factors {
    /// The layer, as the file calls it.
    pub(crate) layer: String,
    /// `[rank, inputs..]`.
    pub(crate) down: TensorSlice,
    /// `[outputs, rank, 1..]`.
    pub(crate) up: TensorSlice,
    pub(crate) rank: usize,
    /// What the product is multiplied by, whatever the user asks for.
    pub(crate) scale: f64,
}

/// Which of a model's weights some rows of a layer are for; see [`Lora::split`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The layer in the model.
    pub layer: String,
    /// Rows of the upper factor: outputs of the layer in the file.
    pub from: Range<usize>,
    /// The first of the outputs of the layer in the model; `None`: it has no others.
    pub at: Option<usize>,
}

#[derive(Default)]
struct Found {
    down: Option<TensorSlice>,
    up: Option<TensorSlice>,
    alpha: Option<f64>,
}

impl Lora {
    /// Opens a `.safetensors` file in kohya's, PEFT's or diffusers' names. Headers and scales are read, factors are not.
    ///
    /// # Errors
    /// The file can't be read, holds no LoRA, a factor is missing, of a dtype that can't be computed with or doesn't fit the other, or it is
    /// another kind of adapter.
    pub fn open(file: impl AsRef<Path>) -> Result<Self, LoraError> {
        let file = file.as_ref();
        let weights = Weights::open(&[file])?;
        let broken = |name: &str, reason: String| LoraError::Broken { file: file.into(), name: name.into(), reason };
        let (mut layers, mut ignored) = (BTreeMap::<String, Found>::new(), Vec::new());
        for tensor in weights.tensors() {
            let Some((layer, role)) = parse(tensor.name()) else {
                ignored.push(tensor.name().to_owned());
                continue;
            };
            let found = layers.entry(layer).or_default();
            let twice = match role {
                Role::Down => found.down.replace(tensor.clone()).is_some(),
                Role::Up => found.up.replace(tensor.clone()).is_some(),
                Role::Alpha => {
                    let alpha = scalar(tensor).map_err(|reason| broken(tensor.name(), reason))?;
                    found.alpha.replace(alpha).is_some()
                }
                Role::Foreign(kind) => {
                    let tensor = tensor.name().to_owned();
                    return Err(LoraError::Unsupported { file: file.into(), tensor, kind });
                }
            };
            if twice {
                return Err(broken(tensor.name(), "its layer has this factor under another name too".into()));
            }
        }
        let alphas = Alphas::read(file).map_err(|reason| broken("metadata", reason))?;
        let mut pieces = Vec::with_capacity(layers.len());
        for (layer, found) in layers {
            let factors = Factors::new(&layer, found, &alphas).map_err(|reason| broken(&layer, reason))?;
            let (names, from) = (Names::of_file(&layer), 0..factors.outputs());
            pieces.push(Piece { factors: Arc::new(factors), names, from, at: None });
        }
        if pieces.is_empty() {
            let first = weights.names().next().map_or("it is empty".to_owned(), |name| format!("it has {name:?}"));
            let reason = format!("no tensor is called as kohya, PEFT or diffusers do; {first}");
            return Err(LoraError::NoLora { file: file.into(), reason });
        }
        Ok(Self { file: file.into(), pieces, ignored: Arc::new(ignored) })
    }

    /// Its file, as it was named. What is applied is known by it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The layers that it is for, as the file calls them, sorted.
    pub fn layers(&self) -> Vec<&str> {
        let mut layers: Vec<&str> = self.pieces.iter().map(|piece| &*piece.factors.layer).collect();
        layers.dedup();
        layers
    }

    /// Tensors of the file that are no part of a LoRA.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Only those layers of the file that `keep` says, for one component of several.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        let pieces = self.pieces.iter().filter(|piece| keep(&piece.factors.layer)).cloned().collect();
        Self { pieces, ..self.clone() }
    }

    /// Where a model keeps apart what is one layer in the file, or as one what is several there: `parts` says which weights the layer is for,
    /// given its name, outputs and inputs. `None`: the one of its name.
    #[must_use]
    pub fn split(&self, parts: impl Fn(&str, usize, usize) -> Option<Vec<Part>>) -> Self {
        let split = |piece: &Piece| match parts(
            &piece.factors.layer,
            piece.factors.outputs(),
            piece.factors.inputs().unwrap_or(0),
        ) {
            None => vec![piece.clone()],
            Some(parts) => {
                let of = |part: Part| Piece {
                    factors: piece.factors.clone(),
                    names: Names::of_model(&part.layer),
                    from: part.from,
                    at: part.at,
                };
                parts.into_iter().map(of).collect()
            }
        };
        Self { pieces: self.pieces.iter().flat_map(split).collect(), ..self.clone() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.file.to_path_buf()
    }
}

impl fmt::Debug for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoRA {} of {} layers", self.file.display(), self.layers().len())
    }
}

impl Factors {
    fn new(layer: &str, found: Found, alphas: &Alphas) -> Result<Self, String> {
        let Found { down, up, alpha } = found;
        let (Some(down), Some(up)) = (down, up) else {
            return Err("has no pair of factors: one that leads down to the rank, and one up".to_owned());
        };
        for factor in [&down, &up] {
            if factor_dtype(factor).is_none() {
                return Err(format!("its factor {:?} is stored as {}, no float", factor.name(), factor.dtype()));
            }
        }
        let (inner, outer) = (down.shape(), up.shape());
        if inner.len() < 2 || outer.len() < 2 {
            return Err(format!("its factors are {inner:?} and {outer:?}, no matrices"));
        }
        let rank = inner[0];
        if rank == 0 || rank != outer[1] || outer[2..].iter().any(|dim| *dim != 1) || outer[0] == 0 {
            return Err(format!("its factors are {inner:?} and {outer:?}, which have no rank in common"));
        }
        let said = alpha.map(|alpha| alpha / rank as f64).or_else(|| alphas.scale(layer, rank)).unwrap_or(1.0);
        if !said.is_finite() {
            return Err("its alpha is no finite number".to_owned());
        }
        Ok(Self { layer: layer.to_owned(), down, up, rank, scale: said })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.up.shape()[0]
    }

    /// Of each output, over a kernel's places too; `None`: beyond any machine.
    pub(crate) fn inputs(&self) -> Option<usize> {
        self.down.shape()[1..].iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))
    }
}

/// What a factor is on the device: what it is in the file, where that can be computed with.
pub(crate) fn factor_dtype(factor: &TensorSlice) -> Option<DType> {
    match dtype_of(factor.dtype())? {
        kept @ (DType::F32 | DType::F16 | DType::Bf16) => Some(kept),
        other => can_cast(other, DType::F32).then_some(DType::F32),
    }
}

/// The only value of a tensor.
fn scalar(tensor: &TensorSlice) -> Result<f64, String> {
    use safetensors::Dtype as D;
    let size = tensor.byte_len();
    let mut bytes = [0u8; 8];
    if tensor.shape().iter().product::<usize>() != 1 || size > 8 {
        return Err(format!("an alpha is one number, this is {} {:?}", tensor.dtype(), tensor.shape()));
    }
    tensor.read_into(0, &mut bytes[..size as usize]).map_err(|error| error.to_string())?;
    let four = || [bytes[0], bytes[1], bytes[2], bytes[3]];
    let two = || [bytes[0], bytes[1]];
    let value = match tensor.dtype() {
        D::F64 => f64::from_le_bytes(bytes),
        D::F32 => f32::from_le_bytes(four()).into(),
        D::F16 => half::f16::from_le_bytes(two()).into(),
        D::BF16 => half::bf16::from_le_bytes(two()).into(),
        D::I64 => i64::from_le_bytes(bytes) as f64,
        D::I32 => i32::from_le_bytes(four()).into(),
        other => return Err(format!("an alpha is a number, this is stored as {other}")),
    };
    if value.is_finite() { Ok(value) } else { Err(format!("its alpha is {value}")) }
}
