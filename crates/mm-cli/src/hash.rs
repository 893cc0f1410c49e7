//! `mm hash`: content ids of files, of their tensors, and of the components that they make up.

use crate::args::HashArgs;
use crate::exit::Failure;
use crate::table::print;
use indicatif::{ProgressBar, ProgressStyle};
use mm_cache::{ContentId, Index, Weights, joint_id};
use mm_probe::InspectError;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What was hashed.
#[derive(Debug, Serialize)]
struct Hashes {
    schema: u32,
    files: Vec<Entry>,
    components: Vec<Part>,
    index: Known,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    /// A name that is no text is shown as far as it is.
    path: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorEntry>>,
}

#[derive(Debug, Serialize)]
struct TensorEntry {
    name: String,
    id: String,
}

/// A component: its configuration and the weights that a loader would open.
#[derive(Debug, Serialize)]
struct Part {
    path: String,
    name: String,
    id: String,
    files: Vec<String>,
}

/// What of it the index knew.
#[derive(Debug, Serialize)]
struct Known {
    path: Option<String>,
    hits: u64,
    misses: u64,
    hashed_bytes: u64,
}

pub(crate) fn run(args: &HashArgs) -> Result<(), Failure> {
    let index = if args.no_index { Index::none() } else { Index::user() };
    let bar = bar();
    let advance = |bytes| bar.inc(bytes);
    let (mut ids, mut files, mut components, mut notes) = (HashMap::new(), Vec::new(), Vec::new(), Vec::new());
    for path in &args.paths {
        let path = mm_probe::locate(path)?;
        for file in mm_cache::files_under(&path)? {
            bar.inc_length(file.metadata().map_or(0, |found| found.len()));
            let id = index.content_id_with(&file, &advance)?;
            let tensors = args.tensors.then(|| tensors(&file, &index)).transpose()?.flatten();
            ids.insert(file.canonicalize().unwrap_or_else(|_| file.clone()), id);
            files.push(Entry { path: file.to_string_lossy().into_owned(), id: id.to_string(), tensors });
        }
        match parts(&path, &ids) {
            Ok(found) => components.extend(found),
            Err(why) => notes.push(format!("the components of {} are not known: {why}", path.display())),
        }
    }
    bar.finish_and_clear();
    notes.extend(index.problem());
    let stats = index.stats();
    let hashes = Hashes {
        schema: 1,
        files,
        components,
        index: Known {
            path: index.path().map(|path| path.to_string_lossy().into_owned()),
            hits: stats.hits,
            misses: stats.misses,
            hashed_bytes: stats.hashed_bytes,
        },
        notes,
    };
    hashes.notes.iter().for_each(|note| eprintln!("note: {note}"));
    if args.json {
        return crate::table::print_document(&hashes);
    }
    print(hashes.lines().join("\n"))
}

impl Hashes {
    /// As `b3sum` prints them; then the components, each as the folder that it is.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for Entry { path, id, tensors } in &self.files {
            lines.push(format!("{id}  {path}"));
            lines.extend(tensors.iter().flatten().map(|tensor| format!("{}  {path}#{}", tensor.id, tensor.name)));
        }
        lines.extend(self.components.iter().map(|part| format!("{}  {}/", part.id, part.path)));
        lines
    }
}

/// `None`: the file is no safetensors file by its name.
fn tensors(file: &Path, index: &Index) -> Result<Option<Vec<TensorEntry>>, Failure> {
    if file.extension().is_none_or(|extension| extension != "safetensors") {
        return Ok(None);
    }
    let weights = Weights::open(&[file])?;
    let ids = weights.content_ids(index)?;
    let entry = |(tensor, id): (&mm_cache::TensorSlice, ContentId)| TensorEntry {
        name: tensor.name().to_owned(),
        id: id.to_string(),
    };
    Ok(Some(weights.tensors().zip(ids).map(entry).collect()))
}

/// The components of a Diffusers folder; of anything else there are none.
fn parts(path: &Path, ids: &HashMap<PathBuf, ContentId>) -> Result<Vec<Part>, InspectError> {
    if !path.join("model_index.json").is_file() {
        return Ok(Vec::new());
    }
    let checkpoint = mm_probe::inspect(path, None)?;
    let part = |component: mm_probe::CheckpointComponent| {
        let folder = path.join(&component.name);
        let mut files = component.files;
        files.push(folder.join("config.json"));
        files.retain(|file| file.is_file());
        let id = |file: &PathBuf| ids.get(&file.canonicalize().ok()?).copied();
        let ids = files.iter().map(id).collect::<Option<Vec<_>>>()?;
        Some(Part {
            path: folder.to_string_lossy().into_owned(),
            name: component.name,
            id: joint_id(ids).to_string(),
            files: files.iter().map(|file| file.to_string_lossy().into_owned()).collect(),
        })
    };
    Ok(checkpoint.components.into_iter().filter_map(part).collect())
}

/// On a terminal only; nothing is drawn elsewhere.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("hashing {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}
