//! Homes: flat tensors whose memory is swapped in and out under the weights that view them.
//!
//! A weight is a view (`narrow` + `reshape`) into its home. Swapping the home's storage swaps the
//! memory under every view and clone of it. A home without memory holds a storage that candle's
//! kernels refuse by its dtype: an error, never undefined behaviour.

#[cfg(feature = "cuda")]
use crate::card;
use crate::{error::for_engine, lora::Merge};
use candle_core::{
    CpuStorage, CudaStorage, DType, Device, Error, InplaceOp1, Layout, Storage, Tensor, bail, op::BackpropOp,
};
use mm_engine::{AnyBuffer, Homes, HostBuffer, HostMemory, Place, Reservation, Slab};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Elements that a home has by its shape, which only bounds what may view it: the storage is as long as what is put in.
const LONGEST: usize = usize::MAX >> 16;

/// A flat tensor under the weights of a group, of one dtype.
pub(crate) struct Home {
    tensor: Tensor,
    /// Bytes of the host's memory that is in it.
    put: AtomicU64,
    /// The memory of a card that is in it.
    #[cfg(feature = "cuda")]
    lent: Mutex<Option<card::Lent>>,
}

impl Home {
    /// A home without memory.
    pub(crate) fn new(dtype: DType, device: &Device) -> candle_core::Result<Self> {
        // What is in it at first only tells the tensor its dtype.
        let first = match device {
            Device::Cpu => match plan_dtype(dtype).and_then(HostBuffer::empty) {
                Some(buffer) => Storage::Cpu(into_storage(buffer)),
                None => bail!("weights of dtype {dtype:?} can't be managed"),
            },
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Storage::Cuda(card::zeros(1, dtype, device)?),
            other => bail!("weights can't be managed on {:?}", other.location()),
        };
        let home = Self {
            tensor: Tensor::from_storage(first, LONGEST, BackpropOp::none(), false),
            put: AtomicU64::new(0),
            #[cfg(feature = "cuda")]
            lent: Mutex::default(),
        };
        home.leave()?;
        Ok(home)
    }

    /// The weight at `start`, in elements.
    pub(crate) fn view(&self, start: usize, shape: &[usize]) -> candle_core::Result<Tensor> {
        self.tensor.narrow(0, start, shape.iter().product())?.reshape(shape)
    }

    /// While a model is built: makes room for the tensor that `slab` got last, which begins at `start` (in elements), and reads it.
    /// There will be about `room` bytes.
    pub(crate) fn append(&self, slab: &Slab, start: usize, room: u64) -> candle_core::Result<()> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = self.tensor.device() {
            return card::append(&self.tensor, device, slab, start, room);
        }
        let _ = start;
        let mut buffer = match self.swap(Storage::Cpu(refusing()))? {
            Storage::Cpu(CpuStorage::F8E8M0(_)) => plan_dtype(self.tensor.dtype()).and_then(HostBuffer::empty),
            Storage::Cpu(storage) => from_storage(storage).ok(),
            _ => None,
        }
        .ok_or_else(|| Error::msg("its home is closed"))?;
        let there = if buffer.is_empty() {
            // Zeros of the system's, none of which is written before what is read.
            HostBuffer::allocate(buffer.dtype(), room.max(slab.bytes())).map(|zeros| buffer = zeros).is_some()
        } else {
            buffer.grow(slab.bytes())
        };
        let outcome = match there {
            true => slab.fill_last(buffer.bytes_mut()).map_err(crate::error::through_candle),
            false => Err(Error::msg(format!("no memory for {} bytes of weights", slab.bytes()))),
        };
        self.swap(Storage::Cpu(into_storage(buffer)))?;
        outcome
    }

    /// The model is built: the `bytes` that were read are parted from the views, which refuse from now on. `None`: it is not the host's, and gone.
    pub(crate) fn part(&self, bytes: u64) -> candle_core::Result<Option<HostBuffer>> {
        if !self.tensor.device().is_cpu() {
            return self.leave().map(|()| None);
        }
        let mut buffer = host(self.swap(Storage::Cpu(refusing()))?);
        buffer.iter_mut().for_each(|buffer| buffer.truncate(bytes));
        Ok(buffer)
    }

    /// While a model is built: what was read leaves; the views stay and refuse.
    pub(crate) fn leave(&self) -> candle_core::Result<()> {
        self.swap(refusing_on(self.tensor.device())?).map(drop)
    }

    fn put(&self, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        let (bytes, storage) = match buffer {
            AnyBuffer::Host(buffer) => (buffer.len(), into_storage(buffer)),
            #[cfg(feature = "cuda")]
            AnyBuffer::Cuda(buffer) => {
                let refused = |(buffer, reason)| (AnyBuffer::Cuda(buffer), reason);
                return card::put(&self.tensor, &self.lent, buffer).map_err(refused);
            }
        };
        let nothing = || AnyBuffer::Host(HostBuffer::U8(Vec::new()));
        match self.swap(Storage::Cpu(storage)) {
            Ok(Storage::Cpu(CpuStorage::F8E8M0(_))) => {
                self.put.store(bytes, Relaxed);
                Ok(())
            }
            Ok(occupied) => {
                let ours = self.swap(occupied).ok().and_then(host);
                Err((ours.map_or_else(nothing, AnyBuffer::Host), "it is occupied".to_owned()))
            }
            // The op only fails before it has run; the memory went with it.
            Err(error) => Err((nothing(), error.to_string())),
        }
    }

    fn take(&self) -> Result<AnyBuffer, String> {
        #[cfg(feature = "cuda")]
        if self.tensor.device().is_cuda() {
            return card::take(&self.tensor, &self.lent).map(AnyBuffer::Cuda);
        }
        let storage = self.swap(Storage::Cpu(refusing())).map_err(|e| e.to_string())?;
        let dtype = plan_dtype(self.tensor.dtype()).ok_or("its dtype is not known")?;
        let bytes = self.put.swap(0, Relaxed);
        match host(storage) {
            Some(buffer) if buffer.dtype() == dtype && buffer.len() == bytes => Ok(AnyBuffer::Host(buffer)),
            None if bytes == 0 => Err("it is empty".to_owned()),
            // Somebody who kept a weight put other memory under it. The account needs as much as was given.
            _ => HostBuffer::allocate(dtype, bytes)
                .map(AnyBuffer::Host)
                .ok_or_else(|| format!("its memory was replaced, and there are no {bytes} bytes in its place")),
        }
    }

    fn swap(&self, storage: Storage) -> candle_core::Result<Storage> {
        let (had, outcome) = swap(&self.tensor, storage);
        outcome.and_then(|()| had.ok_or_else(|| Error::msg("a swap lost its memory")))
    }
}

