//! Folders with more in them than is loaded: the set that a loader would open is the one that counts.

use std::fs;
use std::path::Path;

use mm_probe::{Checkpoint, InspectError, Library, inspect, inspect_variant, weight_files};
use safetensors::{Dtype, tensor::TensorView};

const PIPELINE: &str = r#"{"_class_name":"P","transformer":["diffusers","T"],"text_encoder":["transformers","E"]}"#;

/// A file of one tensor `w` of so many bytes.
fn weights(path: &Path, bytes: usize) {
    let data = vec![0; bytes];
    let view = TensorView::new(Dtype::U8, vec![bytes], &data).expect("a tensor");
    write(path, &safetensors::serialize([("w", view)], None).expect("serializes"));
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
    fs::write(path, bytes).expect("writes");
}

fn index(file: &str) -> Vec<u8> {
    format!(r#"{{"weight_map":{{"w":"{file}"}}}}"#).into_bytes()
}

/// Name, stored bytes and variant of each component.
fn summary(checkpoint: &Checkpoint) -> Vec<(&str, u64, Option<&str>)> {
    checkpoint.components.iter().map(|c| (c.name.as_str(), c.stored_bytes(), c.variant.as_deref())).collect()
}

#[test]
fn the_plain_set_counts_whatever_lies_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    write(&at("model_index.json"), PIPELINE.as_bytes());
    weights(&at("transformer/diffusion_pytorch_model.safetensors"), 7);
    weights(&at("text_encoder/model.safetensors"), 5);
    let before = inspect(folder.path(), None).expect("inspects");
    assert_eq!(summary(&before), [("text_encoder", 5, None), ("transformer", 7, None)]);

    weights(&at("transformer/diffusion_pytorch_model.fp16.safetensors"), 100);
    weights(&at("transformer/diffusion_pytorch_model.non_ema.safetensors"), 100);
    weights(&at("transformer/model.safetensors"), 100);
    weights(&at("transformer/other.safetensors"), 100);
    weights(&at("text_encoder/model.fp16.safetensors"), 50);
    weights(&at("text_encoder/diffusion_pytorch_model.safetensors"), 100);
    weights(&at("flux1-dev.safetensors"), 1000);
    for twin in ["transformer/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "flax_model.msgpack"] {
        write(&at(twin), b"not read");
    }
    write(&at("text_encoder/model.onnx_data"), b"not read");
    write(&at("unet/diffusion_pytorch_model.safetensors"), b"named by nobody");
    let after = inspect(folder.path(), None).expect("inspects");
    assert_eq!(summary(&after), summary(&before));
    assert_eq!(after.to_plan(), before.to_plan());

    let half = inspect_variant(folder.path(), None, Some("fp16")).expect("inspects");
    assert_eq!(summary(&half), [("text_encoder", 50, Some("fp16")), ("transformer", 100, Some("fp16"))]);
    let other = inspect_variant(folder.path(), None, Some("non_ema")).expect("inspects");
    assert_eq!(summary(&other), [("text_encoder", 5, None), ("transformer", 100, Some("non_ema"))]);
    let error = inspect_variant(folder.path(), None, Some("int4")).expect_err("nobody has it");
    let InspectError::Variant { variant, there, .. } = &error else { panic!("{error:?}") };
    assert_eq!((variant.as_str(), there.join(" ").as_str()), ("int4", "fp16 non_ema"));
}

#[test]
fn where_there_is_no_plain_set_the_only_variant_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    write(&at("model_index.json"), PIPELINE.as_bytes());
    weights(&at("text_encoder/model.fp16.safetensors"), 5);
    // As the hub has sharded variants: the variant stands behind `index`.
    write(
        &at("transformer/diffusion_pytorch_model.safetensors.index.fp16.json"),
        &index("s.fp16-00001-of-00001.safetensors"),
    );
    weights(&at("transformer/s.fp16-00001-of-00001.safetensors"), 7);
    let expected = [("text_encoder", 5, Some("fp16")), ("transformer", 7, Some("fp16"))];
    assert_eq!(summary(&inspect(folder.path(), None).expect("inspects")), expected);

    weights(&at("text_encoder/model.bf16.safetensors"), 50);
    let error = inspect(folder.path(), None).expect_err("two");
    let text = error.to_string();
    assert!(matches!(error, InspectError::Ambiguous { .. }), "{text}");
    for part in [at("text_encoder").to_str().expect("UTF-8"), "bf16", "fp16", "--variant"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(summary(&inspect_variant(folder.path(), None, Some("fp16")).expect("inspects")), expected);
}

/// Each library looks for its own names, and one prefers an index where the other prefers a file.
#[test]
fn a_file_and_an_index_beside_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    for stem in ["diffusion_pytorch_model", "model"] {
        weights(&folder.path().join(format!("{stem}.safetensors")), 1);
        write(&folder.path().join(format!("{stem}.safetensors.index.json")), &index("s.safetensors"));
    }
    weights(&folder.path().join("s.safetensors"), 1);
    let first = |library| {
        let found = weight_files(folder.path(), library, None).expect("found").expect("weights");
        found.files[0].file_name().expect("a name").to_owned()
    };
    assert_eq!(first(Library::Diffusers), "s.safetensors");
    assert_eq!(first(Library::Unknown), "s.safetensors");
    assert_eq!(first(Library::Transformers), "model.safetensors");
}

