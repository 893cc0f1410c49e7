//! Checkpoints that lie, miss parts or are something else. Each must be an error that names the file at fault.

use std::fs;
use std::path::{Path, PathBuf};

use mm_plan::DType;
use mm_probe::{InspectError, inspect};

/// A folder with these files in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        for (path, bytes) in files {
            let path = folder.at(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
            fs::write(path, bytes).expect("writes");
        }
        folder
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Inspecting `path` fails and the message names `culprit`.
    fn refuses(&self, path: &str, culprit: &str) -> InspectError {
        let error = inspect(self.at(path), Some(DType::Bf16)).expect_err("a bad checkpoint");
        let named = self.at(culprit);
        assert!(error.to_string().contains(named.to_str().expect("UTF-8")), "{error} should name {culprit}");
        error
    }
}

fn safetensors(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// One tensor `name` of `data` bytes.
fn good(name: &str, data: usize) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#);
    safetensors(header.as_bytes(), data)
}

fn refused_file(bytes: &[u8]) -> InspectError {
    Folder::with(&[("bad.safetensors", bytes)]).refuses("bad.safetensors", "bad.safetensors")
}

fn refused_tensor(header: &str, data: usize, named: &str, why: &str) {
    let error = refused_file(&safetensors(header.as_bytes(), data));
    assert!(matches!(&error, InspectError::Tensor { tensor, .. } if tensor == named), "{header}: {error:?}");
    assert!(error.to_string().contains(why), "{header}: {error}");
}

#[test]
fn truncated_at_every_byte() {
    let whole = good("a", 9);
    for length in 0..whole.len() {
        let error = refused_file(&whole[..length]);
        let InspectError::Truncated { need, have, .. } = error else { panic!("at {length}: {error:?}") };
        assert!(have == length as u64 && need > have && need <= whole.len() as u64, "at {length}: {need} of {have}");
    }
}

#[test]
fn header_lengths_that_lie() {
    let mut bytes = good("a", 9);
    for (length, truncated) in [(u64::MAX, false), (25_000_001, false), (25_000_000, true), (4, false)] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let error = refused_file(&bytes);
        assert_eq!(matches!(error, InspectError::Truncated { .. }), truncated, "{length}: {error:?}");
    }
    let mut longer = good("a", 9);
    longer.push(0);
    assert!(matches!(refused_file(&longer), InspectError::Header { .. }), "bytes that belong to nobody");
}

/// A file that really is as large as its header claims, all of it a hole.
#[test]
fn a_huge_sparse_file_is_read_no_further_than_its_first_fault() {
    let folder = Folder::with(&[("bad.safetensors", &24_999_999u64.to_le_bytes())]);
    let file = fs::OpenOptions::new().write(true).open(folder.at("bad.safetensors")).expect("opens");
    file.set_len(1 << 40).expect("grows");
    let error = folder.refuses("bad.safetensors", "bad.safetensors");
    assert!(matches!(error, InspectError::Header { .. }), "{error:?}");
}

