//! What lies in several files is held once, and every file still has its own bytes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mm_cache::{ContentId, Index, LoadParams, WeightStore, Weights, content_hash, joint_id};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Beyond what is compared without hashing.
const LENGTH: usize = 50_000;
const PARAMS: LoadParams<'_> = LoadParams { dtype: "f32", device: "cpu", config: b"{}" };

struct Files {
    folder: tempfile::TempDir,
    store: WeightStore,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), store: WeightStore::new(Index::none()) }
    }

    /// Dated an hour back, so that any write shows in the mtime however coarse the clock of the file system is.
    fn write(&self, name: &str, tensors: &[(&str, Vec<u8>)]) -> PathBuf {
        let path = self.folder.path().join(name);
        let views = tensors
            .iter()
            .map(|(name, bytes)| (*name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes).expect("a tensor")));
        fs::write(&path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(&path).expect("opens").set_modified(hour_ago).expect("dates");
        path
    }

    fn open(&self, paths: &[&Path]) -> Arc<Weights> {
        self.store.open(paths).expect("opens")
    }
}

fn filled(with: u8) -> Vec<u8> {
    (0..LENGTH).map(|i| with ^ (i % 251) as u8).collect()
}

/// The same start, middle and end as `filled(with)`, and another byte between.
fn nearly(with: u8) -> Vec<u8> {
    let mut bytes = filled(with);
    bytes[LENGTH / 4] ^= 1;
    bytes
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![("blocks.0", filled(1)), ("blocks.1", filled(2)), ("empty", vec![]), ("norm", vec![5; 100])]
}

fn read(weights: &Weights, name: &str) -> Vec<u8> {
    let tensor = weights.get(name).expect("there");
    let mut bytes = vec![0; tensor.byte_len() as usize];
    tensor.read_into(0, &mut bytes).expect("reads");
    assert_eq!(tensor.bytes().expect("maps"), bytes);
    bytes
}

fn start(weights: &Weights, name: &str) -> *const u8 {
    weights.get(name).expect("there").bytes().expect("maps").as_ptr()
}

fn shared(weights: &Weights) -> Vec<&str> {
    weights.tensors().filter(|tensor| tensor.is_shared()).map(|tensor| tensor.name()).collect()
}

#[test]
fn a_copy_is_the_same_memory_and_the_same_key() {
    let files = Files::new();
    let (one, two) = (files.write("one", &model()), files.write("two", &model()));
    let (a, b) = (files.open(&[&one]), files.open(&[&two]));
    assert_eq!(shared(&b), ["blocks.0", "blocks.1", "empty", "norm"]);
    assert_eq!((a.shared_bytes(), b.shared_bytes()), (0, 2 * LENGTH as u64 + 100));
    let stats = files.store.stats();
    assert_eq!((stats.tensors, stats.bytes), (4, b.shared_bytes()));
    for (name, bytes) in model() {
        assert_eq!(read(&b, name), bytes);
        assert!(bytes.is_empty() || start(&a, name) == start(&b, name), "{name} is mapped once");
        assert_eq!(b.get(name).expect("there").file(), two, "named as it was opened");
    }
    assert_eq!(a.key(&PARAMS), b.key(&PARAMS));
    assert_ne!(Weights::open(&[&two]).expect("opens").key(&PARAMS), a.key(&PARAMS), "nobody compared them");
    for other in [
        LoadParams { dtype: "bf16", ..PARAMS },
        LoadParams { device: "cuda:0", ..PARAMS },
        LoadParams { config: b"{ }", ..PARAMS },
    ] {
        assert_ne!(a.key(&PARAMS), a.key(&other));
    }
}

#[test]
fn a_fine_tune_shares_what_it_left_as_it_was() {
    let files = Files::new();
    let base = files.write("base", &model());
    let mut tuned = model();
    tuned[0].1 = nearly(1);
    tuned[3].1[7] = 6;
    tuned.push(("more", filled(9)));
    let tuned_path = files.write("tuned", &tuned);
    let (a, b) = (files.open(&[&base]), files.open(&[&tuned_path]));
    assert_eq!(shared(&b), ["blocks.1", "empty"]);
    for (name, bytes) in tuned {
        assert_eq!(read(&b, name), bytes, "{name}");
    }
    assert_ne!(a.key(&PARAMS), b.key(&PARAMS));
}

