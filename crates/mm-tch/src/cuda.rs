//! Whether libtorch has CUDA, asked so that the answer is true.

use crate::{Error, Result, memory};
use std::path::Path;

/// Whether libtorch finds a GPU.
///
/// A program's linker drops libtorch's CUDA library, as no symbol is taken from it, and libtorch then answers "no" without a
/// word. So the library is loaded first, where it lies beside the rest of libtorch. Nothing in this crate computes on a GPU yet.
///
/// # Errors
/// The library is there and can't be loaded, which has its reason: a driver or a library of CUDA's that is missing.
pub fn cuda_is_available() -> Result<bool> {
    if let Some(home) = memory::loaded_from()
        && let Some(folder) = home.parent()
    {
        load_from(folder)?;
    }
    Ok(tch::Cuda::is_available())
}

/// Loads libtorch's CUDA library from this folder; `false`: there is none, it is a libtorch for the CPU.
fn load_from(folder: &Path) -> Result<bool> {
    let file = folder.join("libtorch_cuda.so");
    if !file.exists() {
        return Ok(false);
    }
    memory::load_library(&file).map_err(|reason| Error::Library { file, reason })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{cuda_is_available, load_from};

    #[test]
    fn without_the_library_there_is_no_gpu() {
        assert!(!load_from(tempfile::tempdir().unwrap().path()).unwrap());
        let home = crate::memory::loaded_from().unwrap();
        assert!(home.file_name().unwrap().to_string_lossy().starts_with("lib"), "{home:?}");
        if !home.with_file_name("libtorch_cuda.so").exists() {
            assert!(!cuda_is_available().unwrap());
        }
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libtorch_cuda.so"), "no library").unwrap();
        let error = load_from(folder.path()).unwrap_err().to_string();
        assert!(error.contains("libtorch_cuda.so"), "{error}");
    }

    /// One that nobody linked is in the process afterwards.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_lies_there_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtorch_cuda.so");
        let source = folder.path().join("empty.cpp");
        std::fs::write(&source, "extern \"C\" int mm_tch_nothing() { return 0; }").unwrap();
        let compiler =
            std::process::Command::new("c++").args(["-shared", "-fPIC", "-o"]).arg(&file).arg(&source).status();
        assert!(compiler.unwrap().success());
        let is_loaded = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(file.to_str().unwrap());
        assert!(!is_loaded());
        assert!(load_from(folder.path()).unwrap());
        assert!(is_loaded());
    }
}