/// What can be wrong with a header is mm-header's to test; here, that it is asked, and that its errors arrive.
#[test]
fn headers_that_lie() {
    for header in [&b"{"[..], b"{\"\xff\":1}"] {
        let error = refused_file(&safetensors(header, 0));
        assert!(matches!(error, InspectError::Header { format: "safetensors", .. }), "{error:?}");
    }
    let two = |second: &str, offsets: &str| {
        let first = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        format!(r#"{{{first},"{second}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#)
    };
    refused_tensor(&two("b", "[4,9]"), 9, "b", "do not hold");
    refused_tensor(&two("b", "[2,6]"), 6, "b", "overlaps");
    refused_tensor(&two("a", "[4,8]"), 8, "a", "named twice");
    let error = refused_file(&safetensors(two("b", "[4,8]").as_bytes(), 7));
    assert!(error.to_string().contains("for tensor `b`"), "{error}");
}

#[test]
fn paths_that_are_no_checkpoint() {
    let folder = Folder::with(&[("empty/.keep", b""), ("cache/snapshots/0/x", b""), ("a.json", b"{}")]);
    assert!(matches!(folder.refuses("missing", "missing"), InspectError::Io { .. }));
    assert!(matches!(folder.refuses("empty", "empty"), InspectError::NoWeights { .. }));
    assert!(matches!(folder.refuses("cache", "cache/snapshots/0"), InspectError::NoWeights { .. }));
    assert!(matches!(folder.refuses("a.json", "a.json"), InspectError::Unsupported { .. }));
    for name in ["model.bin", "model.ckpt", "model.safetensors.incomplete", "model"] {
        let folder = Folder::with(&[(name, b"GGUF")]);
        let error = folder.refuses(name, name);
        assert!(matches!(error, InspectError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("not read"), "{error}");
    }
    let pickled = Folder::with(&[("m/pytorch_model.bin", b"x"), ("m/config.json", b"{}")]);
    assert!(matches!(pickled.refuses("m", "m/pytorch_model.bin"), InspectError::Unsupported { .. }));
    let error = inspect("no-such-organisation/no-such-model@main", None).expect_err("a repository id");
    assert!(error.to_string().contains("no-such-organisation/no-such-model@main"), "{error}");
    assert!(matches!(error, InspectError::NotCached { .. }), "{error:?}");
    assert!(inspect("", None).is_err());
}

#[test]
fn directories_and_sockets_where_files_belong() {
    for path in ["model.safetensors", "model.safetensors.index.json", "model_index.json"] {
        let folder = Folder::with(&[(&format!("{path}/x"), b"")]);
        assert!(matches!(folder.refuses("", path), InspectError::NotAFile { .. }), "{path}");
    }
    #[cfg(unix)]
    {
        let folder = Folder::with(&[]);
        let _listener = std::os::unix::net::UnixListener::bind(folder.at("model.safetensors")).expect("binds");
        assert!(matches!(folder.refuses("", "model.safetensors"), InspectError::NotAFile { .. }));
        std::os::unix::fs::symlink(folder.at("nowhere"), folder.at("diffusion_pytorch_model.safetensors"))
            .expect("links");
        assert!(matches!(folder.refuses("", "diffusion_pytorch_model.safetensors"), InspectError::Io { .. }));
    }
}

const INDEX: &str = "m/model.safetensors.index.json";

fn index(map: &str) -> Vec<u8> {
    format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{map}}}"#).into_bytes()
}

