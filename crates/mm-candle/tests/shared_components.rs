//! What loads of one manager share, and what is left when they end, also in ways that nobody plans.

mod common;

use candle_core::DType;
use candle_nn::{Linear, VarBuilder, linear_no_bias};
use common::{DIM, checkpoint, manager, spec};
use mm_candle::{LoadSpec, Manager};
use mm_plan::Strategy;
use std::{path::Path, sync::mpsc, time::Duration};

fn shared(name: &str, file: &Path) -> LoadSpec {
    LoadSpec { config: Some("{}".to_owned()), lazy: true, ..spec(name, file, DType::F32) }
}

fn head(vb: VarBuilder<'_>) -> candle_core::Result<Linear> {
    linear_no_bias(DIM, 5, vb.pp("head"))
}

struct Files {
    folder: tempfile::TempDir,
    manager: Manager,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), manager: manager(1 << 20, Strategy::Auto) }
    }

    /// A checkpoint that is like no other of these.
    fn write(&self, blocks: usize) -> std::path::PathBuf {
        let path = self.folder.path().join(format!("{blocks}.safetensors"));
        checkpoint(&path, blocks, DType::F32);
        path
    }
}

/// What was built for a name that is taken is kept for nobody, and so can be had under another name.
#[test]
fn a_name_that_is_taken_leaves_nothing() {
    let files = Files::new();
    let (one, two) = (files.write(1), files.write(2));
    let _one = files.manager.load(&shared("vae", &one), head).unwrap();
    files.manager.load(&shared("vae", &two), head).err().expect("taken");
    assert_eq!(files.manager.cache().stats().entries, 1);
    files.manager.load(&shared("b.vae", &two), head).unwrap();
}

/// Two types of one name are two.
#[test]
fn types_are_told_apart_by_more_than_their_names() {
    let files = Files::new();
    let file = files.write(1);
    let one = {
        struct Model(Linear);
        files
            .manager
            .load(&shared("one", &file), |vb| head(vb).map(Model))
            .map(|c| (c.run(|m| Ok(m.0.weight().elem_count())).unwrap(), c))
    };
    let two = {
        struct Model(Linear, u8);
        files
            .manager
            .load(&shared("two", &file), |vb| Ok(Model(head(vb)?, 7)))
            .map(|c| (c.run(|m| Ok(m.0.weight().elem_count() as u8 + m.1)).unwrap(), c))
    };
    assert_eq!(one.unwrap().0, 5 * DIM);
    assert_eq!(two.unwrap().0, 5 * DIM as u8 + 7);
}

/// A lazy build may be of no use to a model that keeps copies of its weights; the other always is.
#[test]
fn a_lazy_build_is_not_given_to_who_asked_for_another() {
    let files = Files::new();
    let file = files.write(1);
    let copies = |vb: VarBuilder<'_>| vb.get((5, DIM), "head.weight")?.copy();
    let lazy = files.manager.load(&shared("lazy", &file), copies);
    let whole = LoadSpec { lazy: false, ..shared("whole", &file) };
    let whole = files.manager.load(&whole, copies).unwrap();
    whole.run(|copy| copy.sum_all()).unwrap();
    drop(lazy);
}

/// A component may lie in the cache that is cleared, where it is the last that holds its registration.
#[test]
fn clearing_drops_cached_components() {
    let files = Files::new();
    let file = files.write(1);
    let manager = files.manager.clone();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let load = || manager.load(&shared("vae", &file), head);
        manager.load_component("vae", "org/name", |_| 0u64, load).unwrap();
        manager.clear().unwrap();
        done.send(manager.component_names().len()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)).expect("clear waits for itself"), 0);
}
