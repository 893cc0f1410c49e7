//! Which files hold one model's weights: those that its loader would open, whatever lies beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Component as PathPart, Path, PathBuf};

use serde::Deserialize;

use crate::document::{self, MAX_INDEX};
use crate::error::InspectError;

/// The suffix of a plain index; of a variant's, `.fp16` stands before `.json`.
const INDEX: &str = ".safetensors.index";
const WEIGHTS: &str = ".safetensors";
const GGUF: &str = ".gguf";
const PICKLED: [&str; 5] = ["bin", "pt", "pth", "ckpt", "msgpack"];
/// How many names an error lists.
const LISTED: usize = 8;

/// The library that loads a model decides how its files are named, and which of them comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `diffusion_pytorch_model`; an index before a single file.
    Diffusers,
    /// `model`; a single file before an index.
    Transformers,
    /// Not known: either's names.
    Unknown,
}

/// The files of one model's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFiles {
    /// Sorted.
    pub files: Vec<PathBuf>,
    /// The variant, where it isn't the plain one: `fp16`.
    pub variant: Option<String>,
    /// The index that names the files, and for each file the tensors it says are in it.
    pub(crate) index: Option<(PathBuf, BTreeMap<PathBuf, Vec<String>>)>,
}

impl Library {
    /// The library of this name, as `model_index.json` has it.
    pub fn of_name(name: &str) -> Self {
        match name {
            "diffusers" => Self::Diffusers,
            "transformers" => Self::Transformers,
            _ => Self::Unknown,
        }
    }

    /// What a single file of weights is called: `model.safetensors`.
    pub fn file_name(self) -> String {
        format!("{}{WEIGHTS}", self.stems()[0])
    }

    /// File names without extension, the likeliest first. Another library's is better than nothing.
    const fn stems(self) -> [&'static str; 2] {
        match self {
            Self::Diffusers | Self::Unknown => ["diffusion_pytorch_model", "model"],
            Self::Transformers => ["model", "diffusion_pytorch_model"],
        }
    }

    /// What a loader looks for in turn: one file, or an index.
    fn candidates(self, stem: &str, variant: Option<&str>) -> [String; 2] {
        let dotted = variant.map_or(String::new(), |variant| format!(".{variant}"));
        let (file, index) = (format!("{stem}{dotted}{WEIGHTS}"), format!("{stem}{INDEX}{dotted}.json"));
        if self == Self::Transformers { [file, index] } else { [index, file] }
    }
}

/// The weights in a model's own folder, as `library` would load them; `None` where there are none of any form.
///
/// Without `variant` that is the plain set of files; where there is no plain one, the only variant there is. With it,
/// that variant, or the plain set where this model has no such variant. Where there is none of these, a GGUF file of
/// whatever name.
///
/// # Errors
/// An index that can't be followed or names what is not there; several variants, or GGUF files, and no plain set; weights in a form that
/// is not read. The message names the file.
pub fn weight_files(
    folder: &Path,
    library: Library,
    variant: Option<&str>,
) -> Result<Option<WeightFiles>, InspectError> {
    let named = named_weight_files(folder, library, variant)?;
    if named.is_some() { Ok(named) } else { gguf_files(folder) }
}

/// The GGUF file in a folder, whatever its name: no loader looks for one, so whoever put it there means it.
fn gguf_files(folder: &Path) -> Result<Option<WeightFiles>, InspectError> {
    let listing = Listing::of(folder)?;
    let gguf: Vec<&String> = listing.others.iter().filter(|name| name.ends_with(GGUF)).collect();
    let sets: BTreeSet<&str> = gguf.iter().map(|name| set_of_gguf(name)).collect();
    match gguf.first() {
        None => Ok(None),
        Some(one) if sets.len() == 1 => open_gguf(&folder.join(one)).map(|(_, files)| Some(files)),
        Some(_) => {
            let there = gguf.into_iter().take(LISTED).cloned().collect();
            Err(InspectError::Ambiguous {
                folder: folder.to_owned(),
                there,
                instead: "leave one of them in the folder",
            })
        }
    }
}

