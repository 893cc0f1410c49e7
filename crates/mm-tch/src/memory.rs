//! The one place that reaches under tensors; the only `unsafe` of this crate. `memory.cpp` is its other half.
//!
//! Everything here works on tensors that the caller owns, under the component's lock: nobody computes with them
//! meanwhile. That a clone of a weight was not taken to another thread, and used there while its component is not
//! running, is what tch itself leaves to its users: its tensors share memory without locks.

use crate::kind::{code, kind_of};
use mm_engine::HostMemory;
use mm_plan::DType;
use std::{
    ffi::{CStr, CString, OsStr, c_char, c_void},
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// A variable and where it lies in its slab.
#[repr(C)]
struct RawPlace {
    variable: *const C_tensor,
    offset: i64,
    elements: i64,
    kind: i32,
}

unsafe extern "C" {
    fn mm_tch_free(message: *mut c_char);
    fn mm_tch_identity(variable: *const C_tensor) -> *const c_void;
    fn mm_tch_detach(variable: *const C_tensor, kind: i32) -> *mut c_char;
    fn mm_tch_put(places: *const RawPlace, count: usize, memory: *const C_tensor) -> *mut c_char;
    fn mm_tch_take(memory: *const C_tensor) -> *mut c_char;
    fn mm_tch_load(path: *const c_char) -> *mut c_char;
    fn mm_tch_home() -> *mut c_char;
    safe fn mm_tch_trim();
}

/// A variable of a model, as a home of weights.
pub(crate) struct Variable {
    pub(crate) tensor: Tensor,
    /// As it was built.
    pub(crate) kind: Kind,
    /// As many as its slab has for it.
    pub(crate) elements: u64,
    /// In its slab, bytes.
    pub(crate) offset: u64,
}

/// One slab's memory: a flat tensor of bytes that libtorch allocated and frees.
pub struct TorchMemory(Tensor);

impl HostMemory for TorchMemory {
    fn holds(dtype: DType) -> bool {
        kind_of(dtype).is_some()
    }

    fn allocate(_: DType, bytes: u64) -> Option<Self> {
        let bytes = i64::try_from(bytes).ok()?;
        Tensor::f_empty([bytes], (Kind::Uint8, Device::Cpu)).ok().map(Self)
    }

    fn len(&self) -> u64 {
        self.0.numel() as u64
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.0.numel();
        if length == 0 {
            return &mut [];
        }
        // SAFETY: a contiguous tensor of `length` bytes on the CPU, alive as long as `self`. Its storage is its own while
        // it is a `TorchMemory` outside a home (`put` consumes it, and `take` parts it from all that viewed it), so no
        // other tensor reaches these bytes while they are borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.0.data_ptr().cast::<u8>(), length) }
    }
}

impl Drop for TorchMemory {
    fn drop(&mut self) {
        self.0 = Tensor::new();
        trim();
    }
}

/// Gives memory that was freed back to the system, which an allocator may not have done.
pub(crate) fn trim() {
    mm_tch_trim();
}

/// Whether two tensors are one variable.
pub(crate) fn identity(variable: &Tensor) -> usize {
    // SAFETY: a tensor that is alive; only its address is looked at.
    unsafe { mm_tch_identity(variable.as_ptr()) as usize }
}

/// Takes a variable's own memory away and frees it. It keeps its shape, has this kind, and refuses until it is put somewhere;
/// tensors that shared its memory refuse for good.
pub(crate) fn detach(variable: &Tensor, kind: Kind) -> Result<(), String> {
    // SAFETY: a tensor that is alive. It is changed in place, as tch's `set_data` does; tensors that share its memory keep
    // their storage, which refuses.
    message(unsafe { mm_tch_detach(variable.as_ptr(), code(kind)) }).map_or(Ok(()), Err)
}

/// Makes variables views of this memory.
pub(crate) fn put(variables: &[Variable], memory: &TorchMemory) -> Result<(), String> {
    let place = |v: &Variable| {
        let kind = code(v.kind);
        let offset = i64::try_from(v.offset).map_err(|e| e.to_string())?;
        Ok(RawPlace { variable: v.tensor.as_ptr(), offset, elements: v.elements as i64, kind })
    };
    let places = variables.iter().map(place).collect::<Result<Vec<_>, String>>()?;
    // SAFETY: the tensors are alive, the list is as long as told, and the other side checks each place against the memory's
    // length, the variable's shape and its kind.
    message(unsafe { mm_tch_put(places.as_ptr(), places.len(), memory.0.as_ptr()) }).map_or(Ok(()), Err)
}

/// Parts memory from all tensors that view it: they refuse from now on.
pub(crate) fn take(memory: &TorchMemory) -> Result<(), String> {
    // SAFETY: a tensor that is alive. Its bytes move to a storage that nobody else holds.
    message(unsafe { mm_tch_take(memory.0.as_ptr()) }).map_or(Ok(()), Err)
}

/// Loads a shared library for the rest of the process.
pub(crate) fn load_library(path: &Path) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a string that ends in zero. The library is one of libtorch's, whose constructors are made to be run by this.
    message(unsafe { mm_tch_load(path.as_ptr()) }).map_or(Ok(()), Err)
}

/// The file that libtorch was loaded from.
pub(crate) fn loaded_from() -> Option<PathBuf> {
    // SAFETY: takes nothing.
    message(unsafe { mm_tch_home() }).map(|path| PathBuf::from(OsStr::new(&path)))
}

/// A message of the other side, freed.
fn message(raw: *mut c_char) -> Option<String> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: not null, and the other side ends its messages in zero.
    let text = unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned();
    // SAFETY: it came from `strdup` there, and is not used again.
    unsafe { mm_tch_free(raw) };
    Some(text)
}
