//! What loads of one manager share, and what is left when they end, also in ways that nobody plans.

use crate::common::{
    BF16, BLOCKS, Component, F32, LoadSpec, Manager, checkpoint, describe, head_as, manager, net_of, rows_of, spec,
};
use mm_plan::Strategy;
use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

fn shared(name: &str, file: &Path) -> LoadSpec {
    LoadSpec { config: Some("{}".to_owned()), ..spec(name, file, F32) }
}

struct Files {
    folder: tempfile::TempDir,
    manager: Manager,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), manager: manager(1 << 20, Strategy::Auto) }
    }

    /// A checkpoint, like no other of these of as many blocks.
    fn write(&self, name: &str, blocks: usize) -> PathBuf {
        let path = self.folder.path().join(name);
        checkpoint(&path, blocks, F32);
        path
    }
}

#[test]
fn what_is_described_is_what_is_planned() {
    let files = Files::new();
    let spec = spec("net", &files.write("net.safetensors", BLOCKS), BF16);
    let _net = files.manager.load(&spec, net_of(BLOCKS)).unwrap();
    let described = describe(&spec, net_of(BLOCKS)).unwrap().0;
    assert_eq!(&described, files.manager.get_component("net").unwrap().description());
}

/// Wherever the bytes lie; another configuration may have been built otherwise.
#[test]
fn the_same_bytes_loaded_twice_are_one_component() {
    let files = Files::new();
    let paths = ["a.safetensors", "b.safetensors"].map(|name| files.write(name, 3));
    let load = |name: &str, file: &Path, config: &str| -> Component<_> {
        let spec = LoadSpec { config: Some(config.to_owned()), ..spec(name, file, F32) };
        files.manager.load(&spec, net_of(3)).unwrap()
    };
    let (a, b, c) = (load("a", &paths[0], "3"), load("b", &paths[1], "3"), load("c", &paths[1], "other"));
    assert!(a.is_same(&b) && !a.is_same(&c));
}

/// What was built for a name that is taken is kept for nobody, and so can be had under another name.
#[test]
fn a_name_that_is_taken_leaves_nothing() {
    let files = Files::new();
    let (one, two) = (files.write("1.safetensors", 1), files.write("2.safetensors", 2));
    let _one = files.manager.load(&shared("vae", &one), head_as(|head| head)).unwrap();
    files.manager.load(&shared("vae", &two), head_as(|head| head)).err().expect("taken");
    assert_eq!(files.manager.cache().stats().entries, 1);
    files.manager.load(&shared("b.vae", &two), head_as(|head| head)).unwrap();
}

/// Two types of one name are two.
#[test]
fn types_are_told_apart_by_more_than_their_names() {
    let files = Files::new();
    let file = files.write("1.safetensors", 1);
    let one = {
        struct Model(crate::common::Linear);
        let model = files.manager.load(&shared("one", &file), head_as(Model)).unwrap();
        (model.run(|m| Ok(rows_of(&m.0))).unwrap(), model)
    };
    let two = {
        struct Model(crate::common::Linear, usize);
        let model = files.manager.load(&shared("two", &file), head_as(|head| Model(head, 7))).unwrap();
        (model.run(|m| Ok(rows_of(&m.0) + m.1)).unwrap(), model)
    };
    assert_eq!((one.0, two.0), (5, 5 + 7));
}

/// A component may lie in the cache that is cleared, where it is the last that holds its registration.
#[test]
fn clearing_drops_cached_components() {
    let files = Files::new();
    let file = files.write("1.safetensors", 1);
    let manager = files.manager.clone();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let load = || manager.load(&shared("vae", &file), head_as(|head| head));
        manager.load_component("vae", "org/name", |_| 0u64, load).unwrap();
        manager.clear().unwrap();
        done.send(manager.component_names().len()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)).expect("clear waits for itself"), 0);
}