/// As [`weight_files`], of the names that the libraries look for.
pub(crate) fn named_weight_files(
    folder: &Path,
    library: Library,
    variant: Option<&str>,
) -> Result<Option<WeightFiles>, InspectError> {
    let stems = library.stems();
    for stem in stems {
        let choices = [variant.map(Some), Some(None)];
        for choice in choices.into_iter().flatten() {
            let names = library.candidates(stem, choice);
            if let Some(found) = names.iter().map(|name| folder.join(name)).find(|path| exists(path)) {
                return open(&found, choice).map(Some);
            }
        }
    }
    let listing = Listing::of(folder)?;
    for stem in stems {
        let variants = listing.variants(stem);
        match variants.as_slice() {
            [] => {}
            [only] => {
                let names = library.candidates(stem, Some(only));
                if let Some(found) = names.iter().map(|name| folder.join(name)).find(|path| exists(path)) {
                    return open(&found, Some(only)).map(Some);
                }
            }
            several => {
                let there = several.iter().take(LISTED).cloned().collect();
                let instead = "choose one by --variant";
                return Err(InspectError::Ambiguous { folder: folder.to_owned(), there, instead });
            }
        }
    }
    if let Some(shard) = listing.shards.first() {
        let needed = "the index that says which tensors are in which file; finish the download";
        return Err(InspectError::NoIndex { shard: folder.join(shard), needed });
    }
    let expected = |name: &&String| stems.iter().chain(&["pytorch_model"]).any(|stem| name.starts_with(stem));
    let pickled =
        listing.pickled.iter().find(expected).or(listing.pickled.first().filter(|_| listing.others.is_empty()));
    // Where the model's own weights are pickled, another file beside them is a LoRA or the like.
    if let Some(name) = pickled {
        return Err(InspectError::Unsupported {
            path: folder.join(name),
            form: "a pickled checkpoint",
            instead: "fetch its .safetensors twin, or convert it to .safetensors",
        });
    }
    Ok(None)
}

/// The name of a GGUF file without its number, and all its parts, of which any may be named.
pub(crate) fn open_gguf(path: &Path) -> Result<(String, WeightFiles), InspectError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.strip_suffix(GGUF).unwrap_or(&name);
    let whole = |files| WeightFiles { files, variant: None, index: None };
    let Some((name, number, count)) = shard_of(stem).filter(|(_, number, count)| (1..=*count).contains(number)) else {
        return Ok((stem.to_owned(), whole(vec![path.to_owned()])));
    };
    let part = |part: u32| match part == number {
        true => Ok(path.to_owned()),
        false => {
            let file = path.with_file_name(format!("{name}-{part:05}-of-{count:05}{GGUF}"));
            file.metadata().map(|_| file.clone()).map_err(|source| missing_or_io(&file, path, source))
        }
    };
    Ok((name.to_owned(), whole((1..=count).map(part).collect::<Result<_, _>>()?)))
}

/// What the parts of one file have in common.
fn set_of_gguf(file_name: &str) -> &str {
    let stem = file_name.strip_suffix(GGUF).unwrap_or(file_name);
    shard_of(stem).map_or(stem, |(name, ..)| name)
}

/// The variants that a folder has of a model's weights, sorted.
pub(crate) fn variants(folder: &Path) -> BTreeSet<String> {
    let listing = Listing::of(folder).unwrap_or_default();
    Library::Unknown.stems().iter().flat_map(|stem| listing.variants(stem)).collect()
}

/// A file that was named, or an index and the files that it names.
pub(crate) fn open(path: &Path, variant: Option<&str>) -> Result<WeightFiles, InspectError> {
    let variant = variant.map(str::to_owned);
    if path.extension().is_some_and(|extension| extension == "json") {
        let named = shards(path)?;
        let files = named.keys().cloned().collect();
        return Ok(WeightFiles { files, variant, index: Some((path.to_owned(), named)) });
    }
    Ok(WeightFiles { files: vec![path.to_owned()], variant, index: None })
}

/// The stem of `stem.safetensors.index.json` or `stem.safetensors.index.fp16.json`.
pub(crate) fn index_stem(file_name: &str) -> Option<&str> {
    let name = file_name.strip_suffix(".json")?;
    let (stem, variant) = name.split_once(INDEX)?;
    (variant.is_empty() || variant.starts_with('.')).then_some(stem)
}

/// The stem of `stem.safetensors`.
pub(crate) fn weights_stem(file_name: &str) -> Option<&str> {
    file_name.strip_suffix(WEIGHTS)
}

