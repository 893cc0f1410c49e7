//! Reading tensors from files that are truncated, written or replaced meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mm_cache::{TensorSlice, Weights, WeightsError};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const LENGTH: usize = 64 << 10;

/// Two tensors: `first` of ones, `last` of `last`s. Dated an hour back, so that any write shows in the mtime however
/// coarse the clock of the file system is.
fn write(path: &Path, last: u8) {
    let (ones, lasts) = (vec![1; LENGTH], vec![last; LENGTH]);
    let view = |bytes| TensorView::new(Dtype::U8, vec![LENGTH], bytes).expect("a tensor");
    let tensors = [("first", view(&ones)), ("last", view(&lasts))];
    fs::write(path, safetensors::serialize(tensors, None).expect("serializes")).expect("writes");
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(path).expect("opens").set_modified(hour_ago).expect("dates");
}

struct Case {
    _folder: tempfile::TempDir,
    path: PathBuf,
    weights: Arc<Weights>,
}

fn case() -> Case {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(&path, 2);
    let weights = Weights::open(&[&path]).expect("opens");
    Case { _folder: folder, path, weights }
}

impl Case {
    fn tensor(&self, name: &str) -> &TensorSlice {
        self.weights.get(name).expect("there")
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        let mut into = vec![0; LENGTH];
        self.tensor(name).read_into(0, &mut into).map(|()| into)
    }
}

fn named(error: &WeightsError, tensor: &str) {
    let text = error.to_string();
    assert!(text.contains("model.safetensors") && text.contains(&format!("`{tensor}`")), "{text}");
}

#[test]
fn any_stretch_of_a_tensor_is_read_and_nothing_beyond_it() {
    let case = case();
    let tensor = case.tensor("last");
    assert_eq!(tensor.byte_len(), LENGTH as u64);
    for (offset, length) in [(0, LENGTH), (1, LENGTH - 1), (LENGTH - 1, 1), (LENGTH, 0), (17, 100)] {
        let mut into = vec![0; length];
        tensor.read_into(offset as u64, &mut into).expect("reads");
        assert!(into.iter().all(|byte| *byte == 2));
    }
    let memory = TensorSlice::from_bytes("x", Dtype::U8, [3], vec![1, 2, 3]).expect("fits");
    let mut two = [0; 2];
    memory.read_into(1, &mut two).expect("reads");
    assert_eq!(two, [2, 3]);
    for (offset, length) in [(0, LENGTH + 1), (1, LENGTH), (LENGTH + 1, 0), (usize::MAX, 1)] {
        for tensor in [tensor, &memory] {
            let error = tensor.read_into(offset as u64, &mut vec![0; length]).expect_err("beyond");
            assert!(matches!(error, WeightsError::Tensor { .. }), "{error:?}");
        }
    }
}

#[test]
fn a_truncated_file_is_an_error_that_tells_how_much_is_left() {
    let case = case();
    let whole = fs::metadata(&case.path).expect("there").len();
    case.read("last").expect("whole");
    OpenOptions::new().write(true).open(&case.path).expect("opens").set_len(whole - 1).expect("truncates");
    // `first` is all there, but the file is not the one that was opened.
    for name in ["first", "last"] {
        let error = case.read(name).expect_err("truncated");
        assert!(
            matches!(error, WeightsError::Cut { need, have, .. } if need == whole && have == whole - 1),
            "{error:?}"
        );
        named(&error, name);
        assert!(matches!(case.tensor(name).bytes(), Err(WeightsError::Cut { .. })), "nor is it mapped any more");
    }
    let error = Weights::open(&[&case.path]).expect_err("truncated");
    assert!(matches!(error, WeightsError::Truncated { .. }), "{error:?}");
    write(&case.path, 3);
    let restored = Weights::open(&[&case.path]).expect("opens");
    let mut into = vec![0; LENGTH];
    restored.get("last").expect("there").read_into(0, &mut into).expect("reads");
    assert_eq!(into, vec![3; LENGTH]);
    assert!(case.read("last").is_err(), "restored or not, it was written");
}

#[test]
fn a_file_written_in_place_is_an_error() {
    let case = case();
    case.read("last").expect("unchanged");
    let mut file = OpenOptions::new().write(true).open(&case.path).expect("opens");
    file.seek(SeekFrom::End(-1)).expect("seeks");
    file.write_all(&[9]).expect("writes");
    let error = case.read("last").expect_err("written");
    assert!(matches!(error, WeightsError::Changed { .. }), "{error:?}");
    named(&error, "last");
    assert!(case.tensor("last").check().is_err());
}

#[cfg(unix)]
#[test]
fn a_file_replaced_by_renaming_goes_on_as_it_was() {
    let case = case();
    let next = case.path.with_extension("next");
    write(&next, 7);
    fs::rename(&next, &case.path).expect("replaces");
    assert_eq!(case.read("last").expect("the old file"), vec![2; LENGTH]);
    case.tensor("last").check().expect("unchanged");
    fs::remove_file(&case.path).expect("removes");
    assert_eq!(case.read("last").expect("the old file"), vec![2; LENGTH]);
}

/// A writer truncates and restores the file over and over: each read gives the old bytes or an error, and nothing ends
/// the process.
#[test]
fn reads_beside_a_writer_are_right_or_errors() {
    let case = case();
    let (path, whole) = (case.path.clone(), fs::metadata(&case.path).expect("there").len());
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let file = OpenOptions::new().write(true).open(path).expect("opens");
            for round in 0..200 {
                file.set_len(whole / 2 + round).expect("truncates");
                file.set_len(whole).expect("grows");
            }
        });
        while !writer.is_finished() {
            if let Ok(bytes) = case.read("last") {
                assert!(bytes.iter().all(|byte| *byte == 2), "bytes that were never in the file");
            }
        }
    });
    assert!(case.read("last").is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_is_mapped_until_bytes_are_looked_at_in_place() {
    let case = case();
    let maps = || {
        let maps = fs::read_to_string("/proc/self/maps").expect("linux");
        maps.lines().filter(|line| line.ends_with(case.path.to_str().expect("text"))).count()
    };
    case.read("first").expect("reads");
    assert_eq!(maps(), 0);
    let first = case.tensor("first").bytes().expect("maps");
    let last = case.tensor("last").bytes().expect("mapped already");
    assert_eq!((first[0], last[0]), (1, 2));
    assert_eq!(maps(), 1);
}
