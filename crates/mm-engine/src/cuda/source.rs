//! What a slab is copied from to a card.

use super::locked::{Account, Locked};
use crate::{EngineError, HostSource, Result, Slab, source::fill_all};
use parking_lot::Mutex;
use std::{ops::Range, sync::Arc};

/// A slab in its files or in ordinary memory, from where it goes through the staging ring; or in page-locked memory, from where
/// the driver copies it. That memory goes back with the last source in it, once the driver has read it.
#[derive(Clone)]
pub struct CudaSource(From);

#[derive(Clone)]
enum From {
    Ring(HostSource),
    Locked { slab: Arc<Slab>, part: Part },
}

/// A slab's own part of page-locked memory.
#[derive(Clone)]
pub(super) struct Part {
    account: Arc<Account>,
    pub(super) memory: Arc<Mutex<Locked>>,
    pub(super) range: Range<usize>,
}

impl CudaSource {
    /// What it is a source of.
    pub const fn slab(&self) -> &Arc<Slab> {
        match &self.0 {
            From::Ring(source) => source.slab(),
            From::Locked { slab, .. } => slab,
        }
    }

    /// Through the ring.
    pub(super) const fn ring(source: HostSource) -> Self {
        Self(From::Ring(source))
    }

    /// Page-locked copies, one allocation for all of them, read and cast now.
    pub(super) fn locked(account: &Arc<Account>, slabs: &[Arc<Slab>]) -> Result<Vec<Self>> {
        let bytes = slabs.iter().try_fold(0u64, |sum, slab| sum.checked_add(slab.bytes()));
        let too_large = || EngineError::PageLock { need: u64::MAX, limit: None };
        let mut memory = account.lock(bytes.ok_or_else(too_large)?)?;
        let (mut rest, mut start) = (memory.reclaim()?, 0);
        let (mut work, mut ranges) = (Vec::with_capacity(slabs.len()), Vec::with_capacity(slabs.len()));
        for slab in slabs {
            // Within the sum, which was a `usize` where memory could be had.
            let length = slab.bytes() as usize;
            let (place, after) = rest.split_at_mut_checked(length).ok_or_else(too_large)?;
            work.push((&**slab, place));
            ranges.push(start..start + length);
            (rest, start) = (after, start + length);
        }
        fill_all(work)?;
        let memory = Arc::new(Mutex::new(memory));
        let source = |(slab, range): (&Arc<Slab>, _)| {
            Self(From::Locked {
                slab: slab.clone(),
                part: Part { account: account.clone(), memory: memory.clone(), range },
            })
        };
        Ok(slabs.iter().zip(ranges).map(source).collect())
    }

    /// Whether the device with this account may copy from it.
    pub(super) fn is_of(&self, account: &Arc<Account>) -> bool {
        self.part().is_none_or(|part| Arc::ptr_eq(&part.account, account))
    }

    /// Its page-locked memory, where it has some.
    pub(super) const fn part(&self) -> Option<&Part> {
        match &self.0 {
            From::Ring(_) => None,
            From::Locked { part, .. } => Some(part),
        }
    }

    /// Fills a buffer of the ring with what lies at `start`.
    pub(super) fn fill_piece(&self, start: u64, into: &mut [u8]) -> Result<()> {
        match &self.0 {
            From::Ring(source) => source.fill_piece(start, into),
            From::Locked { .. } => Err(EngineError::Internal("a page-locked slab went through the ring".to_owned())),
        }
    }
}
