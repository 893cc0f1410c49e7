//! Which components make up a checkpoint: followed from the documents that name them, never guessed from a listing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::document::{self, MAX_CONFIG};
use crate::error::InspectError;
use crate::files::{self, Library, WeightFiles, exists, missing_or_io, stays_inside, weight_files};

const PIPELINE: &str = "model_index.json";
const CONFIG: &str = "config.json";
/// File names that say nothing of the component; its folder does.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Of a model in the root of a file system, as a component needs a name.
const NAMELESS: &str = "model";

/// The files of one component.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) class: Option<String>,
    /// Its `config.json`, where it has one.
    pub(crate) config: Option<Value>,
    pub(crate) weights: WeightFiles,
}

/// The pipeline's class, where there is a pipeline, and its components sorted by name.
pub(crate) fn sources(path: &Path, variant: Option<&str>) -> Result<(Option<String>, Vec<Source>), InspectError> {
    let metadata = path.metadata().map_err(|source| InspectError::Io { path: path.to_owned(), source })?;
    if !metadata.is_dir() {
        return match variant {
            // A file is one set of weights.
            Some(variant) => {
                let (folder, variant) = (path.to_owned(), variant.to_owned());
                Err(InspectError::Variant { folder, variant, there: Vec::new() })
            }
            None => Ok((None, vec![one_file(path)?])),
        };
    }
    if exists(&path.join(PIPELINE)) {
        return pipeline(path, variant);
    }
    // A GGUF file alone in a folder is a component of its own name.
    let source = match folder(path, None, variant, files::named_weight_files)? {
        Some(source) => source,
        None => match files::only_file(path, "name the file to look at")? {
            Some(file) => one_file(&file)?,
            None => {
                let needed = "a model_index.json, or a model's own .safetensors or .safetensors.index.json, is needed";
                return Err(InspectError::NoWeights { folder: path.to_owned(), needed });
            }
        },
    };
    let sources = vec![source];
    check_variant(path, variant, &sources)?;
    Ok((None, sources))
}

fn pipeline(root: &Path, variant: Option<&str>) -> Result<(Option<String>, Vec<Source>), InspectError> {
    let document = root.join(PIPELINE);
    let wrong = |reason| InspectError::Document { file: document.clone(), reason };
    let mut entries: BTreeMap<String, Value> = document::read(&document, MAX_CONFIG)?;
    let class = entries.remove("_class_name").and_then(|class| class.as_str().map(str::to_owned));

    let mut sources = Vec::new();
    for (name, entry) in &entries {
        // Everything else is the pipeline's own configuration; `[null, null]` is a component left out.
        let Some([library, Value::String(class)]) = entry.as_array().map(Vec::as_slice) else { continue };
        if name.starts_with('_') {
            continue;
        }
        if !stays_inside(Path::new(name)) || Path::new(name).components().count() != 1 {
            return Err(wrong(format!("component `{name}` is not the name of a folder in it")));
        }
        let at = root.join(name);
        match at.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(wrong(format!("component `{name}` is not a folder but a file"))),
            Err(source) => return Err(missing_or_io(&at, &document, source)),
        }
        let library = library.as_str().map(Library::of_name).filter(|library| *library != Library::Unknown);
        match folder(&at, library, variant, weight_files)? {
            Some(source) => sources.push(Source { name: name.clone(), class: Some(class.clone()), ..source }),
            // Tokenizers and schedulers have no model config. What has one and no weights was not fully fetched.
            None if exists(&at.join(CONFIG)) => {
                let needed = "its config.json is that of a model, so its .safetensors file is missing";
                return Err(InspectError::NoWeights { folder: at, needed });
            }
            None if library.is_some() && is_model(name, class) => {
                let needed = "its weights, a .safetensors file, are missing: finish the download";
                return Err(InspectError::NoWeights { folder: at, needed });
            }
            None => {}
        }
    }
    if sources.is_empty() {
        let needed = "model_index.json names no component with weights";
        return Err(InspectError::NoWeights { folder: root.to_owned(), needed });
    }
    check_variant(root, variant, &sources)?;
    Ok((class, sources))
}

