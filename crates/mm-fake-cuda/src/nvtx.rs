//! The entry points of NVIDIA's library of ranges that mm-engine calls.

use crate::driver::misuse;
use std::{
    collections::BTreeSet,
    ffi::{CStr, c_char},
    sync::Mutex,
};

pub(crate) struct Ranges {
    /// The first byte of each text.
    pub(crate) begun: Vec<u8>,
    pub(crate) open: BTreeSet<u64>,
}

pub(crate) static RANGES: Mutex<Ranges> = Mutex::new(Ranges { begun: Vec::new(), open: BTreeSet::new() });

#[unsafe(no_mangle)]
unsafe extern "C" fn nvtxRangeStartA(text: *const c_char) -> u64 {
    // SAFETY: NVTX asks of the caller that the text ends with a zero.
    let text = unsafe { CStr::from_ptr(text) };
    let Ok(mut ranges) = RANGES.lock() else { return 0 };
    ranges.begun.push(text.to_bytes().first().copied().unwrap_or(0));
    let id = ranges.begun.len() as u64;
    ranges.open.insert(id);
    id
}

#[unsafe(no_mangle)]
extern "C" fn nvtxRangeEnd(id: u64) {
    if !RANGES.lock().is_ok_and(|mut ranges| ranges.open.remove(&id)) {
        misuse("a range ended that was not begun, or twice");
    }
}
