//! Reading around the page cache: the same bytes and errors as through it, at any place in the file, and from the disk each time.
//! A program of its own, because it counts what the process has read.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mm_cache::{Weights, WeightsError};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// More than two reads, and no whole number of blocks.
const LENGTH: usize = (9 << 20) + 4097;

fn bytes(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) as u8).collect()
}

/// Tensors of odd lengths, so that they begin anywhere in a block; dated an hour back, so that any write shows in the mtime.
fn write(path: &Path) -> Arc<Weights> {
    let lengths = [("a", 12_345), ("b", LENGTH), ("c", 1), ("d", LENGTH)];
    let held: Vec<_> = lengths.iter().enumerate().map(|(i, (name, length))| (*name, bytes(i, *length))).collect();
    let views =
        held.iter().map(|(name, held)| (*name, TensorView::new(Dtype::U8, vec![held.len()], held).expect("fits")));
    fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
    let file = File::options().write(true).open(path).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("dates");
    Weights::open(&[path]).expect("opens")
}

/// Bytes that this process has had read from disks.
fn read_from_disks() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// All in one test: the counter counts what all threads do.
#[test]
fn any_stretch_is_read_as_through_the_cache_and_a_changed_file_is_an_error() {
    // Beside the program, on its disk: temporary folders may be memory.
    let folder =
        tempfile::tempdir_in(std::env::current_exe().expect("a path").parent().expect("a folder")).expect("made");
    let path = folder.path().join("model.safetensors");
    let weights = write(&path);
    for (name, seed) in [("b", 1), ("d", 3)] {
        let (tensor, expected) = (weights.get(name).expect("there"), bytes(seed, LENGTH));
        let most = LENGTH - 1;
        for (from, to) in
            [(0, LENGTH), (1, LENGTH), (4095, most), (4096, 4096 + (1 << 20)), (4097, 300_000), (77, 78), (5, 5)]
        {
            let mut into = vec![0xEE; to - from];
            tensor.read_around_cache(from as u64, &mut into).expect("reads");
            assert!(into == expected[from..to], "{name} {from}..{to}");
        }
        let beyond = tensor.read_around_cache(1, &mut vec![0; LENGTH]);
        assert!(matches!(beyond, Err(WeightsError::Tensor { .. })));
    }
    let (tensor, mut into) = (weights.get("d").expect("there"), vec![0; LENGTH]);
    let mut count = |around: bool| {
        let before = read_from_disks();
        if around { tensor.read_around_cache(0, &mut into) } else { tensor.read_into(0, &mut into) }.expect("reads");
        read_from_disks() - before
    };
    // Just written, it is in the cache.
    // Pages of this program may be read from the disk meanwhile, and count.
    if count(true) < LENGTH as u64 {
        println!("NOT CHECKED: the file system here takes no direct reads, or does not count them");
    } else {
        assert!(count(false) < LENGTH as u64 / 2, "what is in the cache is not read again");
        assert!(count(true) >= LENGTH as u64, "it was found in the cache");
    }

    let file = File::options().write(true).open(&path).expect("opens");
    let whole = file.metadata().expect("there").len();
    for cut in [whole - 1, whole - LENGTH as u64 / 2, 100] {
        file.set_len(cut).expect("cuts");
        let error = weights.get("d").expect("there").read_around_cache(0, &mut into).expect_err("cut");
        assert!(matches!(error, WeightsError::Cut { .. }), "{error}");
    }
    let weights = write(&path);
    let mut file = File::options().write(true).open(&path).expect("opens");
    file.seek(SeekFrom::End(-1)).expect("seeks");
    file.write_all(&[0]).expect("writes");
    let error = weights.get("d").expect("there").read_around_cache(0, &mut into).expect_err("written");
    assert!(matches!(error, WeightsError::Changed { .. }), "{error}");
    // A file replaced by renaming goes on as it was.
    let weights = write(&path);
    let other = folder.path().join("other");
    fs::write(&other, b"another file").expect("writes");
    fs::rename(&other, &path).expect("renames");
    weights.get("b").expect("there").read_around_cache(0, &mut into).expect("reads");
    assert!(into == bytes(1, LENGTH));
}
