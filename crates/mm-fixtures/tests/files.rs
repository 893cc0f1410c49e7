//! What is written is what the fixture lists.

use mm_fixtures::{Fill, Fixture, Layout, Model, Options, Tensor, Written, write_file};
use safetensors::{Dtype, SafeTensors};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn small(fill: Fill) -> Options {
    Options { layers: Some(2), scale: 0.0005, fill, ..Options::default() }
}

fn write(model: Model, options: &Options, out: &Path) -> (Fixture, Written) {
    let fixture = Fixture::new(model, options).unwrap();
    let written = fixture.write(out).unwrap();
    (fixture, written)
}

/// Name, dtype and shape of each tensor of a file.
fn read(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec()))).collect()
}

fn listed(tensors: &[Tensor]) -> BTreeMap<String, (Dtype, Vec<usize>)> {
    tensors.iter().map(|t| (t.name.clone(), (t.dtype, t.shape.clone()))).collect()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn folders_read_back() {
    for model in Model::ALL {
        let folder = tempfile::tempdir().unwrap();
        let (fixture, written) = write(model, &small(Fill::Sparse), folder.path());
        let on_disk: u64 = written.paths.iter().map(|p| fs::metadata(p).unwrap().len()).sum();
        assert_eq!(written.bytes, on_disk);
        let lone = matches!(model, Model::T5Xxl | Model::Qwen3_4b);
        for component in &fixture.components {
            let home = if lone { folder.path().into() } else { folder.path().join(&component.name) };
            let stem = if component.transformers { "model" } else { "diffusion_pytorch_model" };
            assert_eq!(read(&home.join(format!("{stem}.safetensors"))), listed(&component.tensors), "{model}");
            assert_eq!(json(&home.join("config.json")), component.config);
        }
        if !lone {
            let index = json(&folder.path().join("model_index.json"));
            let parts = index.as_object().unwrap().iter().filter(|(_, value)| value.is_array());
            for (name, value) in parts {
                assert!(folder.path().join(name).is_dir(), "{model}: no folder {name}");
                let component = fixture.components.iter().find(|c| c.name == *name);
                assert!(component.is_none_or(|c| value[1] == *c.class), "{model}: {name} is {value}");
            }
        }
    }
}

#[test]
fn single_files_read_back() {
    for model in Model::ALL {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { layout: Layout::Single, ..small(Fill::Sparse) };
        let (fixture, written) = write(model, &options, folder.path());
        let tensors: Vec<_> = fixture.components.iter().flat_map(|c| c.tensors.clone()).collect();
        assert_eq!(written.paths, [folder.path().join(model.single_file())]);
        assert_eq!(read(&written.paths[0]), listed(&tensors), "{model}");
    }
}

#[test]
fn shards_and_their_index_hold_every_tensor_once() {
    let folder = tempfile::tempdir().unwrap();
    let most = 300_000;
    let (fixture, _) = write(Model::FluxDev, &Options { shard: Some(most), ..small(Fill::Zeros) }, folder.path());
    for (name, stem) in [("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")] {
        let component = fixture.components.iter().find(|c| c.name == name).unwrap();
        let home = folder.path().join(name);
        let index = json(&home.join(format!("{stem}.safetensors.index.json")));
        assert_eq!(index["metadata"]["total_size"], component.bytes());
        let places = index["weight_map"].as_object().unwrap();
        assert_eq!(places.len(), component.tensors.len());
        let files: Vec<String> = (1..)
            .map(|n| n.to_string())
            .take_while(|n| {
                fs::read_dir(&home)
                    .unwrap()
                    .any(|e| e.unwrap().file_name().to_str().unwrap().contains(&format!("-{n:0>5}-of-")))
            })
            .collect();
        assert!(files.len() > 1);
        let mut all = BTreeMap::new();
        for number in &files {
            let file = format!("{stem}-{number:0>5}-of-{:05}.safetensors", files.len());
            let tensors = read(&home.join(&file));
            let bytes: usize =
                tensors.values().map(|(d, shape)| d.bitsize() / 8 * shape.iter().product::<usize>()).sum();
            assert!(bytes as u64 <= most || tensors.len() == 1, "{file} holds {bytes} bytes");
            assert!(tensors.keys().all(|name| places[name] == *file));
            all.extend(tensors);
        }
        assert_eq!(all, listed(&component.tensors));
    }
}

#[test]
fn the_cache_links_to_blobs_or_holds_copies() {
    let folder = tempfile::tempdir().unwrap();
    let [links, copies, plain] = [Layout::HfCache, Layout::HfCacheCopies, Layout::Diffusers].map(|layout| {
        let out = folder.path().join(layout.name());
        write(Model::Sdxl, &Options { layout, ..small(Fill::Random) }, &out);
        out
    });
    let repository = "models--stabilityai--stable-diffusion-xl-base-1.0";
    for (out, linked) in [(&links, true), (&copies, false)] {
        let repository = out.join(repository);
        let revision = fs::read_to_string(repository.join("refs/main")).unwrap();
        assert!(revision.len() == 40 && revision.bytes().all(|c| c.is_ascii_hexdigit()), "{revision}");
        let snapshot = repository.join("snapshots").join(revision);
        for file in files(&plain) {
            let entry = snapshot.join(&file);
            assert_eq!(fs::read(&entry).unwrap(), fs::read(plain.join(&file)).unwrap(), "{}", file.display());
            assert_eq!(entry.is_symlink(), linked);
            if linked {
                assert!(fs::read_link(&entry).unwrap().is_relative());
                assert!(
                    fs::canonicalize(&entry).unwrap().starts_with(fs::canonicalize(&repository).unwrap().join("blobs"))
                );
            }
        }
        assert_eq!(fs::read_dir(repository.join("blobs")).unwrap().count() > 0, linked);
    }
}

#[test]
fn variants_lie_beside_what_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (out, plain) = (folder.path().join("variants"), folder.path().join("plain"));
    let (fixture, _) = write(Model::Sdxl, &Options { variants: true, ..small(Fill::Random) }, &out);
    write(Model::Sdxl, &small(Fill::Random), &plain);
    for file in files(&plain) {
        assert_eq!(fs::read(plain.join(&file)).unwrap(), fs::read(out.join(&file)).unwrap(), "{}", file.display());
    }
    let halves = read(&out.join("unet/diffusion_pytorch_model.fp16.safetensors"));
    let unet = fixture.components.iter().find(|c| c.name == "unet").unwrap();
    assert_eq!(halves.keys().collect::<Vec<_>>(), listed(&unet.tensors).keys().collect::<Vec<_>>());
    assert!(halves.values().all(|(dtype, _)| *dtype == Dtype::F16));
    for beside in ["README.md", ".gitattributes", "stray_lora.safetensors", "unet/diffusion_pytorch_model.bin"] {
        assert!(out.join(beside).is_file(), "{beside}");
    }
    assert!(out.join("text_encoder/pytorch_model.bin").is_file());
}

