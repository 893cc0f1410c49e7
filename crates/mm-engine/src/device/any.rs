//! Host memory or a card, chosen when a program runs: adapters have one type of manager, component and block for both.

use super::{
    CopyFailed, Device, DeviceMemory, DriverMemory, HostBuffer, HostCopy, HostDevice, HostMemory, Reservation,
    Stopwatch,
};
#[cfg(feature = "cuda")]
use crate::cuda::{CudaBuffer, CudaCopy, CudaDevice, CudaMark, CudaSource};
use crate::{
    Result, Slab,
    source::HostSource,
    timeline::{Kind, Label},
};
use mm_plan::{DType, HostTier};
use std::sync::Arc;

/// A [`HostDevice`], or with feature `cuda` a `CudaDevice`. What belongs to one of these is never given to the other: each
/// module knows its one device.
pub enum AnyDevice<M: HostMemory = HostBuffer> {
    /// Host memory.
    Host(HostDevice<M>),
    /// A card.
    #[cfg(feature = "cuda")]
    Cuda(CudaDevice),
}

/// Memory of an [`AnyDevice`].
pub enum AnyBuffer<M: HostMemory = HostBuffer> {
    /// Host memory.
    Host(M),
    /// Of a card.
    #[cfg(feature = "cuda")]
    Cuda(CudaBuffer),
}

/// A point in the compute stream of an [`AnyDevice`].
#[derive(Clone)]
pub struct AnyEvent(Event);

/// What an [`AnyDevice`] copies a slab from.
#[derive(Clone)]
pub struct AnySource(Source);

/// A copy of an [`AnyDevice`] under way.
pub struct AnyCopy<M: HostMemory = HostBuffer>(Copy<M>);

#[derive(Clone)]
enum Event {
    Host,
    #[cfg(feature = "cuda")]
    Cuda(CudaMark),
}

#[derive(Clone)]
enum Source {
    Host(HostSource),
    #[cfg(feature = "cuda")]
    Cuda(CudaSource),
}

enum Copy<M: HostMemory> {
    Host(HostCopy<M>),
    #[cfg(feature = "cuda")]
    Cuda(CudaCopy),
    /// Something of the other kind of device.
    #[cfg(feature = "cuda")]
    Refused(AnyBuffer<M>),
}

/// What both kinds answer in the same words.
macro_rules! each {
    ($self:expr, $device:ident => $answer:expr) => {
        match $self {
            Self::Host($device) => $answer,
            #[cfg(feature = "cuda")]
            Self::Cuda($device) => $answer,
        }
    };
}

#[cfg(feature = "cuda")]
fn stranger() -> crate::EngineError {
    crate::EngineError::Internal("memory of another kind of device".to_owned())
}

impl<M: HostMemory> AnyDevice<M> {
    /// Counts memory that an adapter holds while it builds a model, before there is a plan; see [`HostDevice::reserve`]. `None` on a
    /// card, whose driver counts what the tensor library holds there.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        match self {
            Self::Host(device) => Some(device.reserve(bytes)),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }
}

impl<M: HostMemory> Device for AnyDevice<M> {
    type Buffer = AnyBuffer<M>;
    type Event = AnyEvent;
    type Source = AnySource;
    type Copy = AnyCopy<M>;

    fn allocate(&self, dtype: DType, bytes: u64) -> Result<AnyBuffer<M>> {
        match self {
            Self::Host(device) => device.allocate(dtype, bytes).map(AnyBuffer::Host),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.allocate(dtype, bytes).map(AnyBuffer::Cuda),
        }
    }

    fn adopt(&self, buffer: AnyBuffer<M>) -> Result<AnyBuffer<M>, AnyBuffer<M>> {
        match (self, buffer) {
            (Self::Host(device), AnyBuffer::Host(buffer)) => {
                device.adopt(buffer).map(AnyBuffer::Host).map_err(AnyBuffer::Host)
            }
            #[cfg(feature = "cuda")]
            (_, buffer) => Err(buffer),
        }
    }

    fn free(&self, buffer: AnyBuffer<M>) {
        match (self, buffer) {
            (Self::Host(device), AnyBuffer::Host(buffer)) => device.free(buffer),
            #[cfg(feature = "cuda")]
            (Self::Cuda(device), AnyBuffer::Cuda(buffer)) => device.free(buffer),
            // Each kind gives its memory back when it is dropped.
            #[cfg(feature = "cuda")]
            (_, stranger) => drop(stranger),
        }
    }

