//! Memory of a card under tensors; the only `unsafe` of this crate.
//!
//! The engine owns what it lends to a home. The tensor gets an alias of it, which is never dropped, as candle would free
//! the memory: it is swapped out and forgotten before the engine's memory goes anywhere else.
#![allow(unsafe_code)]

use crate::home::{plan_dtype, swap};
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Error, Storage, Tensor,
    backend::BackendDevice,
    bail,
    cuda::{
        CudaStorageSlice,
        cudarc::driver::{DevicePtr, DeviceRepr, result},
    },
    quantized::{GgmlDType, QStorage, cuda::QCudaStorage},
};
use mm_engine::{CudaBuffer, Slab};
use parking_lot::Mutex;
use std::mem;

/// What is in a home, and what was in it before.
pub(crate) struct Lent {
    buffer: CudaBuffer,
    refusing: CudaStorage,
}

/// A storage that every kernel refuses by its dtype. It has a byte of its own, as nobody knows what kernels do with none.
pub(crate) fn refusing(device: &CudaDevice) -> candle_core::Result<CudaStorage> {
    Ok(CudaStorage { slice: CudaStorageSlice::F8E8M0(device.alloc_zeros(1)?), device: device.clone() })
}

/// candle's own memory.
pub(crate) fn zeros(elements: usize, dtype: DType, device: &CudaDevice) -> candle_core::Result<CudaStorage> {
    if plan_dtype(dtype).is_none() {
        bail!("weights of dtype {dtype:?} can't be managed");
    }
    device.zeros_impl(&elements.into(), dtype)
}

/// Reads the tensor that `slab` got last into a home whose memory is candle's own, and makes that larger where it is too small.
pub(crate) fn append(
    home: &Tensor,
    device: &CudaDevice,
    slab: &Slab,
    start: usize,
    room: u64,
) -> candle_core::Result<()> {
    let dtype = home.dtype();
    let elements = |bytes: u64| usize::try_from(bytes / dtype.size_in_bytes() as u64).map_err(Error::msg);
    let (end, there) = (elements(slab.bytes())?, length(home)?);
    if end > there {
        // Twice as much where names told too little, so that this is rare.
        let larger = zeros(elements(room)?.max(end).max(there.saturating_mul(2)), dtype, device)?;
        let read = (start > 0).then(|| home.narrow(0, 0, start)?.copy()).transpose()?;
        // What it had, candle's own, is freed.
        swap(home, Storage::Cuda(larger)).1?;
        if let Some(read) = read {
            home.slice_set(&read, 0, 0)?;
        }
    }
    let mut bytes = vec![0; (end - start) * dtype.size_in_bytes()];
    slab.read_last(&mut bytes).map_err(crate::error::through_candle)?;
    home.slice_set(&Tensor::from_raw_buffer(&bytes, dtype, &[end - start], &Device::Cuda(device.clone()))?, 0, start)
}

/// Puts memory of the engine's into a home.
pub(crate) fn put(home: &Tensor, lent: &Mutex<Option<Lent>>, buffer: CudaBuffer) -> Result<(), (CudaBuffer, String)> {
    let Device::Cuda(device) = home.device() else {
        return Err((buffer, "it is not on a card".to_owned()));
    };
    let mut lent = lent.lock();
    if lent.is_some() {
        return Err((buffer, "it is occupied".to_owned()));
    }
    let Some(alias) = alias(&buffer, device) else {
        let reason = format!("candle has no tensors of {} in {} bytes", buffer.dtype(), buffer.len());
        return Err((buffer, reason));
    };
    match swap(home, Storage::Cuda(alias)) {
        (Some(Storage::Cuda(refusing)), Ok(())) => {
            *lent = Some(Lent { buffer, refusing });
            Ok(())
        }
        (alias, outcome) => {
            alias.into_iter().for_each(forget);
            Err((buffer, outcome.err().map_or_else(|| "it had other memory".to_owned(), |error| error.to_string())))
        }
    }
}