/// Whether a component of the two libraries has weights: tokenizers, schedulers and what prepares images have none.
fn is_model(name: &str, class: &str) -> bool {
    let without =
        |part: &str| name.contains(part) || class.to_lowercase().replace('_', "").contains(&part.replace('_', ""));
    !["tokenizer", "scheduler", "processor", "feature_extractor"].into_iter().any(without)
}

/// A variant that no component has is a mistake, not a wish.
fn check_variant(root: &Path, variant: Option<&str>, sources: &[Source]) -> Result<(), InspectError> {
    let Some(variant) = variant else { return Ok(()) };
    if sources.iter().any(|source| source.weights.variant.as_deref() == Some(variant)) {
        return Ok(());
    }
    let folders = sources.iter().filter_map(|source| source.weights.files.first()?.parent());
    let there: BTreeSet<String> = folders.flat_map(files::variants).collect();
    let there = there.into_iter().collect();
    Err(InspectError::Variant { folder: root.to_owned(), variant: variant.to_owned(), there })
}

/// The weights in a component's own folder; `None` where there are none.
fn folder(
    folder: &Path,
    library: Option<Library>,
    variant: Option<&str>,
    find: impl Fn(&Path, Library, Option<&str>) -> Result<Option<WeightFiles>, InspectError>,
) -> Result<Option<Source>, InspectError> {
    let config = config(folder)?;
    let library = library.unwrap_or_else(|| library_of(config.as_ref()));
    let Some(weights) = find(folder, library, variant)? else { return Ok(None) };
    Ok(Some(Source {
        name: folder_name(folder).unwrap_or_else(|| NAMELESS.into()),
        class: class_of(config.as_ref()),
        config,
        weights,
    }))
}

/// A weights file, or an index and the files that it names.
fn one_file(path: &Path) -> Result<Source, InspectError> {
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new(""));
    let (stem, weights) = if let Some(stem) = files::index_stem(&file_name).or(files::weights_stem(&file_name)) {
        (stem.to_owned(), files::open(path, None)?)
    } else if file_name.ends_with(".gguf") {
        files::open_gguf(path)?
    } else {
        return Err(other_form(path, &file_name));
    };
    let config = config(parent)?;
    let of_folder = || folder_name(parent).unwrap_or_else(|| NAMELESS.into());
    let name = if stem.is_empty() || STEMS.contains(&stem.as_str()) { of_folder() } else { stem };
    Ok(Source { name, class: class_of(config.as_ref()), config, weights })
}

fn folder_name(folder: &Path) -> Option<String> {
    let folder = std::path::absolute(folder).ok()?;
    folder.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// A model's `config.json`, where it has one.
fn config(folder: &Path) -> Result<Option<Value>, InspectError> {
    let file = folder.join(CONFIG);
    if exists(&file) { document::read(&file, MAX_CONFIG).map(Some) } else { Ok(None) }
}

/// Diffusers writes `_class_name` into a model's config, Transformers `architectures`.
fn library_of(config: Option<&Value>) -> Library {
    match config {
        Some(config) if config.get("_class_name").is_some() => Library::Diffusers,
        Some(config) if config.get("architectures").is_some() => Library::Transformers,
        _ => Library::Unknown,
    }
}

/// The class that a model's config names.
fn class_of(config: Option<&Value>) -> Option<String> {
    let config = config?;
    let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0));
    class.and_then(Value::as_str).map(str::to_owned)
}

fn other_form(path: &Path, file_name: &str) -> InspectError {
    let extension = Path::new(file_name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let (form, instead) = match extension {
        pickled if files::is_pickled(pickled) => ("a pickled checkpoint", "convert it to .safetensors"),
        "incomplete" | "part" | "crdownload" => ("a download that was cut off", "finish it"),
        "json" => ("a document on its own", "name the folder it lies in, or a *.safetensors.index.json"),
        _ => ("of an unknown form", "name a Diffusers folder, a .safetensors or .gguf file, or an index"),
    };
    InspectError::Unsupported { path: path.to_owned(), form, instead }
}