#[cfg(feature = "cuda")]
impl Drop for Home {
    fn drop(&mut self) {
        card::close(&self.tensor, &self.lent);
    }
}

/// The storage that every kernel refuses.
const fn refusing() -> CpuStorage {
    CpuStorage::F8E8M0(Vec::new())
}

/// The same on a device.
pub(crate) fn refusing_on(device: &Device) -> candle_core::Result<Storage> {
    match device {
        Device::Cpu => Ok(Storage::Cpu(refusing())),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Storage::Cuda(card::refusing(device)?)),
        other => bail!("weights can't be managed on {:?}", other.location()),
    }
}

/// Exchanges a home's memory for this, and returns what it had; where that fails, this.
pub(crate) fn swap(home: &Tensor, storage: Storage) -> (Option<Storage>, candle_core::Result<()>) {
    let cell = Swap(Mutex::new(Some(storage)));
    let outcome = home.inplace_op1(&cell);
    (cell.0.into_inner(), outcome)
}

struct Swap(Mutex<Option<Storage>>);

impl InplaceOp1 for Swap {
    fn name(&self) -> &'static str {
        "mm-swap"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        match self.0.lock().as_mut() {
            Some(Storage::Cpu(new)) => std::mem::swap(storage, new),
            _ => bail!("memory of another device"),
        }
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        match self.0.lock().as_mut() {
            Some(Storage::Cuda(new)) => std::mem::swap(storage, new),
            _ => bail!("memory of another device"),
        }
        Ok(())
    }
}

/// The homes of a component, as the engine reaches them.
pub(crate) struct CandleHomes {
    pub(crate) rest: Vec<Arc<Home>>,
    pub(crate) groups: Vec<Vec<Arc<Home>>>,
    /// What LoRAs add to the weights of the rest.
    pub(crate) rest_merges: Vec<Merge>,
    /// The same of each group.
    pub(crate) merges: Vec<Vec<Merge>>,
    /// The rest's memory, as far as it was read while the model was built and nobody took it yet.
    pub(crate) built: Arc<Mutex<Vec<Option<Filled>>>>,
}

/// Memory that was filled while a model was built, and is counted as such.
pub(crate) struct Filled {
    pub(crate) buffer: HostBuffer,
    pub(crate) counted: Option<Reservation>,
}

impl CandleHomes {
    fn home(&self, place: Place, slab: usize) -> Option<&Home> {
        let homes = match place {
            Place::Rest => &self.rest,
            Place::Group(group) => self.groups.get(group)?,
        };
        homes.get(slab).map(Arc::as_ref)
    }
}

