//! What a checkpoint holds, from headers alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mm_plan::{Activation, Basis, Component, DType, Granularity, Group, MAX_GROUPS, Stack};
use serde::{Serialize, Serializer};

use crate::activation::{Architecture, Facts, Workload, recognize};
use crate::error::InspectError;
use crate::files::WeightFiles;
use crate::hub;
use crate::layout::{self, Source};
use crate::packed::Packed;
use crate::shared;
use crate::single_file;
use crate::stacks;
use crate::tensor::{Tensor, is_float};
use crate::unloaded::{self, Unloaded};
use crate::{gguf, header};

/// A checkpoint as its headers describe it.
#[derive(Clone, Debug, Serialize)]
pub struct Checkpoint {
    /// Where it is: as it was given, or where the local cache keeps the repository.
    pub path: PathBuf,
    /// The pipeline's class, of a Diffusers folder: `ZImagePipeline`.
    pub class: Option<String>,
    /// The components that hold weights, sorted by name.
    pub components: Vec<CheckpointComponent>,
    /// What an all-in-one file holds that is of no component.
    pub unloaded: Vec<Unloaded>,
}

/// One component of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointComponent {
    /// Its folder's name: `transformer`.
    pub name: String,
    /// Its class, where a document names it: `ZImageTransformer2DModel`.
    pub class: Option<String>,
    /// Its architecture, where its tensors are those of a known one: `flux`.
    #[serde(serialize_with = "by_name")]
    pub architecture: Option<Architecture>,
    /// The variant whose files these are, where it isn't the plain one: `fp16`.
    pub variant: Option<String>,
    /// Its weights files, sorted.
    pub files: Vec<PathBuf>,
    /// The component before it whose files are the very same.
    pub same_as: Option<String>,
    /// How many tensors it loads.
    pub tensors: usize,
    /// Bytes of what it loads, in the files, by stored element type, in lower case: `bf16`, `q4_k`.
    pub stored: BTreeMap<String, u64>,
    /// Bytes of the weights in the type asked for, without alignment.
    pub device_bytes: u64,
    /// What of that is in no stack.
    pub rest_bytes: u64,
    /// Its stacks of blocks, sorted by name.
    pub stacks: Vec<BlockStack>,
    /// What its files hold and it does not load.
    pub unloaded: Vec<Unloaded>,
    /// As the planner takes it, slabs and rest aligned as the engine packs them. Provisional: the adapter knows
    /// which tensors the model really asks for, and what of it can be streamed.
    #[serde(skip)]
    pub component: Component,
}

/// A stack of blocks, in bytes without alignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockStack {
    /// Its path inside the component: `layers`.
    pub name: String,
    /// Its blocks, in order.
    pub blocks: Vec<BlockBytes>,
}

/// One block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BlockBytes {
    /// In the files.
    pub stored: u64,
    /// In the type asked for.
    pub device: u64,
}

/// Reads what the checkpoint at `path` holds: a Diffusers folder, a model's folder, a `.safetensors` or GGUF file, a
/// `*.safetensors.index.json`, a snapshot in the Hugging Face cache, or the id of a repository that is in it. Only headers
/// are read, and only of the files that would be loaded.
///
/// `dtype` is the type the weights are to be computed in: floating-point weights are counted as cast to it, all
/// others, quantized ones among them, as they are stored. `None` counts everything as stored.
///
/// # Errors
/// [`InspectError`], which names the file and what to do about it. No input makes it panic.
pub fn inspect(path: impl AsRef<Path>, dtype: Option<DType>) -> Result<Checkpoint, InspectError> {
    inspect_variant(path, dtype, None)
}

/// As [`inspect`], of a variant of the weights (`fp16`) where a component has it.
///
/// # Errors
/// As [`inspect`]; [`InspectError::Variant`] where no component has that variant.
pub fn inspect_variant(
    path: impl AsRef<Path>,
    dtype: Option<DType>,
    variant: Option<&str>,
) -> Result<Checkpoint, InspectError> {
    if let Some(dtype) = dtype
        && !is_float(dtype)
    {
        return Err(InspectError::Dtype { dtype });
    }
    let path = hub::locate(path.as_ref())?;
    let (class, sources) = layout::sources(&path, variant)?;
    let (mut components, mut unloaded) = (Vec::new(), Vec::new());
    let alone = class.is_none() && sources.len() == 1;
    for source in sources {
        let tensors = tensors(&source.weights)?;
        let described = match if alone { single_file::split(tensors) } else { Err(tensors) } {
            Err(tensors) => vec![describe(source, tensors, dtype)],
            Ok((parts, stray)) => {
                unloaded = unloaded::stray(&stray);
                let part = |part: single_file::Part| {
                    let weights = source.weights.clone();
                    describe(Source { name: part.name, class: None, config: None, weights }, part.tensors, dtype)
                };
                parts.into_iter().map(part).collect()
            }
        };
        components.extend(described);
    }
    if class.is_some() {
        shared::mark(&mut components);
    }
    let groups = components.iter().map(|component| component.component.groups().count());
    if groups.sum::<usize>() > MAX_GROUPS {
        let (form, instead) = ("a checkpoint of more blocks than can be planned", "name one of its components");
        return Err(InspectError::Unsupported { path, form, instead });
    }
    Ok(Checkpoint { path, class, components, unloaded })
}