/// Whether files of this extension are pickled.
pub(crate) fn is_pickled(extension: &str) -> bool {
    PICKLED.contains(&extension)
}

/// The only files of these extensions in a folder, whatever their names.
///
/// # Errors
/// There are several: the user has to choose.
pub(crate) fn only_file(folder: &Path, instead: &'static str) -> Result<Option<PathBuf>, InspectError> {
    let listing = Listing::of(folder)?;
    match listing.others.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(folder.join(only))),
        several => {
            let there = several.iter().take(LISTED).cloned().collect();
            Err(InspectError::Ambiguous { folder: folder.to_owned(), there, instead })
        }
    }
}

/// What a folder's file names say, sorted. Looked at only where nothing has a name that a loader expects.
#[derive(Default)]
struct Listing {
    /// Weights that could be a variant's: `model.fp16`, without what follows.
    sets: BTreeSet<String>,
    /// Parts of several: `…-00001-of-00003.safetensors`.
    shards: BTreeSet<String>,
    /// Weights of any other name.
    others: Vec<String>,
    pickled: BTreeSet<String>,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self, InspectError> {
        let io = |source| InspectError::Io { path: folder.to_owned(), source };
        let mut listing = Self::default();
        for entry in folder.read_dir().map_err(io)? {
            // Names that are not Unicode are nobody's weights.
            let Ok(name) = entry.map_err(io)?.file_name().into_string() else { continue };
            listing.add(name);
        }
        listing.others.sort();
        Ok(listing)
    }

    fn add(&mut self, name: String) {
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if is_pickled(extension) {
            self.pickled.insert(name);
        } else if let Some(index) = name.strip_suffix(".json") {
            if let Some((stem, variant)) = index.split_once(INDEX)
                && variant.starts_with('.')
            {
                self.sets.insert(format!("{stem}{variant}"));
            }
        } else if let Some(stem) = weights_stem(&name) {
            if is_shard(stem) {
                self.shards.insert(name);
            } else {
                self.sets.insert(stem.to_owned());
                self.others.push(name);
            }
        } else if extension == "gguf" {
            self.others.push(name);
        }
    }

    /// The variants of a stem: `fp16` of `model.fp16.safetensors`.
    fn variants(&self, stem: &str) -> Vec<String> {
        let variant = |set: &String| set.strip_prefix(stem)?.strip_prefix('.').map(str::to_owned);
        self.sets.iter().filter_map(variant).filter(|variant| !variant.is_empty()).collect()
    }
}

/// Whether a name without extension ends in `-00001-of-00003`, which a loader only finds through an index.
pub(crate) fn is_shard(stem: &str) -> bool {
    // Older names have the variant at the end: `model-00001-of-00003.fp16`.
    let without_variant = stem.rsplit_once('.').map(|(name, _)| name);
    [Some(stem), without_variant].into_iter().flatten().any(|stem| shard_of(stem).is_some())
}

/// `name`, 1 and 3 of `name-00001-of-00003`.
pub(crate) fn shard_of(stem: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((name, parse(number)?, parse(count)?))
}

/// The files that an index names, each with the tensors it is to hold.
fn shards(index: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>, InspectError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    let wrong = |reason| InspectError::Document { file: index.to_owned(), reason };
    let Index { weight_map } = document::read(index, MAX_INDEX)?;
    if weight_map.is_empty() {
        return Err(wrong("its weight_map names no file".into()));
    }
    let mut outside = BTreeSet::new();
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (tensor, file) in weight_map {
        let file = file.strip_prefix("./").map_or(file.clone(), str::to_owned);
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
pub(crate) fn stays_inside(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, PathPart::Normal(_)))
}

/// There, if only as a link to nowhere, or where it may not be looked for: that is then reported as what it is, while
/// what counts as missing may be passed over.
pub(crate) fn exists(path: &Path) -> bool {
    let missing = |error: std::io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    path.symlink_metadata().err().is_none_or(|error| !missing(error))
}

pub(crate) fn missing_or_io(path: &Path, named_by: &Path, source: std::io::Error) -> InspectError {
    match source.kind() {
        ErrorKind::NotFound => InspectError::Missing {
            path: path.to_owned(),
            named_by: named_by.to_owned(),
            partial: crate::hub::partial_download(path),
        },
        _ => InspectError::Io { path: path.to_owned(), source },
    }
}
