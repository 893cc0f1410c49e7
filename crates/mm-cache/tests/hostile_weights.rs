//! Files that lie. Each must be an error that names the file and, where there is one, the tensor. What can be wrong with a
//! header is mm-header's to test; here, that it is asked, and that its errors arrive.

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
fn headers_that_lie() {
    for file in [&with_header(b"{", 0)[..], &with_header(b"{\"\xff\":1}", 0), b"PK\x03\x04\x14\x00\x00\x00more"] {
        assert!(matches!(refused(file), WeightsError::Header { .. }), "no header, not UTF-8, another format");
    }
    let two = |second: &str, offsets: &str| {
        let first = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        format!(r#"{{{first},"{second}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#)
    };
    assert!(Weights::open(&[&file(&with_header(two("b", "[4,8]").as_bytes(), 8)).path]).is_ok());
    refused_tensor(&two("b", "[4,9]"), 9, "b", "do not hold");
    refused_tensor(&two("b", "[2,6]"), 6, "b", "overlaps");
    refused_tensor(&two("a", "[4,8]"), 8, "a", "named twice");
    let error = refused(&with_header(two("b", "[4,8]").as_bytes(), 7));
    assert!(error.to_string().contains("for tensor `b`"), "{error}");
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
