//! Where streamed groups are copied from: where the plan keeps them, or, where the host has no room for that after all, where
//! no room is needed.

use crate::{
    Device, EngineError, Result, Slab,
    module::{Layout, Module},
};
use mm_plan::{ComponentPlan, HostTier};
use std::sync::Arc;

/// Groups are prepared together up to this many bytes, so that small ones share what each allocation rounds up to.
const BATCH: u64 = 64 << 20;

/// Per group, what each of its slabs is copied from; nothing for groups that don't stream.
pub(crate) type Sources<D> = Vec<Vec<<D as Device>::Source>>;

/// What a component's streamed groups are copied from, and, where that is not what the plan says, notes that say why.
pub(crate) fn prepare<D: Device>(
    module: &Module<D>,
    layout: &Layout<D::Buffer>,
    plan: &ComponentPlan,
    streamed: &[usize],
) -> Result<(Sources<D>, Vec<String>)> {
    let tiers: Vec<HostTier> = plan.stacks.iter().flat_map(|s| s.host.iter().copied()).collect();
    if tiers.len() != layout.groups.len() {
        let reason = format!("{}: {} groups, the plan has {} host tiers", plan.name, layout.groups.len(), tiers.len());
        return Err(EngineError::PlanMismatch { reason });
    }
    let mut sources: Sources<D> = layout.groups.iter().map(|_| Vec::new()).collect();
    let mut refusals: Vec<Refusal> = Vec::new();
    let (mut in_files, mut copied) = (Vec::new(), 0u64);
    for batch in batches(layout, &tiers, streamed) {
        let tier = tiers[batch[0]];
        let slabs: Vec<_> = batch.iter().flat_map(|g| layout.groups[*g].slabs.iter().cloned()).collect();
        let is_copied = matches!(tier, HostTier::PageLocked | HostTier::Pageable);
        // Where there was no room once, there is none for what follows.
        let mut refused = refusals.iter().position(|refusal| refusal.tier == tier);
        let mut copies = None;
        if is_copied && refused.is_none() {
            match module.device.in_memory(&slabs, tier) {
                Ok(made) if made.len() == slabs.len() => copies = Some(made),
                Ok(_) => return Err(EngineError::Internal("a device made another number of copies".to_owned())),
                Err(error @ (EngineError::PageLock { .. } | EngineError::HostMemory { .. })) => {
                    refused = Some(refusals.len());
                    refusals.push(Refusal { tier, error, groups: 0, bytes: 0 });
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(refusal) = refused.and_then(|at| refusals.get_mut(at)) {
            refusal.groups += batch.len();
            refusal.bytes = refusal.bytes.saturating_add(sum(slabs.iter().map(|slab| slab.bytes())));
        }
        let Some(copies) = copies else {
            in_files.extend(batch);
            continue;
        };
        copied = copied.saturating_add(sum(slabs.iter().map(|slab| slab.bytes())));
        let mut copies = copies.into_iter();
        for group in batch {
            sources[*group] = copies.by_ref().take(layout.groups[*group].slabs.len()).collect();
        }
    }
    let slabs = |group: &usize| layout.groups[*group].slabs.iter();
    // What the page cache can't hold is never found there, and would push out what is.
    let read = sum(in_files.iter().flat_map(slabs).map(|slab| slab.host_bytes()));
    let around_cache = module.host_memory().is_some_and(|memory| read > memory.saturating_sub(copied));
    for group in &in_files {
        let source = |slab: &Arc<Slab>| if around_cache { Arc::new(slab.around_cache()) } else { slab.clone() };
        sources[*group] = slabs(group).map(|slab| module.device.in_files(source(slab))).collect();
    }
    let notes = refusals.iter().map(|refusal| refusal.note(&module.title(), streamed.len())).collect();
    Ok((sources, notes))
}

/// A tier that there was no room for.
struct Refusal {
    tier: HostTier,
    error: EngineError,
    groups: usize,
    bytes: u64,
}

impl Refusal {
    fn note(&self, component: &str, streamed: usize) -> String {
        let Self { tier, error, groups, bytes } = self;
        let planned = if *tier == HostTier::PageLocked { "page-locked copies" } else { "copies in memory" };
        format!(
            "{component}: {groups} of {streamed} streamed groups ({bytes} bytes) are read from their files in each pass, not \
             from {planned}: {error}"
        )
    }
}

/// Bytes of any size.
fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

/// Streamed groups that follow each other and have one tier, up to [`BATCH`].
fn batches<'a, B>(
    layout: &'a Layout<B>,
    tiers: &'a [HostTier],
    streamed: &'a [usize],
) -> impl Iterator<Item = &'a [usize]> {
    let mut bytes = 0u64;
    streamed.chunk_by(move |before, group| {
        let size = |group: usize| sum(layout.groups[group].slabs.iter().map(|slab| slab.bytes()));
        bytes = bytes.saturating_add(size(*before));
        let joins = tiers[*before] == tiers[*group] && bytes.saturating_add(size(*group)) <= BATCH;
        bytes = if joins { bytes } else { 0 };
        joins
    })
}