#[test]
fn a_list_of_tensors_becomes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let tensors = [
        Tensor::new("w", [3, 5], Dtype::BF16),
        Tensor::new("scalar", [], Dtype::F32),
        Tensor::new("empty", [0, 4], Dtype::F16),
        Tensor::new("bytes", [9], Dtype::U8),
        Tensor::new("f8", [7], Dtype::F8_E4M3),
    ];
    for fill in Fill::ALL {
        let length = write_file(&path, &tensors, fill, 1).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), length);
        assert_eq!(read(&path), listed(&tensors));
    }
    assert_eq!(files(folder.path()), [PathBuf::from("a.safetensors")], "nothing partial stays");
}

#[test]
fn what_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let twice = [Tensor::new("w", [1], Dtype::F32), Tensor::new("w", [2], Dtype::F32)];
    let huge = [Tensor::new("vast", [usize::MAX, 3], Dtype::F32)];
    for (tensors, word) in [(&twice[..], "w is there twice"), (&huge[..], "vast")] {
        let error = write_file(&path, tensors, Fill::Sparse, 0).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("a.safetensors"), "{error}");
    }
    let error = write_file(&folder.path().join("none/b.safetensors"), &[], Fill::Sparse, 0).unwrap_err().to_string();
    assert!(error.contains("b.safetensors"), "{error}");
    assert!(files(folder.path()).is_empty());
    fs::write(folder.path().join("there"), "").unwrap();
    let error = Fixture::new(Model::T5Xxl, &small(Fill::Sparse)).unwrap().write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("--out") && error.contains("not empty"), "{error}");
}

/// Files and links under a folder, relative to it, sorted.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}
