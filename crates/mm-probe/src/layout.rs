//! Which files make up a checkpoint: followed from the documents that name them, never guessed from a listing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component as PathPart, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::document;
use crate::error::InspectError;

const PIPELINE: &str = "model_index.json";
const CONFIG: &str = "config.json";
/// File names that say nothing of the component; its folder does.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const INDEX: &str = ".safetensors.index.json";
const WEIGHTS: &str = ".safetensors";

/// The files of one component.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) class: Option<String>,
    pub(crate) files: Vec<PathBuf>,
    /// The index that named the files, and for each file the tensors it says are in it.
    pub(crate) index: Option<(PathBuf, BTreeMap<PathBuf, Vec<String>>)>,
}

/// The pipeline's class, where there is a pipeline, and its components sorted by name.
pub(crate) fn sources(path: &Path) -> Result<(Option<String>, Vec<Source>), InspectError> {
    let metadata = path.metadata().map_err(|source| match not_a_path(path) {
        Some(unsupported) => unsupported,
        None => InspectError::Io { path: path.to_owned(), source },
    })?;
    if !metadata.is_dir() {
        return Ok((None, vec![one_file(path)?]));
    }
    if exists(&path.join(PIPELINE)) {
        return pipeline(path);
    }
    if exists(&path.join("snapshots")) {
        return Err(unsupported(path, "a Hugging Face cache entry", "name one of the folders under its snapshots/"));
    }
    let needed = "a model_index.json, or a model's own .safetensors or .safetensors.index.json, is needed";
    let source = folder(path)?.ok_or_else(|| InspectError::NoWeights { folder: path.to_owned(), needed })?;
    Ok((None, vec![source]))
}

fn pipeline(root: &Path) -> Result<(Option<String>, Vec<Source>), InspectError> {
    let document = root.join(PIPELINE);
    let wrong = |reason| InspectError::Document { file: document.clone(), reason };
    let mut entries: BTreeMap<String, Value> = document::read(&document)?;
    let class = entries.remove("_class_name").and_then(|class| class.as_str().map(str::to_owned));

    let mut sources = Vec::new();
    for (name, entry) in &entries {
        // Everything else is the pipeline's own configuration; `[null, null]` is a component left out.
        let Some([_library, Value::String(class)]) = entry.as_array().map(Vec::as_slice) else { continue };
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
        match folder(&at)? {
            Some(source) => sources.push(Source { name: name.clone(), class: Some(class.clone()), ..source }),
            // Tokenizers and schedulers have no model config. What has one and no weights was not fully fetched.
            None if exists(&at.join(CONFIG)) => {
                let needed = "its config.json is that of a model, so its .safetensors file is missing";
                return Err(InspectError::NoWeights { folder: at, needed });
            }
            None => {}
        }
    }
    if sources.is_empty() {
        let needed = "model_index.json names no component with weights";
        return Err(InspectError::NoWeights { folder: root.to_owned(), needed });
    }
    Ok((class, sources))
}

/// The weights in a component's own folder; `None` where there are none.
fn folder(folder: &Path) -> Result<Option<Source>, InspectError> {
    let (indexes, files) = (STEMS.map(|stem| format!("{stem}{INDEX}")), STEMS.map(|stem| format!("{stem}{WEIGHTS}")));
    let Some(found) = indexes.iter().chain(&files).map(|name| folder.join(name)).find(|path| exists(path)) else {
        return Ok(None);
    };
    one_file(&found).map(Some)
}

/// A weights file, or an index and the files that it names.
fn one_file(path: &Path) -> Result<Source, InspectError> {
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new(""));
    let (stem, files, index) = if let Some(stem) = file_name.strip_suffix(INDEX) {
        let named = shards(path, parent)?;
        (stem, named.keys().cloned().collect(), Some((path.to_owned(), named)))
    } else if let Some(stem) = file_name.strip_suffix(WEIGHTS) {
        (stem, vec![path.to_owned()], None)
    } else {
        return Err(other_form(path, &file_name));
    };
    let folder = std::path::absolute(parent).ok();
    let folder = folder.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let name = if STEMS.contains(&stem) { folder.unwrap_or_else(|| stem.to_owned()) } else { stem.to_owned() };
    Ok(Source { name, class: class_of(&parent.join(CONFIG))?, files, index })
}

/// The class that a model's config names, where it has one.
fn class_of(config: &Path) -> Result<Option<String>, InspectError> {
    if !exists(config) {
        return Ok(None);
    }
    let config: Value = document::read(config)?;
    let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0));
    Ok(class.and_then(Value::as_str).map(str::to_owned))
}

/// The files that an index names, each with the tensors it is to hold.
fn shards(index: &Path, folder: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>, InspectError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |reason| InspectError::Document { file: index.to_owned(), reason };
    let Index { weight_map } = document::read(index)?;
    if weight_map.is_empty() {
        return Err(wrong("its weight_map names no file".into()));
    }
    let mut outside = BTreeSet::new();
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (tensor, file) in weight_map {
        if !stays_inside(Path::new(&file)) {
            outside.insert(file);
            continue;
        }
        shards.entry(folder.join(file)).or_default().push(tensor);
    }
    if let Some(file) = outside.first() {
        return Err(wrong(format!("names `{file}`, which is outside its folder")));
    }
    for shard in shards.keys() {
        shard.metadata().map_err(|source| missing_or_io(shard, index, source))?;
    }
    Ok(shards)
}

/// Whether a relative path can only lead below where it is applied. Links may lead elsewhere: the Hugging Face
/// cache is made of them.
fn stays_inside(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, PathPart::Normal(_)))
}

/// There, if only as a link to nowhere, which is then reported as what it is.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn missing_or_io(path: &Path, named_by: &Path, source: std::io::Error) -> InspectError {
    match source.kind() {
        std::io::ErrorKind::NotFound => InspectError::Missing { path: path.to_owned(), named_by: named_by.to_owned() },
        _ => InspectError::Io { path: path.to_owned(), source },
    }
}

fn unsupported(path: &Path, form: &'static str, instead: &'static str) -> InspectError {
    InspectError::Unsupported { path: path.to_owned(), form, instead }
}

fn other_form(path: &Path, file_name: &str) -> InspectError {
    let extension = Path::new(file_name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "gguf" => unsupported(path, "a GGUF file", "name the model's .safetensors file"),
        "bin" | "pt" | "pth" | "ckpt" => unsupported(path, "a pickled checkpoint", "convert it to .safetensors"),
        "json" => {
            unsupported(path, "a document on its own", "name the folder it lies in, or a *.safetensors.index.json")
        }
        _ => unsupported(path, "of an unknown form", "name a Diffusers folder, a .safetensors file or its index"),
    }
}

/// `org/name` or `org/name@revision`, where nothing of that path exists.
fn not_a_path(path: &Path) -> Option<InspectError> {
    let text = path.to_str()?;
    let (organisation, name) = text.split_once('/')?;
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('/');
    let repository = plain(organisation) && plain(name) && !name.ends_with(WEIGHTS) && !name.ends_with(".json");
    (repository && !path.exists()).then(|| {
        unsupported(
            path,
            "not a path here but perhaps a repository id",
            "name the snapshot folder it was downloaded to",
        )
    })
}
