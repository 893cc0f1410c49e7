//! GGUF files are weights like others: numbers where there are numbers, bytes where there are blocks.

use std::fs;
use std::path::{Path, PathBuf};

use mm_cache::{Index, LoadParams, WeightStore, Weights, WeightsError};
use safetensors::Dtype;

const F32: u32 = 0;
const Q4_0: u32 = 2;
const IQ4_NL: u32 = 20;
const BF16: u32 = 30;

/// A file of version 3: names, sides innermost first, types, and data.
fn gguf(tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(0u64.to_le_bytes());
    let mut data = Vec::new();
    for (name, sides, kind, bytes) in tensors {
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend((sides.len() as u32).to_le_bytes());
        sides.iter().for_each(|side| file.extend(side.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend_from_slice(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    [file, data].concat()
}

fn blocks(seed: u8) -> Vec<u8> {
    (0..72u8).map(|i| i.wrapping_mul(seed)).collect()
}

fn tensors(kind: u32) -> Vec<u8> {
    let one = 1f32.to_le_bytes().to_vec();
    gguf(&[("w", &[64, 2], kind, blocks(7)), ("norm", &[2, 1], BF16, vec![1, 2, 3, 4]), ("scale", &[], F32, one)])
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("writes");
    path
}

#[test]
fn numbers_have_their_shape_and_blocks_are_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    // By what it begins with, not by its name: a cache names files by their digests.
    let path = file(folder.path(), "0123abcd", &tensors(Q4_0));
    let weights = Weights::open(&[&path]).expect("opens");
    assert_eq!(weights.names().collect::<Vec<_>>(), ["norm", "scale", "w"]);
    let norm = weights.get("norm").expect("norm");
    assert_eq!((norm.dtype(), norm.shape(), norm.quantized()), (Dtype::BF16, &[1, 2][..], None));
    assert_eq!(weights.get("scale").expect("scale").shape(), [0usize; 0]);
    let w = weights.get("w").expect("w");
    assert_eq!((w.dtype(), w.shape(), w.byte_len()), (Dtype::U8, &[72][..], 72));
    let quantized = w.quantized().expect("quantized");
    assert_eq!((quantized.kind.name(), &quantized.shape[..]), ("q4_0", &[2, 64][..]));
    let mut read = [0; 10];
    w.read_into(60, &mut read).expect("reads");
    assert_eq!(read, blocks(7)[60..70]);
    assert_eq!(w.bytes().expect("maps"), blocks(7));
    assert!(w.read_into(70, &mut read).is_err(), "beyond its end");
}

#[test]
fn what_is_loaded_depends_on_what_bytes_stand_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = WeightStore::new(Index::default());
    let params = LoadParams { dtype: "f32", device: "cpu", config: b"" };
    let open = |name: &str, kind| store.open(&[file(folder.path(), name, &tensors(kind))]).expect("opens");
    let (one, same, other) = (open("a.gguf", Q4_0), open("b.gguf", Q4_0), open("c.gguf", IQ4_NL));
    assert_eq!(one.key(&params), same.key(&params));
    assert_ne!(one.key(&params), other.key(&params));
    // The bytes are the same, and held once.
    assert_eq!((same.shared_bytes(), other.shared_bytes()), (72 + 4 + 4, 72 + 4 + 4));
}

#[test]
fn broken_files_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = tensors(Q4_0);
    let refused = |bytes: &[u8]| {
        let error = Weights::open(&[file(folder.path(), "x.gguf", bytes)]).expect_err("a bad file");
        assert!(error.to_string().contains("x.gguf"), "{error}");
        error
    };
    for length in 4..whole.len() - 28 {
        let error = refused(&whole[..length]);
        assert!(matches!(error, WeightsError::Truncated { .. }), "{length}: {error}");
    }
    let tensor = refused(&whole[..whole.len() - 130]);
    assert!(matches!(&tensor, WeightsError::Truncated { tensor: Some(name), .. } if name == "w"), "{tensor}");
    let mut version = whole.clone();
    version[4] = 9;
    let version = refused(&version);
    assert!(matches!(&version, WeightsError::Header { format: "GGUF", .. }), "{version}");
    assert!(version.to_string().contains("not a GGUF file: version 9"), "{version}");
    let unknown = refused(&gguf(&[("w", &[64, 2], 77, blocks(1))]));
    assert!(matches!(&unknown, WeightsError::Tensor { tensor, .. } if tensor == "w"), "{unknown}");
    let part = refused(&gguf(&[("w", &[33, 2], Q4_0, blocks(1))]));
    assert!(part.to_string().contains("no whole number of blocks"), "{part}");
    let text = refused(b"GGU");
    assert!(matches!(text, WeightsError::Truncated { .. }), "{text}");
}

#[test]
fn a_name_in_both_formats_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let header = br#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let plain = [&(header.len() as u64).to_le_bytes()[..], header, &[1]].concat();
    let files = [file(folder.path(), "a.safetensors", &plain), file(folder.path(), "b.gguf", &tensors(Q4_0))];
    let error = Weights::open(&files).expect_err("twice").to_string();
    assert!(error.contains("a.safetensors") && error.contains("b.gguf"), "{error}");
}

#[test]
fn a_file_written_in_place_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(folder.path(), "x.gguf", &tensors(Q4_0));
    let weights = Weights::open(&[&path]).expect("opens");
    let longer = [tensors(Q4_0), vec![0; 32]].concat();
    fs::write(&path, longer).expect("writes");
    let error = weights.get("w").expect("w").read_into(0, &mut [0; 8]).expect_err("changed");
    assert!(matches!(error, WeightsError::Changed { .. }), "{error}");
}