/// Takes it away again.
pub(crate) fn take(home: &Tensor, lent: &Mutex<Option<Lent>>) -> Result<CudaBuffer, String> {
    let mut lent = lent.lock();
    let Lent { buffer, refusing } = lent.take().ok_or_else(|| "it is empty".to_owned())?;
    match swap(home, Storage::Cuda(refusing)) {
        (Some(alias), Ok(())) => {
            forget(alias);
            Ok(buffer)
        }
        (Some(Storage::Cuda(refusing)), Err(error)) => {
            *lent = Some(Lent { buffer, refusing });
            Err(error.to_string())
        }
        (_, outcome) => {
            // The tensor has the memory for good.
            mem::forget(buffer);
            Err(outcome.err().map_or_else(|| "a swap lost its memory".to_owned(), |error| error.to_string()))
        }
    }
}

/// The home goes, and its tensor may live on: what is still lent is taken away, or never freed.
pub(crate) fn close(home: &Tensor, lent: &Mutex<Option<Lent>>) {
    if lent.lock().is_some() {
        match take(home, lent) {
            Ok(buffer) => drop(buffer),
            Err(_) => mem::forget(lent.lock().take()),
        }
    }
}

/// How many elements there is memory for; none where it refuses.
fn length(home: &Tensor) -> candle_core::Result<usize> {
    let (storage, _) = home.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("it is not on a card") };
    Ok(match &storage.slice {
        CudaStorageSlice::F64(s) => s.len(),
        CudaStorageSlice::F32(s) => s.len(),
        CudaStorageSlice::F16(s) => s.len(),
        CudaStorageSlice::BF16(s) => s.len(),
        CudaStorageSlice::F8E4M3(s) => s.len(),
        CudaStorageSlice::I64(s) => s.len(),
        CudaStorageSlice::I32(s) => s.len(),
        CudaStorageSlice::I16(s) => s.len(),
        CudaStorageSlice::U32(s) => s.len(),
        CudaStorageSlice::U8(s) => s.len(),
        _ => 0,
    })
}

/// The same memory as a storage of candle's, which must be forgotten, not dropped; `None` where candle has no such tensors.
fn alias(buffer: &CudaBuffer, device: &CudaDevice) -> Option<CudaStorage> {
    use mm_plan::DType;
    let size = buffer.dtype().size();
    let length = usize::try_from(buffer.len() / size).ok()?;
    fn slice<T: DeviceRepr>(
        buffer: &CudaBuffer,
        length: usize,
        device: &CudaDevice,
    ) -> candle_core::cuda::cudarc::driver::CudaSlice<T> {
        // SAFETY: (1) the buffer is one allocation of at least `length` elements of `T` (the caller divided its bytes by their
        // size), aligned to 256 bytes, of the context of candle's stream, on which the engine was made. (2) Every
        // bit pattern is a `T`: these are numbers. (3) It is never freed through this slice: whoever gets it forgets it
        // (`forget`, which leaks), also where a swap fails; while it is in a tensor the buffer lies in `Lent`, and `take` and
        // `close` part the two before the buffer is given on. (4) Reads of it are ordered before and after the
        // engine's copies by events on this very stream.
        unsafe { device.cuda_stream().upgrade_device_ptr(buffer.address(), length) }
    }
    let slice = match buffer.dtype() {
        DType::F64 => CudaStorageSlice::F64(slice(buffer, length, device)),
        DType::F32 => CudaStorageSlice::F32(slice(buffer, length, device)),
        DType::F16 => CudaStorageSlice::F16(slice(buffer, length, device)),
        DType::Bf16 => CudaStorageSlice::BF16(slice(buffer, length, device)),
        DType::F8e4m3 => CudaStorageSlice::F8E4M3(slice(buffer, length, device)),
        DType::I64 => CudaStorageSlice::I64(slice(buffer, length, device)),
        DType::I32 => CudaStorageSlice::I32(slice(buffer, length, device)),
        DType::I16 => CudaStorageSlice::I16(slice(buffer, length, device)),
        DType::U32 => CudaStorageSlice::U32(slice(buffer, length, device)),
        // Of quantized weights: as words, of which a slab has a whole number.
        DType::Bytes => CudaStorageSlice::U32(slice(buffer, length / size_of::<u32>(), device)),
        DType::U8 => CudaStorageSlice::U8(slice(buffer, length, device)),
        _ => return None,
    };
    Some(CudaStorage { slice, device: device.clone() })
}

