//! Reading around the page cache: what is larger than memory and read over and over would push everything out of it, itself first,
//! and never be found there again.

use std::fs::File;
use std::io;

/// Reads of fewer bytes go through the cache: they take little of it, and each costs as much as a long one.
const SHORTEST: usize = 256 << 10;

#[cfg(target_os = "linux")]
pub(crate) use linux::Direct;

/// A second way to an open file, opened when it is first taken. Not on this system.
#[cfg(not(target_os = "linux"))]
#[derive(Default)]
pub(crate) struct Direct;

#[cfg(not(target_os = "linux"))]
impl Direct {
    pub(crate) fn read(&self, _: &File, _: u64, _: &mut [u8]) -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{File, SHORTEST, io};
    use crate::reading::read_at;
    use std::cell::RefCell;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    /// What places in the file, memory and lengths are multiples of, bytes: at least the block of any disk that takes such reads.
    const BLOCK: usize = 4096;
    /// Bytes of one read; a disk is as fast with longer ones.
    const STEP: usize = 4 << 20;
    /// Of a long stretch, read at once.
    const PARTS: usize = 4;

    thread_local! {
        /// One read under way, and room to begin at a multiple of the block.
        static BOUNCE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    /// A second way to an open file, opened when it is first taken.
    #[derive(Default)]
    pub(crate) struct Direct {
        file: OnceLock<Option<File>>,
        refused: AtomicBool,
    }

    impl Direct {
        /// Fills `into` with what lies at `offset` of `file`; `false`, and nothing read, where the file system takes no such reads or
        /// they would not pay. A file that ends before is an error.
        pub(crate) fn read(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<bool> {
            if into.len() < SHORTEST || self.refused.load(Relaxed) {
                return Ok(false);
            }
            let Some(direct) = self.file.get_or_init(|| open(file)) else { return Ok(false) };
            match read_in_parts(direct, offset, into) {
                // So says a file system that only refuses when it is read.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.refused.store(true, Relaxed);
                    Ok(false)
                }
                outcome => outcome,
            }
        }
    }

    /// The very same file, whatever lies at its path by now.
    fn open(file: &File) -> Option<File> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::options().read(true).custom_flags(libc::O_DIRECT).open(path).ok()
    }

    /// Several parts at once: a disk is slow with one read at a time, and waits while what it read is copied. `false`: no
    /// thread could be started for that.
    fn read_in_parts(direct: &File, offset: u64, into: &mut [u8]) -> io::Result<bool> {
        let length = into.len().div_ceil(PARTS).max(STEP);
        let mut parts = into.chunks_mut(length).zip((offset..).step_by(length));
        let first = parts.next();
        let read = |(part, offset)| BOUNCE.with_borrow_mut(|bounce| read(direct, offset, part, bounce));
        thread::scope(|scope| {
            let start =
                |part| thread::Builder::new().name("mm-read".to_owned()).spawn_scoped(scope, move || read(part));
            let others: Vec<_> = parts.map(start).collect();
            let mut outcome = first.map_or(Ok(()), read);
            let mut complete = true;
            for other in others {
                let Ok(other) = other else {
                    complete = false;
                    continue;
                };
                let panicked = |_| Err(io::Error::other("a thread that reads panicked"));
                outcome = outcome.and(other.join().unwrap_or_else(panicked));
            }
            outcome.map(|()| complete)
        })
    }

    fn read(direct: &File, offset: u64, into: &mut [u8], bounce: &mut Vec<u8>) -> io::Result<()> {
        bounce.resize(STEP + BLOCK, 0);
        let start = bounce.as_ptr().align_offset(BLOCK);
        let bounce = bounce.get_mut(start..).and_then(|rest| rest.get_mut(..STEP)).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            // What lies before `at` in its block is read with it.
            let before = (at % BLOCK as u64) as usize;
            let wanted = (before + into.len() - done).min(STEP);
            let room = &mut bounce[..wanted.next_multiple_of(BLOCK)];
            let got = match read_at(direct, at - before as u64, room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got?,
            };
            // At the end of the file less than a block may come, or nothing.
            let found = &bounce[before.min(got)..got.min(wanted)];
            if found.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            into[done..done + found.len()].copy_from_slice(found);
            done += found.len();
        }
        Ok(())
    }
}
