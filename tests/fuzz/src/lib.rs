//! What the fuzz targets share: a folder in memory that a checkpoint is written to, and what must hold of any.
#![forbid(unsafe_code)]

use mm_cache::Weights;
use mm_plan::{Component, DType, DeviceKind, Infeasible, Links, Machine, Policy};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// Of this process, and in memory where there is a file system in memory.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new().prefix("mm-fuzz-").disable_cleanup(true).tempdir();
    let folder = match tempfile::Builder::new().prefix("mm-fuzz-").disable_cleanup(true).tempdir_in(memory) {
        Ok(folder) => folder,
        Err(_) => builder().expect("a folder for the checkpoint"),
    };
    folder.path().to_owned()
});

/// Where `path` is in the folder.
pub fn at(path: &str) -> PathBuf {
    FOLDER.join(path)
}

/// Writes a file, and the folders that it is in.
pub fn write(path: &str, bytes: &[u8]) {
    write_sized(path, bytes, bytes.len() as u64);
}

/// As [`write`], with a hole behind the bytes up to `size`, where the file system allows one so large.
pub fn write_sized(path: &str, bytes: &[u8], size: u64) {
    let path = at(path);
    let mut file = File::create(&path).unwrap_or_else(|_| {
        fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        File::create(&path).expect("a file")
    });
    file.write_all(bytes).expect("room");
    if size > bytes.len() as u64 {
        // Refused where it is larger than files can be: then the file is too short, which is a case as well.
        let _ = file.set_len(size);
    }
}

/// A safetensors file of `U8` tensors, each of as many bytes as it says.
pub fn write_tensors(path: &str, tensors: &[(&str, usize)]) {
    let mut end = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, size)| {
            let from = end;
            end += size;
            format!(r#""{name}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.resize(bytes.len() + end, 0);
    write(path, &bytes);
}

/// Inspects the checkpoint there and plans it: a plan, or an error that names a file of it.
pub fn inspect_and_plan(path: &str) {
    for dtype in [None, Some(DType::F32)] {
        match mm_probe::inspect(at(path), dtype) {
            Ok(checkpoint) => plans(&checkpoint.to_plan()),
            Err(error) => names_a_file(&error.to_string()),
        }
    }
}

/// Opens weights, and reads the beginning and the end of each tensor: bytes, or an error that names a file.
pub fn read_weights(paths: &[PathBuf]) {
    let weights = match Weights::open(paths) {
        Ok(weights) => weights,
        Err(error) => return names_a_file(&error.to_string()),
    };
    for name in weights.names() {
        let tensor = weights.get(name).expect("listed");
        let mut bytes = vec![0; tensor.byte_len().min(4096) as usize];
        for offset in [0, tensor.byte_len() - bytes.len() as u64] {
            tensor.read_into(offset, &mut bytes).expect("a file that nobody writes");
        }
    }
}

fn names_a_file(error: &str) {
    assert!(error.contains(FOLDER.to_str().expect("UTF-8")), "names no file: {error}");
}

/// Plans for a host, a small and a large card, with and without measured links.
fn plans(components: &[Component]) {
    let links = Links { h2d: 25_000_000_000, staging: None, disk: Some(3_000_000_000), copy_fixed_ns: 5000 };
    let card = |free, links| Machine {
        vram_free: Some(free),
        vram_total: Some(free),
        ram_available: 32 << 30,
        ram_total: 64 << 30,
        os: "linux".into(),
        links,
        ..Machine::default()
    };
    let host = Machine { device: DeviceKind::Host, ..card(8 << 20, Some(links)) };
    for machine in [Machine::default(), host, card(24 << 30, None), card(24 << 30, Some(links))] {
        match mm_plan::plan(&machine, components, &Policy::default()) {
            Ok(_) | Err(Infeasible::NeverFits { .. } | Infeasible::NotNow { .. }) => {}
            Err(error) => panic!("what was inspected can't be planned: {error}"),
        }
    }
}