impl Checkpoint {
    /// The components as the planner takes them.
    pub fn to_plan(&self) -> Vec<Component> {
        self.components.iter().map(|component| component.component.clone()).collect()
    }
}

impl Checkpoint {
    /// What computing each component takes on top of its weights, by name, where its architecture is known. Latents are as
    /// large as the checkpoint's own VAE makes them, where it has one.
    pub fn activations(&self, workload: &Workload) -> BTreeMap<&str, Activation> {
        let known =
            || self.components.iter().filter_map(|part| Some((part.name.as_str(), part.architecture.as_ref()?)));
        let pixels = known().find_map(|(_, architecture)| architecture.pixels_per_latent());
        let workload = Workload { pixels_per_latent: workload.pixels_per_latent.or(pixels), ..workload.clone() };
        let estimates = known().filter_map(|(name, architecture)| Some((name, architecture.activation(&workload)?)));
        estimates.map(|(name, bytes)| (name, Activation { bytes, basis: Basis::Estimated })).collect()
    }
}

impl CheckpointComponent {
    /// Bytes of what it loads, in the files; saturating.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

fn by_name<S: Serializer>(architecture: &Option<Architecture>, serializer: S) -> Result<S::Ok, S::Error> {
    architecture.as_ref().map(Architecture::name).serialize(serializer)
}

fn describe(source: Source, tensors: Vec<Tensor>, dtype: Option<DType>) -> CheckpointComponent {
    let (tensors, unloaded) = unloaded::take(tensors, source.class.as_deref(), source.config.as_ref());
    let shapes = tensors.iter().map(|tensor| (tensor.name.as_str(), &*tensor.shape));
    let architecture = recognize(&Facts::new(shapes, source.config.as_ref(), source.class.as_deref()));
    let (found, outside) = stacks::find(&tensors);
    let rest = Packed::of(pick(&tensors, &outside), dtype);
    let (rest_bytes, mut device_bytes) = (rest.device, rest.device);
    let (mut stacks, mut reported) = (Vec::new(), Vec::new());
    for stack in found {
        let packed: Vec<Packed> = stack.blocks.iter().map(|block| Packed::of(pick(&tensors, block), dtype)).collect();
        device_bytes = packed.iter().fold(device_bytes, |sum, block| sum.saturating_add(block.device));
        let blocks = packed.iter().map(|block| BlockBytes { stored: block.stored, device: block.device }).collect();
        reported.push(BlockStack { name: stack.name.clone(), blocks });
        let groups: Vec<Group> = packed.into_iter().map(Packed::into_group).collect();
        stacks.push(Stack { name: stack.name, groups });
    }
    let component = Component {
        granularity: if stacks.is_empty() { Granularity::Whole } else { Granularity::Blocks },
        stacks,
        phase: phase(&source.name),
        ..Component::whole(source.name.as_str(), rest.into_group().bytes())
    };
    CheckpointComponent {
        name: source.name,
        class: source.class,
        architecture,
        variant: source.weights.variant,
        files: source.weights.files,
        same_as: None,
        tensors: tensors.len(),
        stored: stored_by_type(&tensors),
        device_bytes,
        rest_bytes,
        stacks: reported,
        unloaded,
        component,
    }
}

/// The tensors of all files of a component, each name once, and all that the index promises among them.
fn tensors(weights: &WeightFiles) -> Result<Vec<Tensor>, InspectError> {
    let mut tensors = Vec::new();
    let mut homes: BTreeMap<String, &Path> = BTreeMap::new();
    let several = weights.files.len() > 1 || weights.index.is_some();
    for file in &weights.files {
        let read = if is_gguf(file) { gguf::read(file)? } else { header::read(file)? };
        for tensor in &read {
            // One file names nothing twice: its reader has seen to that.
            if several && let Some(first) = homes.insert(tensor.name.clone(), file) {
                let (tensor, first, second) = (tensor.name.clone(), first.into(), file.clone());
                return Err(InspectError::Duplicate { tensor, first, second });
            }
        }
        tensors.extend(read);
    }
    if let Some((index, promised)) = &weights.index {
        for (file, tensor) in promised.iter().flat_map(|(file, names)| names.iter().map(move |name| (file, name))) {
            if homes.get(tensor) != Some(&file.as_path()) {
                let reason = format!("is not in it, though {} says so: fetch the checkpoint again", index.display());
                return Err(InspectError::Tensor { file: file.clone(), tensor: tensor.clone(), reason });
            }
        }
    }
    Ok(tensors)
}

fn is_gguf(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "gguf")
}

fn pick<'a>(tensors: &'a [Tensor], positions: &[usize]) -> impl Iterator<Item = &'a Tensor> {
    positions.iter().map(|&position| &tensors[position])
}

fn stored_by_type(tensors: &[Tensor]) -> BTreeMap<String, u64> {
    let mut stored = BTreeMap::new();
    for tensor in tensors {
        let bytes: &mut u64 = stored.entry(tensor.stored.name()).or_default();
        *bytes = bytes.saturating_add(tensor.bytes);
    }
    stored
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
