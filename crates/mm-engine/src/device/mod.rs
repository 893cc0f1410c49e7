//! What the engine asks of a device.

mod any;
mod buffer;
mod host;
pub(crate) mod pieces;
mod stopwatch;

pub use any::{AnyBuffer, AnyCopy, AnyDevice, AnyEvent, AnySource};
pub use buffer::{HostBuffer, HostMemory};
pub use host::{HostCopy, HostDevice, Reservation};
pub use stopwatch::{Stopwatch, Ticket};

use crate::{
    EngineError, Result, Slab,
    timeline::{Kind, Label},
};
use mm_plan::{DType, HostTier};
use std::sync::Arc;

/// Device memory as the engine counts it, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held now.
    pub in_use: u64,
    /// The most ever held since the device was made.
    pub peak: u64,
    /// The most that may be held.
    pub budget: u64,
    /// How many allocations were made.
    pub allocations: u64,
}

/// Device memory as its driver sees it, whoever uses it, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverMemory {
    /// Free now.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// A copy that failed. It gives its destination back, so that nothing is lost.
pub struct CopyFailed<B> {
    /// The destination; `None` where the device lost it.
    pub buffer: Option<B>,
    /// Why.
    pub error: EngineError,
}

/// A place where weights are computed with: a copy lane, a compute stream, and memory under a budget.
///
/// A copy owns its source and its destination until it has been [finished](Device::finish): no caller
/// can free or reuse either too early, whatever it forgets.
pub trait Device: Send + Sync + Sized + 'static {
    /// One slab's memory. Each is an allocation of its own, so that a tensor library may free it.
    type Buffer: Send + 'static;
    /// A point in the compute stream.
    type Event: Clone + Send + Sync + 'static;
    /// What a slab is copied from: its files, or a copy of it on the host.
    type Source: Clone + Send + Sync + 'static;
    /// A copy under way.
    type Copy: Send + 'static;

    /// Allocates and touches `bytes` (a multiple of the element size).
    ///
    /// # Errors
    /// `OverBudget`: the budget would be exceeded; nothing was allocated.
    fn allocate(&self, dtype: DType, bytes: u64) -> Result<Self::Buffer>;

    /// Gives memory back.
    fn free(&self, buffer: Self::Buffer);

    /// Marks the point that the compute stream has reached.
    ///
    /// # Errors
    /// `DeviceLost`.
    fn record(&self) -> Result<Self::Event>;

    /// A slab that is read from its files, and cast, for each copy: the tiers `Mapped` and `Staged`.
    fn in_files(&self, slab: Arc<Slab>) -> Self::Source;

    /// Copies of slabs on the host, as `tier` says, in the order of the slabs. They are read and cast now, which may take long; their
    /// memory goes back with the last source that lies in it, once no copy reads it any more.
    ///
    /// # Errors
    /// `PageLock`, `HostMemory`: there is no room for all of these; nothing is held, and another tier may do. `Source`.
    fn in_memory(&self, slabs: &[Arc<Slab>], tier: HostTier) -> Result<Vec<Self::Source>>;

    /// Enqueues a copy of a slab into the front of `into`, to start after `after`. Never blocks.
    fn copy(&self, label: Label, source: Self::Source, into: Self::Buffer, after: Option<Self::Event>) -> Self::Copy;

    /// Orders compute after the copy and hands its destination out. A device with a stream of its own
    /// does not block the host here; on the host, which is its own compute stream, this waits.
    ///
    /// # Errors
    /// [`CopyFailed`] with the reason; the destination's content is then meaningless.
    fn finish(&self, copy: Self::Copy) -> Result<Self::Buffer, CopyFailed<Self::Buffer>>;

    /// Whether [`Device::finish`] would not wait.
    fn is_done(&self, copy: &Self::Copy) -> bool;

    /// Tells a profiler of the device's that this begins; it ends when what is returned is dropped. Nothing where there is none.
    fn profile(&self, _kind: Kind, _label: &Label) -> Option<Box<dyn Send>> {
        None
    }

    /// Where it can copy from. A plan that keeps groups elsewhere is refused.
    fn host_tiers(&self) -> &'static [HostTier] {
        &[HostTier::Mapped]
    }

    /// Whether a lease lasts as long as what is computed with it, and a copy in the timeline as long as its bytes move, so that
    /// they can be measured. Not so on a device with streams of its own, where both are only enqueued meanwhile: see
    /// [`Device::stopwatch`].
    fn tells_times(&self) -> bool {
        false
    }

    /// What tells times on a device with streams of its own; `None`: they are not told, or as [`Device::tells_times`] says.
    fn stopwatch(&self) -> Option<Arc<dyn Stopwatch>> {
        None
    }

    /// Takes memory that an adapter allocated, and filled, into the account.
    ///
    /// # Errors
    /// The memory back: it does not fit, or this is not a device that can.
    fn adopt(&self, buffer: Self::Buffer) -> Result<Self::Buffer, Self::Buffer> {
        Err(buffer)
    }

    /// Memory as counted at each allocation.
    fn memory(&self) -> DeviceMemory;

    /// Memory as the driver sees it; `None`: there is no driver that counts, or it does not answer.
    fn driver_memory(&self) -> Option<DriverMemory> {
        None
    }

    /// Bytes that were given back, and are not free yet because nobody knows whether they are still used. They stay in the account.
    fn unfreed(&self) -> u64 {
        0
    }

    /// Makes the driver give up what its pools hold and nobody uses; bytes that they hold all the same. `None`: there is no pool, or it
    /// does not answer.
    fn trim(&self) -> Option<u64> {
        None
    }
}
