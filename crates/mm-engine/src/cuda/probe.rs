//! Whether there is a driver, asked before cudarc is: it panics where the library, or a symbol of it, is missing.
#![allow(unsafe_code)]

use crate::{EngineError, Result};
use cudarc::driver::sys::{CUevent, CUresult};
use libloading::Library;
use std::{ffi::c_void, sync::OnceLock};

/// Names among those that cudarc tries.
const NAMES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// What is called here, or by cudarc on our behalf.
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetMemPool",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemPoolGetAttribute",
    "cuMemPoolTrimTo",
    "cuMemcpyHtoDAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// `cuEventElapsedTime`. cudarc has only the second version of it, which drivers before CUDA 12.8 lack.
pub(super) type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// Says what is missing, if anything is.
pub(super) fn driver() -> Result<ElapsedTime> {
    static FOUND: OnceLock<Result<ElapsedTime, String>> = OnceLock::new();
    FOUND.get_or_init(find).clone().map_err(|reason| EngineError::NoDriver { reason })
}

fn find() -> Result<ElapsedTime, String> {
    let mut reason = String::new();
    for &name in NAMES {
        // SAFETY: loading runs the library's initializers. The names are those of NVIDIA's driver, which a program that
        // asks for a CUDA device asks to be loaded; cudarc loads the same next.
        match unsafe { Library::new(name) } {
            Ok(library) => {
                let outcome = check(name, &library);
                // Kept loaded for cudarc.
                std::mem::forget(library);
                return outcome;
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(format!("{} was not found ({reason})", NAMES.join(" or ")))
}

fn check(name: &str, library: &Library) -> Result<ElapsedTime, String> {
    let missing = |symbol| {
        format!("{name} has no {symbol}; it is not NVIDIA's driver, or too old (CUDA 11.3 or newer is needed)")
    };
    for &symbol in SYMBOLS {
        // SAFETY: the symbol is only looked up, as a pointer that is neither called nor read through.
        let found = unsafe { library.get::<*const c_void>(symbol) };
        found.map_err(|_| missing(symbol))?;
    }
    // SAFETY: the symbol has this signature since CUDA's first version, and the library is never unloaded.
    let elapsed = unsafe { library.get::<ElapsedTime>("cuEventElapsedTime") };
    elapsed.map(|symbol| *symbol).map_err(|_| missing("cuEventElapsedTime"))
}
