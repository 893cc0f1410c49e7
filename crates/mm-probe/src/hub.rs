//! The local Hugging Face cache: repository ids and their snapshots. Nothing is downloaded.
//!
//! Its layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::document;
use crate::error::InspectError;
use crate::files::{exists, stays_inside};

const SNAPSHOTS: &str = "snapshots";
const MAIN: &str = "main";
/// What the names of files end in that are not whole yet.
const PARTIAL: [&str; 3] = [".incomplete", ".part", ".crdownload"];
/// A commit's name, in a file under `refs`.
const MAX_REFERENCE: u64 = 256;

/// Where the checkpoint that `path` names really lies: a repository id (`org/name`, `org/name@revision`) or a folder of
/// the cache (`models--org--name`) is looked up, everything else is a path already.
///
/// Looked for in `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub` and `~/.cache/huggingface/hub`, in that order.
///
/// # Errors
/// The repository or the revision is not in the cache: the message says what is missing and where it was looked for.
pub fn locate(path: &Path) -> Result<PathBuf, InspectError> {
    locate_in(path, &roots(|name| env::var_os(name)))
}

fn locate_in(path: &Path, roots: &[PathBuf]) -> Result<PathBuf, InspectError> {
    if exists(path) {
        // The cache's own entry, with its snapshots.
        return match path.join(SNAPSHOTS).is_dir() && !exists(&path.join("model_index.json")) {
            true => snapshot(path, None, &path.display().to_string()),
            false => Ok(path.to_owned()),
        };
    }
    let Some((id, revision)) = path.to_str().and_then(repository) else { return Ok(path.to_owned()) };
    let shown = path.display().to_string();
    let folder = format!("models--{}", id.replace('/', "--"));
    match roots.iter().map(|root| root.join(&folder)).find(|entry| entry.is_dir()) {
        Some(entry) => snapshot(&entry, revision, &shown),
        None => {
            let looked: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
            let reason = format!(
                "there is no such file or folder here, and no {folder} in {}; download it first, or correct the path",
                looked.join(", ")
            );
            Err(InspectError::NotCached { id: shown, reason })
        }
    }
}

/// The caches there may be, the first that counts first.
fn roots(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME").or_else(|| set("USERPROFILE"));
    [
        set("HF_HUB_CACHE"),
        set("HUGGINGFACE_HUB_CACHE"),
        set("HF_HOME").map(|home| home.join("hub")),
        home.map(|home| home.join(".cache/huggingface/hub")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// `org/name` and the revision, of a text that can only be a repository id.
fn repository(text: &str) -> Option<(&str, Option<&str>)> {
    let (id, revision) = text.split_once('@').map_or((text, None), |(id, revision)| (id, Some(revision)));
    let (organisation, name) = id.split_once('/')?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed);
    let file = [".safetensors", ".json", ".gguf"].iter().any(|extension| name.ends_with(extension));
    (plain(organisation) && plain(name) && !file).then_some((id, revision))
}

/// The snapshot of a revision: a branch or tag, a commit, or the start of one. Without one `main`, else the only one.
fn snapshot(entry: &Path, revision: Option<&str>, id: &str) -> Result<PathBuf, InspectError> {
    let missing = |reason: String| InspectError::NotCached { id: id.to_owned(), reason };
    let named = revision.unwrap_or(MAIN);
    if !stays_inside(Path::new(named)) {
        return Err(missing(format!("`{named}` is no revision")));
    }
    let snapshots = entry.join(SNAPSHOTS);
    let reference = entry.join("refs").join(named);
    if let Some(commit) = read_reference(&reference) {
        let folder = snapshots.join(&commit);
        if stays_inside(Path::new(&commit)) && folder.is_dir() {
            return Ok(folder);
        }
        let reason = format!("{} names the commit {commit}, whose snapshot is missing", reference.display());
        return Err(missing(format!("{reason}; finish the download")));
    }
    let mut there = names(&snapshots);
    if let Some(revision) = revision {
        there.retain(|commit| commit.starts_with(revision));
    }
    match there.as_slice() {
        [only] => Ok(snapshots.join(only)),
        [] => {
            let all = [names(&entry.join("refs")), names(&snapshots)].concat();
            let all = if all.is_empty() { "no revision".to_owned() } else { all.join(", ") };
            Err(missing(format!("revision `{named}` is not there; {} has: {all}", entry.display())))
        }
        several => Err(missing(format!(
            "{} has several snapshots, and no `{named}` among its refs: choose one as @revision: {}",
            entry.display(),
            several.join(", ")
        ))),
    }
}

fn read_reference(file: &Path) -> Option<String> {
    let (file, size) = document::open(file).ok()?;
    let mut text = String::new();
    file.take(MAX_REFERENCE).read_to_string(&mut text).ok().filter(|_| size <= MAX_REFERENCE)?;
    Some(text.trim().to_owned()).filter(|commit| !commit.is_empty())
}

/// Names in a folder, sorted; none where it can't be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// What a download that was cut off left of a file that is missing, or of another of the same repository: beside the file,
/// in the cache's `blobs`, or in `.cache/huggingface` of a local folder.
pub(crate) fn partial_download(missing: &Path) -> Option<PathBuf> {
    let partial = |folder: &Path, start: &str| {
        let is_partial = |name: &String| name.starts_with(start) && PARTIAL.iter().any(|end| name.ends_with(end));
        names(folder).into_iter().find(is_partial).map(|name| folder.join(name))
    };
    let (parent, name) = (missing.parent()?, missing.file_name()?.to_str()?);
    let above = |folder: &Path| {
        let download = folder.join(".cache/huggingface/download");
        let nested = parent.strip_prefix(folder).ok().map(|inside| download.join(inside));
        let entry = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"));
        let blobs = entry.then(|| folder.join("blobs"));
        [nested, Some(download), blobs].into_iter().flatten().find_map(|folder| partial(&folder, ""))
    };
    partial(parent, name).or_else(|| parent.ancestors().take(4).find_map(above))
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
