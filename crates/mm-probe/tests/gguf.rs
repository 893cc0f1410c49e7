//! GGUF files: what is said is what their headers say, and a header that lies is refused with the file and tensor named.

use std::fs;
use std::path::PathBuf;

use mm_plan::DType;
use mm_probe::{InspectError, inspect};

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A header under construction; little-endian, lengths of 64 bits.
#[derive(Clone, Default)]
struct Gguf(Vec<u8>);

impl Gguf {
    fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut this = self.u64(text.len() as u64);
        this.0.extend(text.as_bytes());
        this
    }

    /// Sides innermost first, as the format has them.
    fn tensor(self, name: &str, sides: &[u64], kind: u32, offset: u64) -> Self {
        let this = self.text(name).u32(sides.len() as u32);
        sides.iter().fold(this, |this, side| this.u64(*side)).u32(kind).u64(offset)
    }

    fn data(mut self, alignment: usize, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(alignment) + bytes, 0);
        self.0
    }
}

struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn file(bytes: &[u8]) -> File {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.Q4_K.gguf");
    fs::write(&path, bytes).expect("writes");
    File { path, _folder: folder }
}

fn refused(bytes: &[u8], part: &str) -> InspectError {
    let file = file(bytes);
    let error = inspect(&file.path, Some(DType::Bf16)).expect_err("a bad file");
    let text = error.to_string();
    assert!(text.contains(file.path.to_str().expect("UTF-8")) && text.contains(part), "{part} is not in: {text}");
    error
}

/// Two blocks of a quantized and a float tensor each, a table, and metadata of every kind before them.
fn good() -> Vec<u8> {
    let header = Gguf::new(3, 5, 5)
        .text("general.architecture")
        .u32(STRING)
        .text("flux")
        .text("general.alignment")
        .u32(U32)
        .u32(64)
        .text("tokens")
        .u32(ARRAY)
        .u32(STRING)
        .u64(2)
        .text("a")
        .text("bc")
        .text("scores")
        .u32(ARRAY)
        .u32(6)
        .u64(3)
        .u32(0)
        .u32(0)
        .u32(0)
        .text("nested")
        .u32(ARRAY)
        .u32(ARRAY)
        .u64(1)
        .u32(U32)
        .u64(1)
        .u32(7);
    header
        .tensor("blk.1.ffn.weight", &[256, 3], 12, 512)
        .tensor("blk.0.ffn.weight", &[256, 3], 12, 0)
        .tensor("blk.0.norm.weight", &[8], 0, 448)
        .tensor("blk.1.norm.weight", &[8], 0, 960)
        .tensor("table.weight", &[32, 2], 8, 1024)
        .data(64, 1024 + 68)
}

#[test]
fn sizes_types_and_stacks() {
    let file = file(&good());
    let checkpoint = inspect(&file.path, Some(DType::Bf16)).expect("inspects");
    let [component] = &checkpoint.components[..] else { panic!("{checkpoint:?}") };
    assert_eq!((component.name.as_str(), component.tensors), ("model.Q4_K", 5));
    let stored: Vec<_> = component.stored.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    assert_eq!(stored, [("f32", 64), ("q4_k", 2 * 3 * 144), ("q8_0", 2 * 34)]);
    // Quantized weights stay as they are; the norms are cast.
    assert_eq!((component.device_bytes, component.rest_bytes), (2 * (3 * 144 + 16) + 68, 68));
    let [stack] = &component.stacks[..] else { panic!("{component:?}") };
    assert_eq!(stack.name, "blk");
    assert!(stack.blocks.iter().all(|block| (block.stored, block.device) == (3 * 144 + 32, 3 * 144 + 16)), "{stack:?}");
    let as_stored = inspect(&file.path, None).expect("inspects");
    assert_eq!(as_stored.components[0].device_bytes, component.stored_bytes());
}

#[test]
fn parts_of_a_split_file_are_one_model() {
    let part = |name: &str| Gguf::new(3, 1, 0).tensor(name, &[32], 8, 0).data(32, 34);
    let folder = tempfile::tempdir().expect("a folder");
    let at = |part: u32| folder.path().join(format!("m-{part:05}-of-00003.gguf"));
    for (number, name) in [(1, "a"), (2, "b")] {
        fs::write(at(number), part(name)).expect("writes");
    }
    let error = inspect(at(1), None).expect_err("a part is missing");
    assert!(matches!(&error, InspectError::Missing { path, .. } if *path == at(3)), "{error:?}");
    fs::write(at(3), part("c")).expect("writes");
    for named in 1..=3 {
        let checkpoint = inspect(at(named), None).expect("inspects");
        let component = &checkpoint.components[0];
        assert_eq!((component.name.as_str(), component.tensors, component.files.len()), ("m", 3, 3));
    }
    fs::write(at(3), part("a")).expect("writes");
    assert!(matches!(inspect(at(1), None), Err(InspectError::Duplicate { .. })));
}

