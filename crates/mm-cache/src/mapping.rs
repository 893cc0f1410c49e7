//! The one place that maps files into memory; the only `unsafe` of this crate.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps the first `size` bytes of `file`, read-only.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File, size: u64) -> io::Result<Mmap> {
    let size = usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY:
    // 1. The map is read-only, and `file` is opened for reading only by the one caller, `OpenFile`; nobody in this
    //    process can write through either.
    // 2. Every borrow of the bytes goes through the `Mmap`'s `Deref`, so it cannot outlive the pages.
    // 3. The length is the one the file had when it was opened, and the caller asks just before this call whether
    //    the file still has it, so every page was backed by the file then.
    // 4. The bytes are only ever read as `u8`, for which any value is valid.
    // What remains cannot be ruled out from here and is the contract of `TensorSlice::bytes`, the only way to a
    // mapping: the file must not be written or truncated in place while its bytes are looked at. A write would
    // change bytes under a shared borrow; a truncation turns a later look into SIGBUS. Replacing the file (rename,
    // unlink) is fine, as the mapping keeps the old inode. `TensorSlice::read_into` asks nothing of the kind.
    unsafe { memmap2::MmapOptions::new().len(size).map(file) }
}