#[test]
fn downloads_that_were_cut_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    weights(&at("m/model-00001-of-00002.safetensors"), 1);
    let error = inspect(at("m"), None).expect_err("the index is missing");
    assert!(
        matches!(&error, InspectError::NoIndex { shard, .. } if *shard == at("m/model-00001-of-00002.safetensors"))
    );
    write(&at("m/model.safetensors.index.json"), &index("model-00002-of-00002.safetensors"));
    write(&at("m/.cache/huggingface/download/x.incomplete"), b"");
    let text = inspect(at("m"), None).expect_err("a shard is missing").to_string();
    for part in ["model-00002-of-00002.safetensors", "index.json", "finish the download", "x.incomplete"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_folder_with_one_file_of_any_name_is_that_file() {
    let folder = tempfile::tempdir().expect("a folder");
    weights(&folder.path().join("flux1-dev.safetensors"), 3);
    let one = inspect(folder.path(), None).expect("inspects");
    assert_eq!(summary(&one), [("flux1-dev", 3, None)]);
    weights(&folder.path().join("ae.safetensors"), 3);
    let text = inspect(folder.path(), None).expect_err("which?").to_string();
    assert!(text.contains("ae") && text.contains("flux1-dev") && text.contains("name the file"), "{text}");
}

#[cfg(unix)]
#[test]
fn the_same_file_under_two_names_counts_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    let pipeline = r#"{"_class_name":"P","a":["transformers","E"],"b":["transformers","E"],"c":["transformers","E"]}"#;
    write(&at("model_index.json"), pipeline.as_bytes());
    weights(&at("blob"), 9);
    for (name, link) in [("a", false), ("b", true), ("c", false)] {
        fs::create_dir(at(name)).expect("creates");
        let to = at(&format!("{name}/model.safetensors"));
        if link { std::os::unix::fs::symlink("../blob", to) } else { fs::hard_link(at("blob"), to) }.expect("links");
    }
    let checkpoint = inspect(folder.path(), None).expect("inspects");
    let same: Vec<_> = checkpoint.components.iter().map(|c| c.same_as.as_deref()).collect();
    assert_eq!(same, [None, Some("a"), Some("a")]);
    let planned: Vec<u64> = checkpoint.to_plan().iter().map(mm_plan::Component::bytes).collect();
    assert_eq!(planned, [256, 0, 0]);
    fs::remove_file(at("c/model.safetensors")).expect("removes");
    weights(&at("c/model.safetensors"), 9);
    let copied = inspect(folder.path(), None).expect("inspects");
    assert_eq!(copied.components[2].same_as, None, "equal bytes are found by hashing, not from headers");
}

#[cfg(unix)]
#[test]
fn links_that_lead_in_circles() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    std::os::unix::fs::symlink("model.safetensors", at("model.safetensors")).expect("links");
    let error = inspect(folder.path(), None).expect_err("a circle");
    assert!(matches!(&error, InspectError::Io { path, .. } if *path == at("model.safetensors")), "{error:?}");
    std::os::unix::fs::symlink("m", at("m")).expect("links");
    assert!(inspect(at("m"), None).is_err());
}

/// Nothing of a pipeline is left out silently, and nothing else is taken for a model's weights.
#[test]
fn weights_that_are_not_there_are_missed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    write(&at("model_index.json"), PIPELINE.as_bytes());
    weights(&at("text_encoder/model.safetensors"), 5);
    fs::create_dir(at("transformer")).expect("creates");
    let refused = |parts: &[&str]| {
        let text = inspect(folder.path(), None).expect_err("the transformer is missing").to_string();
        for part in parts {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    };
    refused(&["transformer", "finish the download"]);
    weights(&at("transformer/diffusion_pytorch_model-00001-of-00002.fp16.safetensors"), 5);
    refused(&["diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "index"]);
    fs::remove_dir_all(at("transformer")).expect("removes");
    write(&at("transformer/diffusion_pytorch_model.bin"), b"pickled");
    weights(&at("transformer/pytorch_lora_weights.safetensors"), 5);
    refused(&["diffusion_pytorch_model.bin", "pickled"]);
}

#[test]
fn a_file_has_no_variants_and_an_index_may_begin_with_a_dot() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    weights(&at("model.safetensors"), 5);
    let error = inspect_variant(at("model.safetensors"), None, Some("fp16")).expect_err("a file");
    assert!(matches!(error, InspectError::Variant { .. }), "{error:?}");
    write(&at("model.safetensors.index.json"), &index("./model.safetensors"));
    let found = inspect(at("model.safetensors.index.json"), None).expect("inspects");
    assert_eq!(found.components[0].stored_bytes(), 5);
}
