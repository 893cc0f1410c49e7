//! Ranges for NVIDIA's profilers, where their library is on this machine; else nothing.
#![allow(unsafe_code)]

use crate::timeline::{Kind, Label};
use libloading::Library;
use std::{
    ffi::{CString, c_char},
    sync::OnceLock,
};

const NAMES: &[&str] =
    if cfg!(windows) { &["nvToolsExt64_1.dll"] } else { &["libnvToolsExt.so.1", "libnvToolsExt.so"] };

type Start = unsafe extern "C" fn(*const c_char) -> u64;
type End = unsafe extern "C" fn(u64);

struct Nvtx {
    start: Start,
    end: End,
}

/// A range of the process, from any thread to any other; it ends when it is dropped.
pub(super) struct Range {
    nvtx: &'static Nvtx,
    id: u64,
}

impl Range {
    /// Begins one; `None` without the library.
    pub(super) fn begin(kind: Kind, label: &Label) -> Option<Self> {
        let nvtx = Nvtx::loaded()?;
        let Label { component, group } = label;
        let text = CString::new(format!("{} {component} {group}", kind.name())).ok()?;
        // SAFETY: the function has this signature since NVTX's first version; it copies the text, which ends with a zero.
        let id = unsafe { (nvtx.start)(text.as_ptr()) };
        Some(Self { nvtx, id })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: as for `start`; the range was begun and ends once.
        unsafe { (self.nvtx.end)(self.id) };
    }
}

impl Nvtx {
    fn loaded() -> Option<&'static Self> {
        static LOADED: OnceLock<Option<Nvtx>> = OnceLock::new();
        LOADED.get_or_init(|| NAMES.iter().find_map(|name| Self::load(name))).as_ref()
    }

    fn load(name: &str) -> Option<Self> {
        // SAFETY: loading runs the library's initializers. The names are those of NVIDIA's library for tools.
        let library = unsafe { Library::new(name) }.ok()?;
        // SAFETY: the symbol has this signature since NVTX's first version.
        let start = *unsafe { library.get::<Start>("nvtxRangeStartA") }.ok()?;
        // SAFETY: as above.
        let end = *unsafe { library.get::<End>("nvtxRangeEnd") }.ok()?;
        // Its functions are called until the process ends.
        std::mem::forget(library);
        Some(Self { start, end })
    }
}