/// A number that is none of its parts': the file is what it says it is, one file.
#[test]
fn a_part_number_that_can_t_be() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["m-00000-of-00000.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "-00001-of-00001.gguf"] {
        let file = folder.path().join(name);
        fs::write(&file, good()).expect("writes");
        let checkpoint = inspect(&file, None).expect("inspects");
        assert_eq!(checkpoint.components[0].files, [file], "{name}");
        assert!(checkpoint.components[0].tensors > 0 && !checkpoint.components[0].name.is_empty(), "{name}");
    }
}

#[test]
fn truncated_at_every_byte() {
    let whole = good();
    for length in 0..whole.len() {
        let error = refused(&whole[..length], "");
        assert!(matches!(error, InspectError::Truncated { .. }), "at {length}: {error:?}");
    }
}

#[test]
fn headers_that_are_none() {
    refused(b"GGML\0\0\0\0", "begin with");
    refused(&Gguf::new(4, 0, 0).data(1, 0), "version 4");
    refused(&Gguf::new(3u32.swap_bytes(), 0, 0).data(1, 0), "big-endian");
    refused(&Gguf::new(3, 0, 1).text("k").u32(99).data(1, 8), "unknown type 99");
    let nested = (0..6).fold(Gguf::new(3, 0, 1).text("k").u32(ARRAY), |gguf, _| gguf.u32(ARRAY).u64(1));
    refused(&nested.data(1, 64), "arrays in arrays");
    for alignment in [0, 3] {
        let header = Gguf::new(3, 0, 1).text("general.alignment").u32(U32).u32(alignment);
        refused(&header.data(1, 8), "general.alignment");
    }
    let mut not_text = Gguf::new(3, 0, 1).u64(2);
    not_text.0.extend([0xff, 0xfe]);
    refused(&not_text.data(1, 8), "UTF-8");
}

/// Counts and lengths of 2^60: nothing is made for them, and nobody waits for their end.
#[test]
fn claims_beyond_the_file() {
    let huge = 1u64 << 60;
    for claim in [
        Gguf::new(3, huge, 0),
        Gguf::new(3, 0, huge),
        Gguf::new(3, 0, 1).u64(huge),
        Gguf::new(3, 0, 1).text("k").u32(STRING).u64(huge),
        Gguf::new(3, 0, 1).text("k").u32(ARRAY).u32(10).u64(huge),
        Gguf::new(3, 0, 1).text("k").u32(ARRAY).u32(STRING).u64(huge),
        Gguf::new(3, 1, 0).u64(huge),
    ] {
        let error = refused(&claim.clone().data(1, 0), "");
        assert!(matches!(error, InspectError::Truncated { .. } | InspectError::Header { .. }), "{error:?}");
        // The same in a file of holes, as large as it claims to be.
        let file = file(&claim.data(1, 0));
        fs::OpenOptions::new().write(true).open(&file.path).and_then(|f| f.set_len(1 << 42)).expect("grows");
        assert!(inspect(&file.path, None).is_err());
    }
}

#[test]
fn tensors_that_lie() {
    let one = |sides: &[u64], kind, offset| Gguf::new(3, 1, 0).tensor("t", sides, kind, offset).data(32, 128);
    let tensor = |bytes: &[u8], part: &str| {
        let error = refused(bytes, part);
        assert!(matches!(&error, InspectError::Tensor { tensor, .. } if tensor == "t"), "{error:?}");
    };
    tensor(&one(&[33], 2, 0), "no whole number of blocks");
    tensor(&one(&[1 << 60, 1 << 60], 2, 0), "no whole number of blocks");
    tensor(&one(&[32], 5, 0), "type 5");
    tensor(&one(&[32], 2, 8), "multiple of the alignment");
    tensor(&one(&[1; 9], 0, 0), "9 dimensions");
    let two = |at: u64| Gguf::new(3, 2, 0).tensor("s", &[32], 0, 0).tensor("t", &[32], 0, at).data(32, 512);
    tensor(&two(96), "overlaps");
    let twice = Gguf::new(3, 2, 0).tensor("t", &[32], 0, 0).tensor("t", &[32], 0, 128);
    tensor(&twice.data(32, 512), "named twice");
    let thrice = Gguf::new(3, 3, 0).tensor("t", &[8], 0, 0).tensor("s", &[8], 0, 32).tensor("t", &[8], 0, 64);
    tensor(&thrice.data(32, 512), "named twice");
    let error = refused(&one(&[1 << 20], 0, 0), "truncated");
    assert!(matches!(error, InspectError::Truncated { .. }), "{error:?}");
    let far = Gguf::new(3, 1, 0).tensor("t", &[32], 0, u64::MAX - 31).data(32, 0);
    assert!(matches!(refused(&far, "truncated"), InspectError::Truncated { .. }));
}
