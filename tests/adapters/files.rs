//! Weight files that are truncated, written or replaced while a model streams from them.

use crate::common::{
    BF16, BLOCKS, Component, DIM, DType, Error, F32, LoadSpec, Manager, Net, Tensor, bits, checkpoint, load_unmanaged,
    manager, net_of, spec, tensor,
};
use mm_engine::EngineError;
use mm_plan::Strategy;
use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Dated an hour back, so that any write shows in the mtime however coarse the file system's clock is.
fn write(file: &Path, stored: DType) {
    checkpoint(file, BLOCKS, stored);
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(file).unwrap().set_modified(hour_ago).unwrap();
}

struct Case {
    folder: tempfile::TempDir,
    file: PathBuf,
    spec: LoadSpec,
    manager: Manager,
    x: Tensor,
    /// What the untouched file gives.
    expected: Vec<u32>,
}

/// A net under a manager that streams every block through two slots.
fn case() -> (Case, Component<Net>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    write(&file, BF16);
    let spec = spec("net", &file, F32);
    let x = tensor(&[2, DIM], 1);
    let plain = load_unmanaged(&spec, net_of(BLOCKS)).unwrap();
    let expected = bits(&plain.run(|net| net.forward(&x)).unwrap());
    let case = Case { folder, file, spec, manager: manager(1 << 20, Strategy::GroupOffload), x, expected };
    let net = case.load();
    assert_eq!(case.pass(&net).unwrap(), case.expected);
    (case, net)
}

impl Case {
    fn load(&self) -> Component<Net> {
        self.manager.load(&self.spec, net_of(BLOCKS)).unwrap()
    }

    fn pass(&self, net: &Component<Net>) -> Result<Vec<u32>, Error> {
        net.run(|net| net.forward(&self.x)).map(|y| bits(&y))
    }

    fn refused(&self, net: &Component<Net>, why: &str) {
        for _ in 0..3 {
            let error = self.pass(net).unwrap_err();
            let Error::Engine(EngineError::Source { file, tensor, range, reason }) = &error else { panic!("{error}") };
            assert_eq!(*file, self.file);
            assert!(tensor.starts_with("layers.") && !range.is_empty(), "{error}");
            assert!(reason.contains(why), "{error}");
        }
    }
}

#[test]
fn a_file_truncated_between_two_passes_is_an_error_and_a_restored_one_loads_again() {
    let (case, net) = case();
    let whole = fs::read(&case.file).unwrap();
    OpenOptions::new().write(true).open(&case.file).unwrap().set_len(whole.len() as u64 / 2).unwrap();
    case.refused(&net, "truncated");
    fs::write(&case.file, &whole).unwrap();
    case.refused(&net, "written in place");
    drop(net);
    assert_eq!(case.manager.memory().in_use, 0);
    assert_eq!(case.pass(&case.load()).unwrap(), case.expected, "the same manager opens the restored file anew");
}

#[test]
fn a_file_written_in_place_is_an_error() {
    let (case, net) = case();
    let mut file = OpenOptions::new().write(true).open(&case.file).unwrap();
    file.seek(SeekFrom::End(-2)).unwrap();
    file.write_all(&[0, 0]).unwrap();
    case.refused(&net, "written in place");
}

#[cfg(unix)]
#[test]
fn a_file_replaced_by_renaming_goes_on_as_it_was_and_is_new_when_loaded_again() {
    let (case, net) = case();
    let next = case.folder.path().join("next.safetensors");
    // Other numbers: stored with more digits.
    write(&next, F32);
    fs::rename(&next, &case.file).unwrap();
    for _ in 0..3 {
        assert_eq!(case.pass(&net).unwrap(), case.expected);
    }
    drop(net);
    let plain = load_unmanaged(&case.spec, net_of(BLOCKS)).unwrap();
    let anew = case.pass(&plain).unwrap();
    assert_ne!(anew, case.expected);
    assert_eq!(case.pass(&case.load()).unwrap(), anew);
}
