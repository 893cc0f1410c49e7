//! Files that lie. Each must be an error that names the file and, where there is one, the tensor.

use std::fs;
use std::path::PathBuf;

use mm_cache::{Weights, WeightsError};
use proptest::prelude::*;

struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(bytes: &[u8]) -> File {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.safetensors");
    fs::write(&path, bytes).expect("writes");
    File { _folder: folder, path }
}

fn with_header(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn refused(bytes: &[u8]) -> WeightsError {
    let error = Weights::open(&[&file(bytes).path]).expect_err("a bad file");
    assert!(error.to_string().contains("bad.safetensors"), "{error}");
    error
}

fn refused_tensor(header: &str, data: usize, tensor: &str, why: &str) {
    let error = refused(&with_header(header.as_bytes(), data));
    assert!(error.to_string().contains(&format!("tensor `{tensor}`")), "{header}: {error:?}");
    assert!(error.to_string().contains(why), "{header}: {error}");
}

const GOOD: &str =
    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#;

#[test]
fn the_good_file_opens() {
    let good = file(&with_header(GOOD.as_bytes(), 11));
    assert_eq!(Weights::open(&[&good.path]).expect("opens").names().count(), 2);
    let empty = file(&with_header(b"{}", 0));
    assert_eq!(Weights::open(&[&empty.path]).expect("opens").names().count(), 0);
}

#[test]
fn truncated_at_every_byte() {
    let good = with_header(GOOD.as_bytes(), 11);
    for length in 0..good.len() {
        let error = refused(&good[..length]);
        let WeightsError::Truncated { need, have, .. } = error else { panic!("at {length}: {error:?}") };
        assert!(have == length as u64 && need > have && need <= good.len() as u64, "at {length}: {need} of {have}");
    }
}

#[test]
fn bytes_after_the_last_tensor() {
    let error = refused(&with_header(GOOD.as_bytes(), 12));
    assert!(matches!(error, WeightsError::Header { .. }), "{error:?}");
}

#[test]
fn header_length_lies() {
    let mut bytes = with_header(GOOD.as_bytes(), 11);
    for (length, truncated) in [(u64::MAX, false), (25_000_001, false), (25_000_000, true), (1 << 20, true), (4, false)]
    {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let error = refused(&bytes);
        assert_eq!(matches!(error, WeightsError::Truncated { .. }), truncated, "{length}: {error:?}");
    }
}

#[test]
fn header_is_no_header() {
    let deep = "[".repeat(100_000);
    let deep_value = format!(r#"{{"a":{}"#, r#"{"dtype":"#.repeat(100_000));
    for header in ["", "null", "[]", "{", "{\"a\":1}", "{\"a\":{}}", "\u{0}\u{0}", &deep, &deep_value] {
        let error = refused(&with_header(header.as_bytes(), 0));
        assert!(matches!(error, WeightsError::Header { .. }), "{error:?}");
    }
    assert!(matches!(refused(&with_header(b"{\"\xff\":1}", 0)), WeightsError::Header { .. }), "not UTF-8");
    assert!(matches!(refused(b"GGUF\x03\x00\x00\x00more"), WeightsError::Header { .. }), "another format");
}

#[test]
fn one_tensor_lies() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    refused_tensor(&one("F32", "[2]", "[0,7]"), 7, "a", "do not hold");
    refused_tensor(&one("F32", "[2]", "[8,0]"), 8, "a", "do not hold");
    refused_tensor(&one("F32", "[18446744073709551615,2]", "[0,8]"), 8, "a", "no whole number");
    refused_tensor(&one("F64", "[2305843009213693952]", "[0,0]"), 0, "a", "no whole number");
    refused_tensor(&one("F4", "[3]", "[0,2]"), 2, "a", "no whole number");
    refused_tensor(&one("U8", "[4]", "[1,5]"), 5, "a", "gap");
    let sides = |count: usize| format!("[{}1]", "1,".repeat(count - 1));
    refused_tensor(&one("U8", &sides(65), "[0,1]"), 1, "a", "more than 64 dimensions");
    assert!(Weights::open(&[&file(&with_header(one("U8", &sides(64), "[0,1]").as_bytes(), 1)).path]).is_ok());
    for (offsets, shape) in [("[0,9]", "[9]"), ("[18446744073709551607,18446744073709551615]", "[8]")] {
        let error = refused(&with_header(one("U8", shape, offsets).as_bytes(), 8));
        assert!(
            matches!(&error, WeightsError::Truncated { tensor: Some(name), .. } if name == "a"),
            "{offsets}: {error:?}"
        );
        assert!(error.to_string().contains("for tensor `a`"), "{error}");
    }
    for bad in [one("F31", "[2]", "[0,8]"), one("F32", "[-2]", "[0,8]"), one("F32", "[2]", "[0]")] {
        let error = refused(&with_header(bad.as_bytes(), 8));
        assert!(error.to_string().contains("tensor `a`"), "{error}");
    }
}

#[test]
fn two_tensors_lie() {
    let two = |second: &str, offsets: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"{second}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#
        )
    };
    refused_tensor(&two("b", "[2,6]"), 6, "b", "overlaps");
    refused_tensor(&two("b", "[0,4]"), 4, "b", "overlaps");
    refused_tensor(&two("b", "[5,9]"), 9, "b", "gap");
    refused_tensor(&two("a", "[4,8]"), 8, "a", "named twice");
}

