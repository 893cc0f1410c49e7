//! Opening files, and nothing else.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

/// Opens a file to read it; `None` for what is none: a directory, pipe, socket or device. Asked before opening, as opening a
/// device may do something, and after.
///
/// # Errors
/// The path is missing, leads nowhere or may not be read.
pub fn open_regular(path: impl AsRef<Path>) -> io::Result<Option<(File, Metadata)>> {
    let path = path.as_ref();
    if !std::fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = open_at_once(path)?;
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// What was a file a moment ago may be a pipe by now, whose opening would wait for its writer.
#[cfg(unix)]
fn open_at_once(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(not(unix))]
fn open_at_once(path: &Path) -> io::Result<File> {
    File::open(path)
}
