//! What a checkpoint holds, from headers alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mm_plan::{Component, DType, Granularity, Group, Slab, Stack};
use safetensors::Dtype;
use serde::Serialize;

use crate::error::InspectError;
use crate::header::{self, Tensor};
use crate::layout::{self, Source};
use crate::stacks;

/// Each tensor in a slab starts at a multiple of this; as the engine packs.
const ALIGN: u64 = 256;

/// A checkpoint as its headers describe it.
#[derive(Clone, Debug, Serialize)]
pub struct Checkpoint {
    /// Where it is, as it was given.
    pub path: PathBuf,
    /// The pipeline's class, of a Diffusers folder: `ZImagePipeline`.
    pub class: Option<String>,
    /// The components that hold weights, sorted by name.
    pub components: Vec<CheckpointComponent>,
}

/// One component of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointComponent {
    /// Its folder's name: `transformer`.
    pub name: String,
    /// Its class, where a document names it: `ZImageTransformer2DModel`.
    pub class: Option<String>,
    /// Its weights files, sorted.
    pub files: Vec<PathBuf>,
    /// How many tensors it has.
    pub tensors: usize,
    /// Bytes in the files by stored element type, in lower case: `bf16`.
    pub stored: BTreeMap<String, u64>,
    /// Bytes of the weights in the type asked for, without alignment.
    pub device_bytes: u64,
    /// As the planner takes it, slabs and rest aligned as the engine packs them. Provisional: the adapter knows
    /// which tensors the model really asks for, and what of it can be streamed.
    #[serde(skip)]
    pub component: Component,
}

/// Reads what the checkpoint at `path` holds: a Diffusers folder, a model's folder, a `.safetensors` file or a
/// `*.safetensors.index.json`. Only headers are read, and only of the files that an index names.
///
/// `dtype` is the type the weights are to be computed in: floating-point weights are counted as cast to it, all
/// others as they are stored. `None` counts everything as stored.
///
/// # Errors
/// [`InspectError`], which names the file and what to do about it. No input makes it panic.
pub fn inspect(path: impl AsRef<Path>, dtype: Option<DType>) -> Result<Checkpoint, InspectError> {
    let path = path.as_ref();
    if let Some(dtype) = dtype
        && !is_float(dtype)
    {
        return Err(InspectError::Dtype { dtype });
    }
    let (class, sources) = layout::sources(path)?;
    let components = sources.into_iter().map(|source| component(source, dtype)).collect::<Result<_, _>>()?;
    Ok(Checkpoint { path: path.to_owned(), class, components })
}

impl Checkpoint {
    /// The components as the planner takes them.
    pub fn to_plan(&self) -> Vec<Component> {
        self.components.iter().map(|component| component.component.clone()).collect()
    }
}