    fn record(&self) -> Result<AnyEvent> {
        match self {
            Self::Host(device) => device.record().map(|()| AnyEvent(Event::Host)),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.record().map(|mark| AnyEvent(Event::Cuda(mark))),
        }
    }

    fn in_files(&self, slab: Arc<Slab>) -> AnySource {
        AnySource(match self {
            Self::Host(device) => Source::Host(device.in_files(slab)),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Source::Cuda(device.in_files(slab)),
        })
    }

    fn in_memory(&self, slabs: &[Arc<Slab>], tier: HostTier) -> Result<Vec<AnySource>> {
        Ok(match self {
            Self::Host(device) => {
                device.in_memory(slabs, tier)?.into_iter().map(|s| AnySource(Source::Host(s))).collect()
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                device.in_memory(slabs, tier)?.into_iter().map(|s| AnySource(Source::Cuda(s))).collect()
            }
        })
    }

    fn copy(&self, label: Label, source: AnySource, into: AnyBuffer<M>, after: Option<AnyEvent>) -> AnyCopy<M> {
        AnyCopy(match (self, source.0, into) {
            // On the host an event is over as soon as it is recorded.
            (Self::Host(device), Source::Host(source), AnyBuffer::Host(into)) => {
                Copy::Host(device.copy(label, source, into, after.map(drop)))
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(device), Source::Cuda(source), AnyBuffer::Cuda(into)) => match after.map(|event| event.0) {
                None => Copy::Cuda(device.copy(label, source, into, None)),
                Some(Event::Cuda(mark)) => Copy::Cuda(device.copy(label, source, into, Some(mark))),
                Some(Event::Host) => Copy::Refused(AnyBuffer::Cuda(into)),
            },
            #[cfg(feature = "cuda")]
            (_, _, into) => Copy::Refused(into),
        })
    }

    fn finish(&self, copy: AnyCopy<M>) -> Result<AnyBuffer<M>, CopyFailed<AnyBuffer<M>>> {
        match (self, copy.0) {
            (Self::Host(device), Copy::Host(copy)) => {
                device.finish(copy).map(AnyBuffer::Host).map_err(|failed| of_any(failed, AnyBuffer::Host))
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(device), Copy::Cuda(copy)) => {
                device.finish(copy).map(AnyBuffer::Cuda).map_err(|failed| of_any(failed, AnyBuffer::Cuda))
            }
            #[cfg(feature = "cuda")]
            (_, Copy::Refused(buffer)) => Err(CopyFailed { buffer: Some(buffer), error: stranger() }),
            // Dropping it waits for it and gives its memory back.
            #[cfg(feature = "cuda")]
            _ => Err(CopyFailed { buffer: None, error: stranger() }),
        }
    }

    fn is_done(&self, copy: &AnyCopy<M>) -> bool {
        match (self, &copy.0) {
            (Self::Host(device), Copy::Host(copy)) => device.is_done(copy),
            #[cfg(feature = "cuda")]
            (Self::Cuda(device), Copy::Cuda(copy)) => device.is_done(copy),
            #[cfg(feature = "cuda")]
            _ => true,
        }
    }

    fn profile(&self, kind: Kind, label: &Label) -> Option<Box<dyn Send>> {
        each!(self, device => device.profile(kind, label))
    }

    fn host_tiers(&self) -> &'static [HostTier] {
        each!(self, device => device.host_tiers())
    }

    fn tells_times(&self) -> bool {
        each!(self, device => device.tells_times())
    }

    fn stopwatch(&self) -> Option<Arc<dyn Stopwatch>> {
        each!(self, device => device.stopwatch())
    }

    fn memory(&self) -> DeviceMemory {
        each!(self, device => device.memory())
    }

    fn driver_memory(&self) -> Option<DriverMemory> {
        each!(self, device => device.driver_memory())
    }

    fn unfreed(&self) -> u64 {
        each!(self, device => device.unfreed())
    }

    fn trim(&self) -> Option<u64> {
        each!(self, device => device.trim())
    }
}

fn of_any<B, M: HostMemory>(failed: CopyFailed<B>, kind: impl Fn(B) -> AnyBuffer<M>) -> CopyFailed<AnyBuffer<M>> {
    CopyFailed { buffer: failed.buffer.map(kind), error: failed.error }
}
