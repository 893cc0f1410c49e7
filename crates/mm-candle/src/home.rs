//! Homes: flat tensors whose memory is swapped in and out under the weights that view them.
//!
//! A weight is a view (`narrow` + `reshape`) into its home. Swapping the home's storage swaps the
//! memory under every view and clone of it. A home without memory holds a storage that candle's
//! kernels refuse by its dtype: an error, never undefined behaviour.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor, bail, op::BackpropOp};
use mm_engine::{Homes, HostBuffer, Place};
use parking_lot::Mutex;

/// A flat tensor of `elements` that is empty yet, with memory reserved for `room` bytes. Its shape only
/// bounds what may view it: the storage is as long as what was put in.
pub(crate) fn empty_home(dtype: DType, elements: usize, room: u64) -> candle_core::Result<Tensor> {
    let Some(mut buffer) = plan_dtype(dtype).and_then(HostBuffer::empty) else {
        bail!("weights of dtype {dtype:?} can't be managed");
    };
    if !buffer.reserve(room) {
        bail!("no memory for {room} bytes of weights");
    }
    Ok(Tensor::from_storage(Storage::Cpu(into_storage(buffer)), elements, BackpropOp::none(), false))
}

/// Gives a home this memory and returns what it had.
pub(crate) fn swap(home: &Tensor, storage: CpuStorage) -> candle_core::Result<CpuStorage> {
    let cell = Swap(Mutex::new(Some(storage)));
    home.inplace_op1(&cell)?;
    match cell.0.into_inner() {
        Some(storage) => Ok(storage),
        None => bail!("a swap lost its storage"),
    }
}

/// The storage that every kernel refuses.
pub(crate) const fn refusing() -> CpuStorage {
    CpuStorage::F8E8M0(Vec::new())
}

/// Takes a home's memory away.
pub(crate) fn evict(home: &Tensor) -> candle_core::Result<CpuStorage> {
    swap(home, refusing())
}

struct Swap(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for Swap {
    fn name(&self) -> &'static str {
        "mm-swap"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let mut cell = self.0.lock();
        if let Some(new) = cell.take() {
            *cell = Some(std::mem::replace(storage, new));
        }
        Ok(())
    }
}

/// The homes of a component, as the engine reaches them.
pub(crate) struct CandleHomes {
    pub(crate) rest: Vec<Tensor>,
    pub(crate) groups: Vec<Vec<Tensor>>,
}

impl CandleHomes {
    fn home(&self, place: Place, slab: usize) -> Option<&Tensor> {
        match place {
            Place::Rest => self.rest.get(slab),
            Place::Group(group) => self.groups.get(group)?.get(slab),
        }
    }
}

impl Homes<HostBuffer> for CandleHomes {
    fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        let Some(home) = self.home(place, slab) else {
            return Err((buffer, format!("no home for slab {slab} of {place:?}")));
        };
        match swap(home, into_storage(buffer)) {
            Ok(CpuStorage::F8E8M0(_)) => Ok(()),
            Ok(occupied) => {
                let reason = format!("the home of slab {slab} of {place:?} is occupied");
                let ours = swap(home, occupied).ok().and_then(|s| from_storage(s).ok());
                Err((ours.unwrap_or(HostBuffer::U8(Vec::new())), reason))
            }
            // The op only fails before it has run; the memory went with it.
            Err(error) => Err((HostBuffer::U8(Vec::new()), error.to_string())),
        }
    }

    fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
        let home = self.home(place, slab).ok_or_else(|| format!("no home for slab {slab} of {place:?}"))?;
        from_storage(evict(home).map_err(|e| e.to_string())?)
            .map_err(|_| format!("the home of slab {slab} of {place:?} is empty"))
    }
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
