//! Filling slabs from files: in pieces where they are cast, and while the file changes.

use mm_cache::Weights;
use mm_engine::{EngineError, Slab};
use mm_plan::DType;
use safetensors::{Dtype, tensor::TensorView};
use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// More than one piece, and no whole number of them.
const ELEMENTS: usize = 300_007;

fn value(index: usize) -> f32 {
    (index % 251) as f32 - 100.0
}

/// `x` in bf16, dated an hour back, so that any write shows in the mtime.
fn write(path: &Path) {
    let bytes: Vec<u8> = (0..ELEMENTS).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::BF16, vec![ELEMENTS], &bytes).unwrap();
    fs::write(path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

fn slab(weights: &Arc<Weights>, to: DType) -> Slab {
    let mut slab = Slab::new(to);
    slab.push(weights.get("x").unwrap().clone());
    slab
}

#[test]
fn a_tensor_of_several_pieces_is_read_whole_as_it_is_and_cast() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file);
    let weights = Weights::open(&[&file]).unwrap();
    for to in [DType::Bf16, DType::F16, DType::F32, DType::F64] {
        let slab = slab(&weights, to);
        let mut into = vec![0xEE; slab.bytes() as usize];
        slab.fill(&mut into).unwrap();
        let size = to.size() as usize;
        for (index, bytes) in into.chunks(size).take(ELEMENTS).enumerate() {
            let value = value(index);
            let expected = match to {
                DType::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                DType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                DType::F32 => value.to_le_bytes().to_vec(),
                _ => f64::from(value).to_le_bytes().to_vec(),
            };
            assert_eq!(bytes, expected, "{to}, element {index}");
        }
        assert!(into[ELEMENTS * size..].iter().all(|byte| *byte == 0xEE), "padding is left alone");
    }
}

#[test]
fn a_changed_file_names_file_tensor_and_range() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    for (what, change) in [
        ("truncated", (|file| file.set_len(1000).unwrap()) as fn(&mut fs::File)),
        ("written in place", |file| {
            file.seek(SeekFrom::End(-2)).unwrap();
            file.write_all(&[1, 2]).unwrap();
        }),
        ("written in place", |file| file.set_len(10_000_000).unwrap()),
    ] {
        write(&file);
        let weights = Weights::open(&[&file]).unwrap();
        let slabs = [DType::Bf16, DType::F32].map(|to| slab(&weights, to));
        change(&mut fs::OpenOptions::new().write(true).open(&file).unwrap());
        for slab in slabs {
            let error = slab.fill(&mut vec![0; slab.bytes() as usize]).unwrap_err();
            let EngineError::Source { file: named, tensor, range, reason } = &error else { panic!("{error}") };
            assert_eq!((named, tensor.as_str()), (&file, "x"));
            assert_eq!(*range, weights.get("x").unwrap().file_range());
            assert!(reason.contains(what), "{error}");
            assert_eq!(error.to_string().matches("model.safetensors").count(), 1, "named once: {error}");
        }
    }
}