impl Homes<AnyBuffer> for CandleHomes {
    fn put(&self, place: Place, slab: usize, buffer: AnyBuffer) -> Result<(), (AnyBuffer, String)> {
        let Some(home) = self.home(place, slab) else {
            return Err((buffer, format!("no home for slab {slab} of {place:?}")));
        };
        let named = |(buffer, reason)| (buffer, format!("the home of slab {slab} of {place:?}: {reason}"));
        home.put(buffer).map_err(named)
    }

    fn take(&self, place: Place, slab: usize) -> Result<AnyBuffer, String> {
        let home = self.home(place, slab).ok_or_else(|| format!("no home for slab {slab} of {place:?}"))?;
        home.take().map_err(|reason| format!("the home of slab {slab} of {place:?}: {reason}"))
    }

    fn arrived(&self, place: Place) -> mm_engine::Result<()> {
        let merges = match place {
            Place::Rest => Some(&self.rest_merges),
            Place::Group(group) => self.merges.get(group),
        };
        merges.into_iter().flatten().try_for_each(Merge::run).map_err(for_engine)
    }

    fn built(&self, place: Place, slab: usize) -> Option<AnyBuffer> {
        let built = self.built.lock().get_mut(slab).filter(|_| place == Place::Rest)?.take()?;
        // From here on the device counts it.
        drop(built.counted);
        Some(AnyBuffer::Host(built.buffer))
    }

    fn forget_built(&self) {
        drop(std::mem::take(&mut *self.built.lock()));
    }
}

fn host(storage: Storage) -> Option<HostBuffer> {
    if let Storage::Cpu(storage) = storage { from_storage(storage).ok() } else { None }
}

pub(crate) fn into_storage(buffer: HostBuffer) -> CpuStorage {
    match buffer {
        HostBuffer::F64(v) => CpuStorage::F64(v),
        HostBuffer::F32(v) => CpuStorage::F32(v),
        HostBuffer::F16(v) => CpuStorage::F16(v),
        HostBuffer::Bf16(v) => CpuStorage::BF16(v),
        HostBuffer::F8e4m3(v) => CpuStorage::F8E4M3(v),
        HostBuffer::I64(v) => CpuStorage::I64(v),
        HostBuffer::I32(v) => CpuStorage::I32(v),
        HostBuffer::I16(v) => CpuStorage::I16(v),
        HostBuffer::U32(v) => CpuStorage::U32(v),
        HostBuffer::U8(v) => CpuStorage::U8(v),
        // A variant this version of the engine doesn't have.
        _ => refusing(),
    }
}

pub(crate) fn from_storage(storage: CpuStorage) -> Result<HostBuffer, CpuStorage> {
    Ok(match storage {
        CpuStorage::F64(v) => HostBuffer::F64(v),
        CpuStorage::F32(v) => HostBuffer::F32(v),
        CpuStorage::F16(v) => HostBuffer::F16(v),
        CpuStorage::BF16(v) => HostBuffer::Bf16(v),
        CpuStorage::F8E4M3(v) => HostBuffer::F8e4m3(v),
        CpuStorage::I64(v) => HostBuffer::I64(v),
        CpuStorage::I32(v) => HostBuffer::I32(v),
        CpuStorage::I16(v) => HostBuffer::I16(v),
        CpuStorage::U32(v) => HostBuffer::U32(v),
        CpuStorage::U8(v) => HostBuffer::U8(v),
        other => return Err(other),
    })
}

/// The planner's name of a candle dtype; `None` for those that can't be computed with.
pub(crate) const fn plan_dtype(dtype: DType) -> Option<mm_plan::DType> {
    Some(match dtype {
        DType::F64 => mm_plan::DType::F64,
        DType::F32 => mm_plan::DType::F32,
        DType::F16 => mm_plan::DType::F16,
        DType::BF16 => mm_plan::DType::Bf16,
        DType::F8E4M3 => mm_plan::DType::F8e4m3,
        DType::I64 => mm_plan::DType::I64,
        DType::I32 => mm_plan::DType::I32,
        DType::I16 => mm_plan::DType::I16,
        DType::U32 => mm_plan::DType::U32,
        DType::U8 => mm_plan::DType::U8,
        _ => return None,
    })
}

/// candle's name of a stored dtype; `None` for those it doesn't have.
pub(crate) const fn candle_dtype(dtype: mm_plan::DType) -> Option<DType> {
    Some(match dtype {
        mm_plan::DType::F64 => DType::F64,
        mm_plan::DType::F32 => DType::F32,
        mm_plan::DType::F16 => DType::F16,
        mm_plan::DType::Bf16 => DType::BF16,
        mm_plan::DType::F8e4m3 => DType::F8E4M3,
        mm_plan::DType::I64 => DType::I64,
        mm_plan::DType::I32 => DType::I32,
        mm_plan::DType::I16 => DType::I16,
        mm_plan::DType::U32 => DType::U32,
        mm_plan::DType::U8 => DType::U8,
        _ => return None,
    })
}
