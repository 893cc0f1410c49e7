//! What the tensors hold.

use half::{bf16, f16};
use mm_fixtures::{Fill, Fixture, Init, Layout, Model, Options, Tensor, write_file};
use safetensors::{Dtype, SafeTensors};
use std::{fs, path::Path};

/// The bytes of one tensor of a file.
fn bytes(path: &Path, tensor: &str) -> Vec<u8> {
    let file = fs::read(path).unwrap();
    SafeTensors::deserialize(&file).unwrap().tensor(tensor).unwrap().data().to_vec()
}

fn floats(path: &Path, tensor: &str) -> Vec<f32> {
    bytes(path, tensor).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn the_bytes_are_the_same_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    // More than one piece.
    let tensors = [Tensor::new("layers.0.weight", [1025, 1024], Dtype::BF16), Tensor::new("bias", [16], Dtype::F32)];
    write_file(&path, &tensors, Fill::Random, 7).unwrap();
    // A change here changes every fixture that others have written.
    assert_eq!(blake3::hash(&fs::read(&path).unwrap()).to_hex()[..16], *"1cd9ca406eb57e75");
}

#[test]
fn the_seed_and_the_name_decide() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, tensors: &[Tensor], seed| {
        let path = folder.path().join(name);
        write_file(&path, tensors, Fill::Random, seed).unwrap();
        path
    };
    let (a, b) = (Tensor::new("a", [1000], Dtype::F32), Tensor::new("b", [1000], Dtype::F32));
    let first = file("1", std::slice::from_ref(&a), 0);
    assert_eq!(bytes(&first, "a"), bytes(&file("2", &[b.clone(), a.clone()], 0), "a"));
    assert_ne!(bytes(&first, "a"), bytes(&file("3", std::slice::from_ref(&a), 1), "a"));
    assert_ne!(bytes(&first, "a"), bytes(&file("4", &[b], 0), "b"));

    let exact = floats(&first, "a");
    let rounded = file("5", &[Tensor { dtype: Dtype::BF16, ..a.clone() }], 0);
    let expected: Vec<u8> = exact.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    assert_eq!(bytes(&rounded, "a"), expected);
    let rounded = file("6", &[Tensor { dtype: Dtype::F16, ..a }], 0);
    let expected: Vec<u8> = exact.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    assert_eq!(bytes(&rounded, "a"), expected);
}

#[test]
fn components_with_the_same_names_differ_and_shards_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { scale: 0.0005, fill: Fill::Random, dtype: Some(Dtype::F32), ..Options::default() };
    let write = |name: &str, options: &Options| {
        let out = folder.path().join(name);
        Fixture::new(Model::Sd35Large, options).unwrap().write(&out).unwrap();
        out
    };
    let whole = write("whole", &options);
    let sharded = write("sharded", &Options { shard: Some(1 << 16), ..options.clone() });
    let tensor = "text_model.embeddings.position_embedding.weight";
    let clip = bytes(&whole.join("text_encoder/model.safetensors"), tensor);
    let other = bytes(&whole.join("text_encoder_2/model.safetensors"), tensor);
    assert_ne!(clip[..256], other[..256]);
    let index = fs::read(sharded.join("text_encoder/model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let shard = index["weight_map"][tensor].as_str().unwrap();
    assert_eq!(bytes(&sharded.join("text_encoder").join(shard), tensor), clip);
    let again = write("again", &Options { seed: 1, ..options });
    assert_ne!(bytes(&again.join("text_encoder/model.safetensors"), tensor), clip);
}

#[test]
fn values_are_normal_and_norms_are_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let norm = Tensor { init: Init::Ones, ..Tensor::new("norm", [64], Dtype::F32) };
    let ids = Tensor { init: Init::Count, ..Tensor::new("ids", [1, 77], Dtype::I64) };
    write_file(&path, &[Tensor::new("w", [1 << 20], Dtype::F32), norm, ids], Fill::Random, 3).unwrap();
    let values = floats(&path, "w");
    let moment = |power| values.iter().map(|v| f64::from(*v / 0.02).powi(power)).sum::<f64>() / values.len() as f64;
    // Of a normal variable: 0, 1, 0, 3.
    for (power, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
        assert!((moment(power) - expected).abs() < 0.03, "moment {power} is {}", moment(power));
    }
    assert!(floats(&path, "norm").iter().all(|v| *v == 1.0));
    let last = bytes(&path, "ids").as_chunks().0.last().map(|b| i64::from_le_bytes(*b));
    assert_eq!(last, Some(76));
}

#[test]
fn zeros_are_zeros() {
    let folder = tempfile::tempdir().unwrap();
    for fill in [Fill::Zeros, Fill::Sparse] {
        let path = folder.path().join(fill.name());
        write_file(&path, &[Tensor::new("w", [100_000], Dtype::F16)], fill, 0).unwrap();
        assert!(bytes(&path, "w").iter().all(|b| *b == 0));
    }
}

#[cfg(unix)]
#[test]
fn sparse_takes_no_room() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let room = |written: &mm_fixtures::Written| {
        written.paths.iter().map(|p| p.metadata().unwrap().blocks() * 512).sum::<u64>()
    };
    for (name, layout) in [("folder", Layout::Diffusers), ("file", Layout::Single)] {
        let options = Options { scale: 21.0, layout, ..Options::default() };
        let written = Fixture::new(Model::FluxDev, &options).unwrap().write(&folder.path().join(name)).unwrap();
        assert!(written.bytes > 490_000_000_000, "{}", written.bytes);
        assert!(room(&written) < 4 << 20, "{} bytes on disk", room(&written));
    }
    // The check can see room that is taken.
    let options = Options { scale: 0.001, fill: Fill::Zeros, ..Options::default() };
    let written = Fixture::new(Model::T5Xxl, &options).unwrap().write(&folder.path().join("zeros")).unwrap();
    assert!(room(&written) >= written.bytes);
}
