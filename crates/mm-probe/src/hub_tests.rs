//! Repository ids in caches as the hub's client leaves them.

use std::fs;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

struct Cache(tempfile::TempDir);

impl Cache {
    fn with(files: &[(&str, &str)]) -> Self {
        let cache = Self(tempfile::tempdir().expect("a folder"));
        for (path, text) in files {
            let file = cache.0.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("creates");
            fs::write(file, text).expect("writes");
        }
        cache
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn locate(&self, id: &str) -> Result<PathBuf, String> {
        let none = self.at("none");
        locate_in(Path::new(id), &[none, self.0.path().to_owned()]).map_err(|error| error.to_string())
    }
}

fn snapshot_of(commit: &str) -> String {
    format!("models--org--name/snapshots/{commit}")
}

#[test]
fn branches_tags_and_commits() {
    let files = [COMMIT, OTHER].map(|commit| format!("{}/config.json", snapshot_of(commit)));
    let cache = Cache::with(&[
        (&files[0], "{}"),
        (&files[1], "{}"),
        ("models--org--name/refs/main", COMMIT),
        ("models--org--name/refs/refs/pr/1", &format!("{OTHER}\n")),
    ]);
    for id in ["org/name", "org/name@main", &format!("org/name@{COMMIT}"), "org/name@0123"] {
        assert_eq!(cache.locate(id), Ok(cache.at(&snapshot_of(COMMIT))), "{id}");
    }
    assert_eq!(cache.locate("org/name@refs/pr/1"), Ok(cache.at(&snapshot_of(OTHER))));
    // The cache's own folder is as good as the id.
    let entry = cache.at("models--org--name");
    assert_eq!(locate_in(&entry, &[]).map_err(|e| e.to_string()), Ok(entry.join("snapshots").join(COMMIT)));
    let snapshot = cache.at(&snapshot_of(OTHER));
    assert_eq!(locate_in(&snapshot, &[]).map_err(|e| e.to_string()), Ok(snapshot.clone()));
}

#[test]
fn without_a_branch_the_only_snapshot() {
    let cache = Cache::with(&[(&format!("{}/config.json", snapshot_of(OTHER)), "{}")]);
    assert_eq!(cache.locate("org/name"), Ok(cache.at(&snapshot_of(OTHER))));
    assert_eq!(cache.locate("org/name@89ab"), Ok(cache.at(&snapshot_of(OTHER))));
}

#[test]
fn what_is_missing_is_named() {
    let cache = Cache::with(&[("models--org--name/refs/main", COMMIT), ("models--org--x/refs/.keep", "")]);
    let refused = |id: &str, parts: &[&str]| {
        let error = cache.locate(id).expect_err("not there");
        for part in [&[id][..], parts].concat() {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    };
    refused("org/other", &["models--org--other", cache.at("none").to_str().expect("UTF-8"), "download it first"]);
    refused("org/name", &[COMMIT, "finish the download"]);
    refused("org/name@dev", &["revision `dev`", "main"]);
    refused("org/name@../../etc", &["no revision"]);
    refused("org/x", &["revision `main`"]);
    let files = [COMMIT, OTHER].map(|commit| format!("{}/x", snapshot_of(commit)));
    let cache = Cache::with(&[(&files[0], ""), (&files[1], "")]);
    let error = cache.locate("org/name").expect_err("two");
    assert!(error.contains(COMMIT) && error.contains(OTHER) && error.contains("@revision"), "{error}");
}

#[test]
fn a_reference_that_leads_outside_leads_nowhere() {
    for commit in ["../../..", "/", "", &"a".repeat(1000)] {
        let cache = Cache::with(&[("models--org--name/refs/main", commit), ("x", "")]);
        assert!(cache.locate("org/name").is_err(), "{commit}");
    }
}

#[test]
fn ids_are_told_from_paths() {
    assert_eq!(repository("org/name"), Some(("org/name", None)));
    assert_eq!(repository("org/na.me-1_2@v1.0"), Some(("org/na.me-1_2", Some("v1.0"))));
    for path in ["", "name", "/org/name", "./name", "../name", "a/b/c", "a/b.safetensors", "a/b.gguf", "a /b", "a/"] {
        assert_eq!(repository(path), None, "{path}");
    }
}

#[test]
fn caches_in_the_order_of_the_hub_s_client() {
    let all = |name: &str| Some(OsString::from(format!("/{name}")));
    let expected = ["/HF_HUB_CACHE", "/HUGGINGFACE_HUB_CACHE", "/HF_HOME/hub", "/HOME/.cache/huggingface/hub"];
    assert_eq!(roots(all), expected.map(PathBuf::from));
    assert_eq!(roots(|name| (name == "HF_HOME").then(|| "/h".into())), [PathBuf::from("/h/hub")]);
    assert!(roots(|name| (name == "HF_HUB_CACHE").then(OsString::new)).is_empty());
}

#[test]
fn a_download_that_was_cut_off_is_found() {
    let cache = Cache::with(&[
        ("models--org--name/blobs/abc.incomplete", ""),
        (&format!("{}/transformer/config.json", snapshot_of(COMMIT)), "{}"),
        ("local/.cache/huggingface/download/x.incomplete", ""),
        ("local/m/config.json", "{}"),
    ]);
    let missing = cache.at(&format!("{}/transformer/model.safetensors", snapshot_of(COMMIT)));
    assert_eq!(partial_download(&missing), Some(cache.at("models--org--name/blobs/abc.incomplete")));
    let missing = cache.at("local/m/model.safetensors");
    assert_eq!(partial_download(&missing), Some(cache.at("local/.cache/huggingface/download/x.incomplete")));
}