impl CheckpointComponent {
    /// Bytes of the weights in the files; saturating.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

fn component(source: Source, dtype: Option<DType>) -> Result<CheckpointComponent, InspectError> {
    let tensors = tensors(&source)?;
    let all = Packed::of(&tensors, dtype);
    let (found, outside) = stacks::find(&tensors);
    let stack = |stack: stacks::Found| Stack {
        name: stack.name,
        groups: stack.blocks.iter().map(|block| Packed::of(pick(&tensors, block), dtype).into_group()).collect(),
    };
    let stacks: Vec<Stack> = found.into_iter().map(stack).collect();
    let component = Component {
        granularity: if stacks.is_empty() { Granularity::Whole } else { Granularity::Blocks },
        stacks,
        phase: phase(&source.name),
        ..Component::whole(source.name.as_str(), Packed::of(pick(&tensors, &outside), dtype).into_group().bytes())
    };
    Ok(CheckpointComponent {
        name: source.name,
        class: source.class,
        files: source.files,
        tensors: tensors.len(),
        stored: stored_by_type(&tensors),
        device_bytes: all.exact,
        component,
    })
}

/// The tensors of all files of a component, each name once, and all that the index promises among them.
fn tensors(source: &Source) -> Result<Vec<Tensor>, InspectError> {
    let mut homes: BTreeMap<String, &Path> = BTreeMap::new();
    let mut tensors = Vec::new();
    for file in &source.files {
        for tensor in header::read(file)? {
            if let Some(first) = homes.insert(tensor.name.clone(), file) {
                return Err(InspectError::Duplicate { tensor: tensor.name, first: first.into(), second: file.clone() });
            }
            tensors.push(tensor);
        }
    }
    if let Some((index, promised)) = &source.index {
        for (file, tensor) in promised.iter().flat_map(|(file, names)| names.iter().map(move |name| (file, name))) {
            if homes.get(tensor) != Some(&file.as_path()) {
                let reason = format!("is not in it, though {} says so: fetch the checkpoint again", index.display());
                return Err(InspectError::Tensor { file: file.clone(), tensor: tensor.clone(), reason });
            }
        }
    }
    Ok(tensors)
}

fn pick<'a>(tensors: &'a [Tensor], positions: &[usize]) -> impl Iterator<Item = &'a Tensor> {
    positions.iter().map(|&position| &tensors[position])
}

fn stored_by_type(tensors: &[Tensor]) -> BTreeMap<String, u64> {
    let mut stored = BTreeMap::new();
    for tensor in tensors {
        let name = match plan_dtype(tensor.dtype) {
            DType::Bytes => tensor.dtype.to_string().to_lowercase(),
            named => named.name().to_owned(),
        };
        let bytes: &mut u64 = stored.entry(name).or_default();
        *bytes = bytes.saturating_add(tensor.bytes);
    }
    stored
}

/// Tensors laid side by side: one slab per element type on the device. Sums saturate, as sizes are only claims of a
/// header about a file that may be sparse.
#[derive(Default)]
struct Packed {
    slabs: BTreeMap<DType, u64>,
    exact: u64,
    stored: u64,
}

impl Packed {
    fn of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, dtype: Option<DType>) -> Self {
        let mut packed = Self::default();
        for tensor in tensors {
            let (on_device, bytes) = on_device(tensor, dtype);
            let slab = packed.slabs.entry(on_device).or_default();
            *slab = slab.saturating_add(bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX));
            packed.exact = packed.exact.saturating_add(bytes);
            packed.stored = packed.stored.saturating_add(tensor.bytes);
        }
        packed
    }

    fn into_group(self) -> Group {
        let slabs = self.slabs.into_iter().map(|(dtype, bytes)| Slab { dtype, bytes }).collect();
        Group { slabs, host_bytes: self.stored, compute_ns: None }
    }
}

/// A tensor's element type and bytes on the device.
fn on_device(tensor: &Tensor, asked: Option<DType>) -> (DType, u64) {
    let stored = plan_dtype(tensor.dtype);
    match asked {
        Some(asked) if is_float(stored) => (asked, (tensor.bytes / stored.size()).saturating_mul(asked.size())),
        _ => (stored, tensor.bytes),
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::Bf16 | DType::F8e4m3 | DType::F8e5m2)
}

/// `Bytes` for what the planner has no name for: packed and scaled formats, which are never cast.
fn plan_dtype(stored: Dtype) -> DType {
    match stored {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F8_E4M3 => DType::F8e4m3,
        Dtype::F8_E5M2 => DType::F8e5m2,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 | Dtype::BOOL => DType::U8,
        _ => DType::Bytes,
    }
}

/// When a component of that usual name is active: encode, denoise, decode.
fn phase(name: &str) -> Option<u32> {
    let role = |prefix: &str| name.strip_prefix(prefix).is_some_and(|more| more.is_empty() || more.starts_with('_'));
    if role("text_encoder") || role("image_encoder") {
        Some(0)
    } else if role("transformer") || role("unet") {
        Some(1)
    } else if role("vae") {
        Some(2)
    } else {
        None
    }
}