/// Nine tensors of almost 2^61 bytes: their sum wraps around, which a sum taken unchecked would accept.
#[test]
fn offsets_that_wrap_around() {
    let size = (1u64 << 61) - 1;
    let mut entries = Vec::new();
    let mut at = 0u64;
    while let Some(end) = at.checked_add(size) {
        entries.push(format!(r#""t{at}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{at},{end}]}}"#));
        at = end;
    }
    let last = u64::MAX - at;
    entries.push(format!(r#""last":{{"dtype":"U8","shape":[{last}],"data_offsets":[{at},{}]}}"#, u64::MAX));
    let error = refused(&with_header(format!("{{{}}}", entries.join(",")).as_bytes(), 0));
    assert!(matches!(error, WeightsError::Truncated { .. }), "{error:?}");
}

#[test]
fn what_is_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Weights::open(&[folder.path()]).expect_err("a folder");
    assert!(matches!(&error, WeightsError::NotAFile { file } if file == folder.path()), "{error:?}");
    let missing = folder.path().join("missing.safetensors");
    let error = Weights::open(&[&missing]).expect_err("missing");
    assert!(matches!(&error, WeightsError::Io { file, .. } if *file == missing), "{error:?}");
    #[cfg(unix)]
    {
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
        assert!(matches!(Weights::open(&[&socket]), Err(WeightsError::NotAFile { .. })));
    }
}

proptest! {
    /// Whatever one byte is turned into: an error, or tensors that lie within the file.
    #[test]
    fn any_byte_changed(at in 0..200usize, to in any::<u8>()) {
        let mut bytes = with_header(GOOD.as_bytes(), 11);
        let at = at % bytes.len();
        bytes[at] = to;
        let file = file(&bytes);
        if let Ok(weights) = Weights::open(&[&file.path]) {
            for name in weights.names() {
                let tensor = weights.get(name).expect("listed");
                let range = tensor.file_range();
                prop_assert_eq!(tensor.bytes().expect("maps"), &bytes[range.start as usize..range.end as usize]);
            }
        }
    }
}

/// Header of a file that really is so large, a hole: nothing is taken for it, as it is read only up to its first fault.
#[test]
fn a_header_that_is_a_hole() {
    let file = file(&24_999_999u64.to_le_bytes());
    fs::OpenOptions::new().write(true).open(&file.path).expect("opens").set_len(1 << 40).expect("grows");
    let error = Weights::open(&[&file.path]).expect_err("a hole");
    assert!(matches!(error, WeightsError::Header { .. }), "{error:?}");
}

#[test]
fn more_tensors_than_any_file_has() {
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = |count: usize| format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
    assert!(Weights::open(&[&file(&with_header(header(1 << 18).as_bytes(), 0)).path]).is_ok());
    let error = refused(&with_header(header((1 << 18) + 1).as_bytes(), 0));
    assert!(error.to_string().contains("more than 262144 tensors"), "{error}");
}