/// A quantized weight of that many elements in memory of candle's own, copied from these words of a home within the card, which takes
/// a permille of what computing with it does. It is freed on candle's stream, after what was computed with it there.
pub(crate) fn quantized(
    words: &Tensor,
    device: &CudaDevice,
    kind: GgmlDType,
    elements: usize,
    bytes: usize,
) -> candle_core::Result<QStorage> {
    let (storage, layout) = words.storage_and_layout();
    let Storage::Cuda(CudaStorage { slice: CudaStorageSlice::U32(from), .. }) = &*storage else {
        bail!("a quantized weight is not on the card; compute with it inside run(..), or by a lease")
    };
    let start = layout.start_offset();
    let from = from.try_slice(start..start + words.elem_count());
    let from = from.ok_or_else(|| Error::msg("a quantized weight is longer than its home"))?;
    let into = QCudaStorage::zeros(device, elements, kind)?;
    if bytes > into.storage_size_in_bytes() || bytes > words.elem_count() * size_of::<u32>() {
        bail!("{bytes} bytes for a quantized weight of {elements} elements");
    }
    let stream = device.cuda_stream();
    {
        let (to, _written) = into.device_ptr_with_guard(&stream)?;
        let (from, _read) = from.device_ptr(&stream);
        // SAFETY: (1) both are memory of this stream's context, of at least `bytes` bytes: checked above. (2) They don't overlap:
        // `into` was allocated just now. (3) The copy is ordered on candle's stream, like all that writes or frees either: the home's
        // memory is the engine's, which waits for an event on that stream before it writes there; `into` is freed on it.
        unsafe { result::memcpy_dtod_async(to as u64, from, bytes, stream.cu_stream()) }.map_err(Error::wrap)?;
    }
    Ok(QStorage::Cuda(into))
}

/// Ends an alias without freeing what it stands for.
fn forget(alias: Storage) {
    let Storage::Cuda(alias) = alias else { return };
    match alias.slice {
        CudaStorageSlice::F64(s) => drop(s.leak()),
        CudaStorageSlice::F32(s) => drop(s.leak()),
        CudaStorageSlice::F16(s) => drop(s.leak()),
        CudaStorageSlice::BF16(s) => drop(s.leak()),
        CudaStorageSlice::F8E4M3(s) => drop(s.leak()),
        CudaStorageSlice::I64(s) => drop(s.leak()),
        CudaStorageSlice::I32(s) => drop(s.leak()),
        CudaStorageSlice::I16(s) => drop(s.leak()),
        CudaStorageSlice::U32(s) => drop(s.leak()),
        CudaStorageSlice::U8(s) => drop(s.leak()),
        // Not an alias: a refusing storage is candle's own.
        other => drop(other),
    }
}

/// Lets candle compute on its stream without events of its own, which it records for each use of each tensor once a context has a
/// second stream: the lane of copies is the only one, and the engine orders it.
pub(crate) fn order_by_engine(device: &CudaDevice) {
    // SAFETY: what candle allocates is used on candle's one stream only. What the lane of copies writes is memory of the
    // engine's, which waits for an event on that stream before it writes, and has that stream wait for one after.
    unsafe { device.disable_event_tracking() }
}
