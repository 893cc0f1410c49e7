//! What a slab is copied from where the host needs nothing of the driver's: its files, or a copy of it in ordinary memory.

use crate::{EngineError, Result, Slab, device::pieces};
use bytemuck::allocation::try_zeroed_vec;
use parking_lot::Mutex;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

/// A slab in its files, or filled once into ordinary memory, which goes back with the last clone.
#[derive(Clone)]
pub struct HostSource {
    slab: Arc<Slab>,
    filled: Option<Arc<Vec<u8>>>,
}

impl HostSource {
    /// Read from its files, and cast, each time.
    pub(crate) const fn in_files(slab: Arc<Slab>) -> Self {
        Self { slab, filled: None }
    }

    /// Copies in ordinary memory, read and cast now.
    pub(crate) fn in_memory(slabs: &[Arc<Slab>]) -> Result<Vec<Self>> {
        let mut copies = slabs.iter().map(|slab| zeroed(slab.bytes())).collect::<Result<Vec<_>>>()?;
        fill_all(slabs.iter().map(|slab| &**slab).zip(copies.iter_mut().map(Vec::as_mut_slice)).collect())?;
        let source = |(slab, copy): (&Arc<Slab>, _)| Self { slab: slab.clone(), filled: Some(Arc::new(copy)) };
        Ok(slabs.iter().zip(copies).map(source).collect())
    }

    /// What it is a source of.
    pub const fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// Fills the front of `into`, as [`Slab::fill`] does.
    pub(crate) fn fill(&self, into: &mut [u8]) -> Result<()> {
        let Some(filled) = &self.filled else { return self.slab.fill(into) };
        let short = || EngineError::Internal(format!("{} bytes for a slab of {}", into.len(), filled.len()));
        if into.len() < filled.len() {
            return Err(short());
        }
        into[..filled.len()].copy_from_slice(filled);
        Ok(())
    }

    /// Fills `into` with what lies at `start`, as [`Slab::fill_piece`] does.
    #[cfg(feature = "cuda")]
    pub(crate) fn fill_piece(&self, start: u64, into: &mut [u8]) -> Result<()> {
        let Some(filled) = &self.filled else { return self.slab.fill_piece(start, into) };
        let rest = usize::try_from(start).ok().and_then(|start| filled.get(start..));
        let piece = rest.and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(piece.ok_or_else(|| EngineError::Internal("a piece beyond its slab".to_owned()))?);
        Ok(())
    }
}

/// Ordinary memory. `HostMemory` where there is none.
pub(crate) fn zeroed(bytes: u64) -> Result<Vec<u8>> {
    let short = || EngineError::HostMemory { need: bytes };
    let length = usize::try_from(bytes).map_err(|_| short())?;
    let room = usize::try_from(pieces::room(bytes)).map_err(|_| short())?;
    let mut memory = try_zeroed_vec(room).or_else(|()| try_zeroed_vec(length)).map_err(|()| short())?;
    memory.truncate(length);
    Ok(memory)
}

/// Fills each place with its slab, on several threads: one alone is slower than a disk or a link.
pub(crate) fn fill_all(work: Vec<(&Slab, &mut [u8])>) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(4)).min(work.len());
    let (queue, failed) = (Mutex::new(work.into_iter()), Mutex::new(None));
    let run = || {
        loop {
            let next = queue.lock().next();
            let Some((slab, place)) = next.filter(|_| failed.lock().is_none()) else { return };
            let filled = catch_unwind(AssertUnwindSafe(|| slab.fill(place)))
                .unwrap_or_else(|_| Err(EngineError::Internal("reading weights panicked".to_owned())));
            if let Err(error) = filled {
                failed.lock().get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // One that can't be started leaves its work to the others, of which this thread is one.
            let _ = thread::Builder::new().name("mm-fill".to_owned()).spawn_scoped(scope, run);
        }
        run();
    });
    failed.into_inner().map_or(Ok(()), Err)
}