#[test]
fn an_index_that_names_what_is_not_there() {
    let folder = Folder::with(&[
        (INDEX, &index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#)),
        ("m/1.safetensors", &good("a", 1)),
    ]);
    let error = folder.refuses("m", "m/2.safetensors");
    assert!(matches!(&error, InspectError::Missing { named_by, .. } if *named_by == folder.at(INDEX)), "{error:?}");

    let folder = Folder::with(&[
        (INDEX, &index(r#"{"a":"1.safetensors","b":"1.safetensors"}"#)),
        ("m/1.safetensors", &good("a", 1)),
    ]);
    let error = folder.refuses("m", "m/1.safetensors");
    assert!(matches!(&error, InspectError::Tensor { tensor, .. } if tensor == "b"), "{error:?}");

    let files = [(INDEX, &index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#)[..])];
    let swapped = [("m/1.safetensors", &good("b", 1)[..]), ("m/2.safetensors", &good("a", 1))];
    let error = Folder::with(&[&files[..], &swapped].concat()).refuses("m", "m/1.safetensors");
    assert!(matches!(&error, InspectError::Tensor { tensor, .. } if tensor == "a"), "{error:?}");
}

#[test]
fn an_index_that_leads_outside() {
    let names = ["../out.safetensors", "/etc/passwd", "x/../../out.safetensors", "", ".", ".."];
    for name in names {
        let files = [(INDEX, &index(&format!(r#"{{"a":"{name}"}}"#))[..]), ("out.safetensors", &good("a", 1))];
        let folder = Folder::with(&files);
        let error = folder.refuses("m", INDEX);
        assert!(matches!(error, InspectError::Document { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains("outside its folder"), "{name}: {error}");
    }
}

#[test]
fn a_tensor_in_two_shards() {
    let map = index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#);
    let both =
        br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let folder =
        Folder::with(&[(INDEX, &map), ("m/1.safetensors", &good("a", 1)), ("m/2.safetensors", &safetensors(both, 2))]);
    folder.refuses("m", "m/1.safetensors");
    let error = folder.refuses("m", "m/2.safetensors");
    assert!(matches!(&error, InspectError::Duplicate { tensor, .. } if tensor == "a"), "{error:?}");
}

#[test]
fn documents_that_cannot_be_followed() {
    let deep = format!(r#"{{"x":{}"#, "[".repeat(100_000));
    let bad: [&[u8]; 7] = [b"", b"[]", b"null", b"{", b"{\"\xff\":1}", b"{\"a\":1}}", deep.as_bytes()];
    for document in bad {
        let error = Folder::with(&[("model_index.json", document)]).refuses("", "model_index.json");
        assert!(matches!(error, InspectError::Document { .. }), "{error:?}");
        let error = Folder::with(&[(INDEX, document)]).refuses("m", INDEX);
        assert!(matches!(error, InspectError::Document { .. }), "{error:?}");
    }
    for map in ["{}", "[]", "1", r#"{"a":1}"#, r#"{"a":{"b":"c"}}"#] {
        let error = Folder::with(&[(INDEX, &index(map))]).refuses("m", INDEX);
        assert!(matches!(error, InspectError::Document { .. }), "{map}: {error:?}");
    }
    let folder = Folder::with(&[("model_index.json", b"")]);
    let file = fs::OpenOptions::new().write(true).open(folder.at("model_index.json")).expect("opens");
    file.set_len(1 << 40).expect("grows");
    let error = folder.refuses("", "model_index.json");
    assert!(error.to_string().contains("too many"), "not even begun: {error}");
}

#[test]
fn pipelines_that_are_incomplete_or_lead_outside() {
    let pipeline = |name: &str| format!(r#"{{"_class_name":"P","{name}":["diffusers","UNet"]}}"#).into_bytes();
    for name in ["../unet", "/", "..", ".", "", "a/b"] {
        let error = Folder::with(&[("model_index.json", &pipeline(name))]).refuses("", "model_index.json");
        assert!(matches!(error, InspectError::Document { .. }), "{name}: {error:?}");
    }
    let index = ("model_index.json", &pipeline("unet")[..]);
    assert!(matches!(Folder::with(&[index]).refuses("", "unet"), InspectError::Missing { .. }));
    assert!(matches!(
        Folder::with(&[index, ("unet", b"")]).refuses("", "model_index.json"),
        InspectError::Document { .. }
    ));
    let no_weights = Folder::with(&[index, ("unet/config.json", b"{}")]);
    assert!(matches!(no_weights.refuses("", "unet"), InspectError::NoWeights { .. }));
    let nothing = Folder::with(&[("model_index.json", br#"{"scheduler":[null,null]}"#)]);
    assert!(matches!(nothing.refuses("", ""), InspectError::NoWeights { .. }));
    let only_config = Folder::with(&[index, ("unet/scheduler_config.json", b"{}")]);
    assert!(matches!(only_config.refuses("", ""), InspectError::NoWeights { .. }));
    let broken = Folder::with(&[index, ("unet/model.safetensors", b"short")]);
    assert!(matches!(broken.refuses("", "unet/model.safetensors"), InspectError::Truncated { .. }));
}

#[test]
fn a_type_that_nobody_computes_in() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes");
    for dtype in [DType::U8, DType::I64, DType::Bytes] {
        let error = inspect(&demo, Some(dtype)).expect_err("no float");
        assert!(matches!(error, InspectError::Dtype { dtype: named } if named == dtype), "{error:?}");
    }
}

/// A file of no name but its extension, and a component needs one.
#[test]
fn weights_without_a_name() {
    for name in [".safetensors", "m/.safetensors"] {
        let folder = Folder::with(&[(name, &good("a", 1))]);
        let checkpoint = inspect(folder.at(name), None).expect("inspects");
        assert!(!checkpoint.components[0].name.is_empty());
        mm_plan::plan(&mm_plan::Machine::default(), &checkpoint.to_plan(), &Default::default()).expect("plans");
    }
}

#[test]
fn more_blocks_than_are_planned() {
    let blocks = |count: usize| {
        let entry = |n: usize| format!(r#""l.{n}.w":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        safetensors(format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(",")).as_bytes(), 0)
    };
    let error = refused_file(&blocks(mm_plan::MAX_GROUPS + 1));
    assert!(matches!(error, InspectError::Unsupported { .. }), "{error:?}");
    let folder = Folder::with(&[("m.safetensors", &blocks(mm_plan::MAX_GROUPS))]);
    let checkpoint = inspect(folder.at("m.safetensors"), None).expect("inspects");
    mm_plan::plan(&mm_plan::Machine::default(), &checkpoint.to_plan(), &Default::default()).expect("plans");
}

/// As values in memory it would take sixteen times as much.
#[test]
fn configurations_of_megabytes() {
    let numbers = format!(r#"{{"x":[{}0]}}"#, "0,".repeat(2 << 20));
    for (document, more) in [("config.json", ("model.safetensors", good("a", 1))), ("model_index.json", ("x", vec![]))]
    {
        let folder = Folder::with(&[(document, numbers.as_bytes()), (more.0, &more.1)]);
        let error = folder.refuses("", document);
        assert!(error.to_string().contains("too many for this document"), "{error}");
    }
}
