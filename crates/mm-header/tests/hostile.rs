//! Headers that lie. Each must be an error of the right kind that names the tensor, where there is one.

use std::io::{self, Cursor, Read};

use mm_header::{Entry, HeaderError, byte_size, read};
use proptest::prelude::*;
use safetensors::Dtype;

fn with_header(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn read_all(bytes: &[u8]) -> Result<Vec<Entry>, HeaderError> {
    read(bytes, bytes.len() as u64)
}

fn refused(header: &str, data: usize) -> HeaderError {
    read_all(&with_header(header.as_bytes(), data)).expect_err(header)
}

fn refused_tensor(header: &str, data: usize, named: &str, why: &str) {
    let error = refused(header, data);
    let HeaderError::Tensor { tensor, reason } = &error else { panic!("{header}: {error:?}") };
    assert!(tensor == named && reason.contains(why), "{header}: {error}");
}

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

/// Listed in another order than they lie in.
const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn the_good_header_is_read() {
    let file = with_header(GOOD.as_bytes(), 11);
    let start = file.len() as u64 - 11;
    let entry = |name: &str, dtype, shape: &[usize], from, to| {
        let (name, shape) = (name.to_owned(), shape.to_owned());
        Entry { name, dtype, shape, range: start + from..start + to }
    };
    let expected = [entry("a", Dtype::F32, &[2], 0, 8), entry("b", Dtype::U8, &[3], 8, 11)];
    assert_eq!(read_all(&file).expect("reads"), expected);
    assert_eq!(read_all(&with_header(b"{}", 0)).expect("reads"), []);
}

#[test]
fn truncated_at_every_byte() {
    let good = with_header(GOOD.as_bytes(), 11);
    for length in 0..good.len() {
        let error = read_all(&good[..length]).expect_err("cut");
        let HeaderError::Truncated { tensor, need } = error else { panic!("at {length}: {error:?}") };
        assert!(need > length as u64 && need <= good.len() as u64, "at {length}: {need}");
        // What is cut is the last tensor, until it is gone.
        let expected = length.checked_sub(good.len() - 11).map(|data| if data < 8 { "a" } else { "b" });
        assert_eq!(tensor.as_deref(), expected, "at {length}");
    }
    let longer = refused(GOOD, 12);
    assert!(matches!(&longer, HeaderError::NotAHeader(why) if why.starts_with("1 bytes after")), "{longer:?}");
}

#[test]
fn header_length_lies() {
    let mut bytes = with_header(GOOD.as_bytes(), 11);
    for (length, truncated) in [(u64::MAX, false), (25_000_001, false), (25_000_000, true), (1 << 20, true), (4, false)]
    {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        match read_all(&bytes).expect_err("a lie") {
            HeaderError::Truncated { tensor: None, need } if truncated => assert_eq!(need, length + 8),
            HeaderError::NotAHeader(_) if !truncated => {}
            error => panic!("{length}: {error:?}"),
        }
    }
}

#[test]
fn header_is_no_header() {
    let deep = "[".repeat(100_000);
    let deep_value = format!(r#"{{"a":{}"#, r#"{"dtype":"#.repeat(100_000));
    for header in ["", "null", "[]", "{", "{}}", "{\"a\":1}", "{\"a\":{}}", "\u{0}\u{0}", &deep, &deep_value] {
        let error = refused(header, 0);
        assert!(matches!(error, HeaderError::NotAHeader(_)), "{error:?}");
    }
    for file in [&with_header(b"{\"\xff\":1}", 0)[..], b"GGUF\x03\x00\x00\x00more"] {
        let error = read_all(file).expect_err("not UTF-8, another format");
        assert!(matches!(error, HeaderError::NotAHeader(_)), "{error:?}");
    }
}

#[test]
fn one_tensor_lies() {
    refused_tensor(&one("F32", "[2]", "[0,7]"), 7, "a", "do not hold");
    refused_tensor(&one("F32", "[2]", "[8,0]"), 8, "a", "do not hold");
    refused_tensor(&one("F32", "[18446744073709551615,2]", "[0,8]"), 8, "a", "no whole number");
    refused_tensor(&one("F64", "[2305843009213693952]", "[0,0]"), 0, "a", "no whole number");
    refused_tensor(&one("F4", "[3]", "[0,2]"), 2, "a", "no whole number");
    refused_tensor(&one("U8", "[4]", "[1,5]"), 5, "a", "gap");
    let sides = |count: usize| format!("[{}1]", "1,".repeat(count - 1));
    assert!(read_all(&with_header(one("U8", &sides(64), "[0,1]").as_bytes(), 1)).is_ok());
    let error = refused(&one("U8", &sides(65), "[0,1]"), 1);
    assert!(error.to_string().contains("tensor `a`: more than 64 dimensions"), "{error}");
    for bad in [one("F31", "[2]", "[0,8]"), one("F32", "[-2]", "[0,8]"), one("F32", "[2]", "[0]")] {
        let error = refused(&bad, 8);
        assert!(matches!(&error, HeaderError::NotAHeader(why) if why.contains("tensor `a`")), "{error:?}");
    }
    for (offsets, shape) in [("[0,9]", "[9]"), ("[18446744073709551607,18446744073709551615]", "[8]")] {
        let error = refused(&one("U8", shape, offsets), 8);
        assert!(
            matches!(&error, HeaderError::Truncated { tensor: Some(name), .. } if name == "a"),
            "{offsets}: {error:?}"
        );
    }
}

#[test]
fn two_tensors_lie() {
    let two = |second: &str, offsets: &str| {
        let first = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        format!(r#"{{{first},"{second}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#)
    };
    refused_tensor(&two("b", "[2,6]"), 6, "b", "overlaps");
    refused_tensor(&two("b", "[0,4]"), 4, "b", "overlaps");
    refused_tensor(&two("b", "[5,9]"), 9, "b", "gap");
    refused_tensor(&two("a", "[4,8]"), 8, "a", "named twice");
    // A lie goes before what a cut explains, wherever it lies.
    refused_tensor(&two("b", "[4,9]"), 0, "b", "do not hold");
}

/// Tensors of almost 2^61 bytes each, whose sum wraps around to the size of the file if it is taken unchecked.
#[test]
fn offsets_that_wrap_around() {
    let size = (1u64 << 61) - 1;
    let (mut entries, mut at) = (Vec::new(), 0u64);
    while let Some(end) = at.checked_add(size) {
        entries.push(format!(r#""t{at}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{at},{end}]}}"#));
        at = end;
    }
    let last = u64::MAX - at;
    entries.push(format!(r#""last":{{"dtype":"U8","shape":[{last}],"data_offsets":[{at},{}]}}"#, u64::MAX));
    let error = refused(&format!("{{{}}}", entries.join(",")), 0);
    assert!(matches!(error, HeaderError::Truncated { tensor: Some(_), .. }), "{error:?}");
}

#[test]
fn more_tensors_than_any_file_has() {
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = |count: usize| format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
    assert_eq!(read_all(&with_header(header(1 << 18).as_bytes(), 0)).expect("reads").len(), 1 << 18);
    let error = refused(&header((1 << 18) + 1), 0);
    assert!(error.to_string().contains("more than 262144 tensors"), "{error}");
}

/// A disk that fails, or a file that was cut since its size was asked, is no lie of the header's, wherever it happens.
#[test]
fn reading_that_fails_at_every_byte() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is on fire"))
        }
    }

    let good = with_header(GOOD.as_bytes(), 11);
    let (size, header) = (good.len() as u64, good.len() - 11);
    for length in 0..header {
        let error = read(good[..length].chain(Fails), size).expect_err("fails");
        assert!(matches!(&error, HeaderError::Io(why) if why.to_string().contains("fire")), "at {length}: {error:?}");
        let error = read(&good[..length], size).expect_err("cut");
        let HeaderError::Io(why) = &error else { panic!("at {length}: {error:?}") };
        assert_eq!(why.kind(), io::ErrorKind::UnexpectedEof, "at {length}: {error}");
    }
    assert!(read(good[..header].chain(Fails), size).is_ok(), "what is behind the header is not read");
}

#[test]
fn sizes_of_tensors() {
    assert_eq!(byte_size(Dtype::F32, &[]), Some(4));
    assert_eq!(byte_size(Dtype::BF16, &[3, 5]), Some(30));
    assert_eq!(byte_size(Dtype::F4, &[3, 2]), Some(3));
    assert_eq!(byte_size(Dtype::F4, &[3]), None);
    assert_eq!(byte_size(Dtype::F64, &[0, usize::MAX]), Some(0));
    assert_eq!(byte_size(Dtype::U8, &[usize::MAX, 2]), None);
}

proptest! {
    /// Whatever one byte is turned into: an error, or tensors that fill the file from the header on.
    #[test]
    fn any_byte_changed(at in 0..GOOD.len() + 8, to in any::<u8>()) {
        let mut bytes = with_header(GOOD.as_bytes(), 11);
        bytes[at] = to;
        let mut from = Cursor::new(&bytes);
        if let Ok(entries) = read(&mut from, bytes.len() as u64) {
            let mut end = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
            prop_assert_eq!(from.position(), end);
            for entry in entries {
                prop_assert_eq!(entry.range.start, end);
                end = entry.range.end;
                prop_assert_eq!(byte_size(entry.dtype, &entry.shape), Some((end - entry.range.start) as usize));
            }
            prop_assert_eq!(end, bytes.len() as u64);
        }
    }
}