#[test]
fn files_may_be_cut_otherwise() {
    let files = Files::new();
    let whole = files.write("whole", &model());
    let (head, tail) = (files.write("head", &model()[..1]), files.write("tail", &model()[1..]));
    let (a, b) = (files.open(&[&whole]), files.open(&[&tail, &head]));
    assert_eq!(shared(&b).len(), 4);
    assert_eq!(a.key(&PARAMS), b.key(&PARAMS));
    let third = files.write("third", &model());
    assert_eq!(files.open(&[&third]).key(&PARAMS), a.key(&PARAMS), "and a copy of what is shared already");
}

#[test]
fn other_shapes_and_other_names_are_not_compared() {
    let files = Files::new();
    // What follows `b` would do for its last byte.
    let base = files.write("base", &[("a", filled(1)), ("b", vec![1; 40]), ("bb", vec![1; 40])]);
    let other = files.write("other", &[("c", filled(1)), ("b", vec![1; 41])]);
    let (_held, b) = (files.open(&[&base]), files.open(&[&other]));
    assert!(shared(&b).is_empty());
}

#[test]
fn what_nobody_holds_is_not_shared_with() {
    let files = Files::new();
    let (one, two) = (files.write("one", &model()), files.write("two", &model()));
    drop(files.open(&[&one]));
    assert!(shared(&files.open(&[&two])).is_empty());
}

#[test]
fn the_one_that_was_first_may_go() {
    let files = Files::new();
    let (one, two) = (files.write("one", &model()), files.write("two", &model()));
    let (a, b) = (files.open(&[&one]), files.open(&[&two]));
    drop(a);
    fs::remove_file(&one).expect("removes");
    assert_eq!(read(&b, "blocks.1"), filled(2));
}

#[test]
fn a_file_that_changes_is_no_longer_shared() {
    for change in [|file: &File| file.set_len(10), |file: &File| file.set_modified(SystemTime::now())] {
        let files = Files::new();
        let (one, two) = (files.write("one", &model()), files.write("two", &model()));
        let (a, b) = (files.open(&[&one]), files.open(&[&two]));
        change(&File::options().write(true).open(&one).expect("opens")).expect("changes");
        let mut bytes = vec![0; LENGTH];
        assert!(a.get("blocks.0").expect("there").read_into(0, &mut bytes).is_err());
        assert_eq!(read(&b, "blocks.0"), filled(1), "its own file is whole");
        b.get("blocks.0").expect("there").check().expect("whole");
        let third = files.write("third", &model());
        let c = files.open(&[&third]);
        assert_eq!(start(&c, "blocks.0"), start(&b, "blocks.0"), "shared with the one that is whole");
        fs::write(&two, "gone too").expect("writes");
        assert_eq!(read(&c, "blocks.0"), filled(1));
        let error = b.get("blocks.0").expect("there").read_into(0, &mut bytes).expect_err("both are gone");
        assert!(error.to_string().contains("two"), "{error}");
    }
}

#[test]
fn joint_ids_and_keys_tell_what_differs() {
    let [a, b] = [b"a", b"b"].map(|bytes| ContentId::of(bytes));
    assert_eq!(joint_id([a, b]), joint_id([b, a]), "whatever the order");
    assert_ne!(joint_id([a, b]), joint_id([a]));
    assert_ne!(joint_id([a]), a, "what belongs together is told from what lies alone");
    assert_ne!(content_hash(&[a, b], &PARAMS), content_hash(&[b, a], &PARAMS), "in the order given");
    let run_together = LoadParams { dtype: "f32c", device: "pu", ..PARAMS };
    assert_ne!(content_hash(&[a], &PARAMS), content_hash(&[a], &run_together));
}
