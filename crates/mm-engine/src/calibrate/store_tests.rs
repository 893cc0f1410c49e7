//! Figures on disk, whatever happened to them.

use super::{
    figures::ComponentFigures,
    store::{FigureStore, Kept},
};
use mm_cache::{Key, component_hash};
use mm_plan::Links;
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};
use tempfile::TempDir;

const LINKS: Links = Links { h2d: 25, staging: Some(12), disk: None, copy_fixed_ns: 5 };

fn figures(ns: u64) -> ComponentFigures {
    ComponentFigures {
        compute_ns: vec![Some(ns), None, Some(u64::MAX)],
        rest_ns: Some(1),
        activation: Some(9),
        passes: 4,
    }
}

fn store(folder: &TempDir) -> FigureStore {
    FigureStore::new(folder.path().join("figures"), "card 7, driver 1", "1024×1024")
}

fn key() -> Key {
    component_hash("a component")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A store with figures in it, and the file of the component.
fn kept() -> (TempDir, FigureStore, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    assert_eq!(store.keep(key(), &figures(3), Some(LINKS)), None);
    let file = files(&folder.path().join("figures"))
        .into_iter()
        .find(|f| fs::read_to_string(f).unwrap().contains("null,18446744073709551615"));
    (folder, store, file.unwrap())
}

fn code(store: &FigureStore) -> Option<String> {
    let (kept, note) = store.component(key(), 3);
    assert!(kept.is_none());
    note.map(|note| note.code)
}

#[test]
fn what_was_kept_comes_back() {
    let (folder, store, _) = kept();
    let kept = Kept { figures: figures(3), links: Some(LINKS) };
    assert_eq!(store.component(key(), 3), (Some(kept), None));
    assert_eq!(store.links(), (Some(LINKS), None));
    assert_eq!(store.keep(key(), &figures(4), None), None);
    let kept = Kept { figures: figures(4), links: None };
    assert_eq!(store.component(key(), 3), (Some(kept), None), "the last one counts");
    assert_eq!(store.links(), (Some(LINKS), None), "nothing was said about them");
    assert_eq!(files(&folder.path().join("figures")).len(), 2, "nothing unfinished is left");
}

#[test]
fn other_machines_workloads_and_components_have_figures_of_their_own() {
    let (folder, _, _) = kept();
    let other = |machine, workload| FigureStore::new(folder.path().join("figures"), machine, workload);
    assert_eq!(other("card 8", "1024×1024").component(key(), 3), (None, None));
    assert_eq!(other("card 8", "1024×1024").links(), (None, None));
    assert_eq!(other("card 7, driver 1", "512×512").component(key(), 3), (None, None));
    assert_eq!(other("card 7, driver 1", "512×512").links(), (Some(LINKS), None), "links don't depend on it");
    assert_eq!(store(&folder).component(component_hash("another"), 3), (None, None));
}

#[test]
fn a_folder_that_is_not_there_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(store(&folder).component(key(), 3), (None, None));
    assert_eq!(store(&folder).links(), (None, None));
}

#[test]
fn damage_is_a_note() {
    let (_folder, store, file) = kept();
    let whole = fs::read(&file).unwrap();
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        assert_eq!(code(&store).as_deref(), Some("figures_damaged"), "{length} bytes");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        // A digit more or less can't be noticed; it must not end in a panic.
        let _ = store.component(key(), 3);
    }
    for text in ["[]", "{}", "null", "{\"schema\": -1}", "{\"schema\": 1}", "\u{0}"] {
        fs::write(&file, text).unwrap();
        assert_eq!(code(&store).as_deref(), Some("figures_damaged"), "{text}");
    }
    fs::write(&file, &whole).unwrap();
    assert!(store.component(key(), 3).0.is_some());
    let (kept, note) = store.component(key(), 4);
    assert_eq!(
        (kept, note.map(|note| note.code).as_deref()),
        (None, Some("figures_damaged")),
        "groups that it has not"
    );
    assert_eq!(store.keep(key(), &figures(5), None), None, "written over");
    assert!(store.component(key(), 3).0.is_some());
}

#[test]
fn another_version_and_another_machine_inside_are_notes() {
    let (_folder, store, file) = kept();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"schema\":1", "\"schema\":2")).unwrap();
    assert_eq!(code(&store).as_deref(), Some("figures_of_another_version"));
    fs::write(&file, "{\"schema\": 2, \"all\": \"else is different\"}").unwrap();
    assert_eq!(code(&store).as_deref(), Some("figures_of_another_version"));
    fs::write(&file, text.replace("card 7", "card 8")).unwrap();
    assert_eq!(code(&store).as_deref(), Some("figures_of_another"));
}

#[test]
fn files_too_large_or_no_files_are_notes() {
    let (_folder, store, file) = kept();
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str(&" ".repeat(5 << 20));
    fs::write(&file, text).unwrap();
    assert_eq!(code(&store).as_deref(), Some("figures_damaged"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(code(&store).as_deref(), Some("figures_damaged"));
    assert_eq!(store.keep(key(), &figures(1), None).map(|note| note.code).as_deref(), Some("figures_not_kept"));
}

#[test]
fn a_place_that_cannot_be_written_is_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let store = FigureStore::new(file.join("figures"), "machine", "");
    let note = store.keep(key(), &figures(1), Some(LINKS)).unwrap();
    assert_eq!(note.code, "figures_not_kept");
    assert!(note.text.contains("file/figures"), "{note}");
    assert_eq!(store.component(key(), 3).1.map(|note| note.code).as_deref(), Some("figures_unreadable"));
}

#[test]
fn the_folder_is_bounded_and_strangers_stay() {
    let (folder, store, _) = kept();
    let inside = folder.path().join("figures");
    fs::write(inside.join("notes.txt"), "not ours").unwrap();
    for i in 0..600 {
        fs::write(inside.join(format!("{i}.figures.json")), "old").unwrap();
        fs::write(inside.join(format!(".figures-{i}")), "of a process that was killed").unwrap();
    }
    assert_eq!(store.keep(key(), &figures(8), None), None);
    assert_eq!(files(&inside).len(), 512 + 1);
    assert!(inside.join("notes.txt").exists());
    assert_eq!(store.component(key(), 3).0.map(|kept| kept.figures), Some(figures(8)), "what is new stays");
}

#[test]
fn whoever_reads_while_others_write_reads_a_whole_file() {
    let (_folder, store, _) = kept();
    thread::scope(|scope| {
        for writer in 0..3 {
            let store = &store;
            scope.spawn(move || (0..200).for_each(|_| assert_eq!(store.keep(key(), &figures(writer), None), None)));
        }
        for _ in 0..500 {
            let (kept, note) = store.component(key(), 3);
            assert_eq!(note, None);
            assert!(kept.is_some());
        }
    });
}
