//! Weights are views of files that are opened once and mapped once.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use mm_cache::{ContentId, TensorSlice, Weights, WeightsError, content_id};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("a tensor")));
    fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn several_files_are_one_namespace() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
    write(&one, &[("b", Dtype::F32, &[2, 1], floats(&[1.0, 2.0])), ("a", Dtype::U8, &[3], vec![7, 8, 9])]);
    write(&two, &[("c", Dtype::BF16, &[], vec![0x80, 0x3f]), ("empty", Dtype::F32, &[0, 4], vec![])]);
    let weights = Weights::open(&[&two, &one]).expect("opens");
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c", "empty"]);
    assert_eq!(weights.files(), [two.clone(), one.clone()]);
    let b = weights.get("b").expect("b");
    assert_eq!((b.bytes().expect("maps"), b.dtype(), b.shape()), (&floats(&[1.0, 2.0])[..], Dtype::F32, &[2, 1][..]));
    assert_eq!((b.name(), b.file()), ("b", one.as_path()));
    assert_eq!(weights.get("c").expect("c").bytes().expect("maps"), [0x80, 0x3f]);
    assert_eq!(weights.get("empty").expect("empty").bytes().expect("maps"), [0u8; 0]);
    assert!(weights.get("d").is_none());
    for name in ["a", "b", "c"] {
        let tensor = weights.get(name).expect("there");
        let range = tensor.file_range();
        let file = fs::read(tensor.file()).expect("reads");
        assert_eq!(&file[range.start as usize..range.end as usize], tensor.bytes().expect("maps"), "{name}");
    }
}

#[test]
fn no_files_hold_no_tensors() {
    let weights = Weights::open(&[] as &[PathBuf]).expect("opens");
    assert_eq!(weights.names().count(), 0);
}

#[test]
fn a_name_in_two_files_is_an_error_that_names_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one.safetensors"), folder.path().join("two.safetensors"));
    write(&one, &[("x", Dtype::U8, &[1], vec![1])]);
    write(&two, &[("x", Dtype::U8, &[1], vec![2])]);
    let error = Weights::open(&[&one, &two]).expect_err("twice");
    let text = error.to_string();
    assert!(matches!(error, WeightsError::Duplicate { ref tensor, .. } if tensor == "x"), "{text}");
    assert!(text.contains("one.safetensors") && text.contains("two.safetensors"), "{text}");
}

#[cfg(unix)]
#[test]
fn one_file_is_mapped_once_whatever_it_is_called() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.safetensors");
    let (symbolic, hard) = (folder.path().join("s.safetensors"), folder.path().join("h.safetensors"));
    write(&file, &[("x", Dtype::U8, &[2], vec![1, 2])]);
    std::os::unix::fs::symlink(&file, &symbolic).expect("links");
    fs::hard_link(&file, &hard).expect("links");
    let opened = [&file, &symbolic, &hard].map(|path| Weights::open(&[path]).expect("opens"));
    let starts: Vec<_> =
        opened.iter().map(|weights| weights.get("x").expect("x").bytes().expect("maps").as_ptr()).collect();
    assert_eq!(starts[0], starts[1]);
    assert_eq!(starts[0], starts[2]);
    assert_eq!(opened[1].get("x").expect("x").file(), symbolic, "named as it was opened");

    let copy = folder.path().join("copy.safetensors");
    fs::copy(&file, &copy).expect("copies");
    let other = Weights::open(&[&copy]).expect("opens");
    assert_ne!(other.get("x").expect("x").bytes().expect("maps").as_ptr(), starts[0], "another file, another mapping");
}

#[cfg(unix)]
#[test]
fn a_replaced_file_is_another_one_and_the_old_bytes_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, next) = (folder.path().join("a.safetensors"), folder.path().join("next"));
    write(&file, &[("x", Dtype::U8, &[2], vec![1, 2])]);
    let old = Weights::open(&[&file]).expect("opens");
    write(&next, &[("x", Dtype::U8, &[2], vec![3, 4])]);
    fs::rename(&next, &file).expect("replaces");
    let new = Weights::open(&[&file]).expect("opens");
    assert_eq!(old.get("x").expect("x").bytes().expect("maps"), [1, 2]);
    assert_eq!(new.get("x").expect("x").bytes().expect("maps"), [3, 4]);
    old.get("x").expect("x").check().expect("its file is whole, though it has lost its name");
}

#[test]
fn a_file_written_in_place_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.safetensors");
    write(&file, &[("x", Dtype::U8, &[2], vec![1, 2])]);
    let weights = Weights::open(&[&file]).expect("opens");
    let tensor = weights.get("x").expect("x").clone();
    drop(weights);
    tensor.check().expect("untouched");
    // Grown, as the one change in place that no reader of the mapping can be hurt by.
    let mut whole = fs::read(&file).expect("reads");
    whole.push(0);
    fs::write(folder.path().join("copy"), &whole).expect("writes");
    let handle = fs::OpenOptions::new().append(true).open(&file).expect("opens");
    handle.set_len(whole.len() as u64).expect("grows");
    let error = tensor.check().expect_err("grown");
    assert!(matches!(&error, WeightsError::Changed { file: at, .. } if *at == file), "{error:?}");
    assert!(matches!(Weights::open(&[&file]), Err(WeightsError::Header { .. })), "opened anew, it is checked anew");
}

#[test]
fn a_tensor_may_live_in_memory_only() {
    let tensor = TensorSlice::from_bytes("x", Dtype::F32, [2], floats(&[1.0, 2.0])).expect("fits");
    let copy = tensor.clone();
    assert_eq!(
        copy.bytes().expect("there").as_ptr(),
        tensor.bytes().expect("maps").as_ptr(),
        "a clone shares the bytes"
    );
    assert_eq!((copy.file(), copy.file_range(), copy.name()), (Path::new("(memory)"), 0..8, "x"));
    copy.check().expect("memory does not change");
    for (dtype, shape, length) in [
        (Dtype::F32, vec![2], 7),
        (Dtype::F32, vec![2], 9),
        (Dtype::U8, vec![usize::MAX, 2], 0),
        (Dtype::F4, vec![3], 1),
    ] {
        let error = TensorSlice::from_bytes("lie", dtype, shape, vec![0; length]).expect_err("does not fit");
        assert!(error.to_string().contains("`lie`"), "{error}");
    }
}

#[test]
fn the_demo_checkpoint_reads_as_another_reader_reads_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes/transformer");
    let mut shards: Vec<PathBuf> = fs::read_dir(folder).expect("there").map(|f| f.expect("a file").path()).collect();
    shards.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    assert_eq!(shards.len(), 3);
    let weights = Weights::open(&shards).expect("opens");
    let mut expected = HashMap::new();
    for shard in &shards {
        let bytes = fs::read(shard).expect("reads");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("parses");
        for (name, view) in tensors.iter() {
            expected.insert(name.to_owned(), (view.shape().to_vec(), ContentId::of(view.data())));
        }
        assert_eq!(content_id(shard).expect("hashes"), ContentId::of(&bytes));
    }
    let found: HashMap<_, _> = weights
        .names()
        .map(|name| (name.to_owned(), weights.get(name).expect("listed")))
        .map(|(name, tensor)| (name, (tensor.shape().to_vec(), ContentId::of(tensor.bytes().expect("maps")))))
        .collect();
    assert_eq!(found, expected);
}
