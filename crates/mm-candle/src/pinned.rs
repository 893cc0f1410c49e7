//! Tensors from and to page-locked memory, in one copy, under the names that candle's own proposal has for them.

use candle_core::{
    Device, Error, Result, Shape, Storage, Tensor, WithDType, bail,
    cuda::{
        CudaDType, CudaStorage,
        cudarc::driver::{DeviceRepr, PinnedHostSlice},
    },
    op::BackpropOp,
};

/// Copies between page-locked memory and a card, for `Tensor`. Both only enqueue on candle's stream: the memory itself knows when
/// they are done, and waits for that when it is read, written or dropped.
///
/// Such memory comes from `device.as_cuda_device()?.cuda_stream().context().alloc_pinned_with_flags(..)`; what `alloc_pinned` has
/// is slow for the processor to read.
pub trait PinnedHost: Sized {
    /// A tensor on `device` of what this memory holds. candle's proposal makes it in ordinary memory, which takes one copy more.
    ///
    /// # Errors
    /// The device is no card, or the memory is another card's; the shape has another number of elements; there is no room.
    fn from_pinned_host<T: WithDType + CudaDType + DeviceRepr, S: Into<Shape>>(
        host: &PinnedHostSlice<T>,
        shape: S,
        device: &Device,
    ) -> Result<Self>;

    /// Copies its elements in order into this memory.
    ///
    /// # Errors
    /// It is not on a card, or the memory is another card's; its dtype is not `T`; it has another number of elements.
    fn copy_to_pinned_host<T: WithDType + CudaDType + DeviceRepr>(&self, host: &mut PinnedHostSlice<T>) -> Result<()>;
}

impl PinnedHost for Tensor {
    fn from_pinned_host<T: WithDType + CudaDType + DeviceRepr, S: Into<Shape>>(
        host: &PinnedHostSlice<T>,
        shape: S,
        device: &Device,
    ) -> Result<Self> {
        let shape = shape.into();
        let card = device.as_cuda_device()?;
        check(host, shape.elem_count(), card.cuda_stream().context().ordinal())?;
        let slice = card.cuda_stream().clone_htod(host).map_err(Error::wrap)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, card.clone()));
        Ok(Self::from_storage(storage, shape, BackpropOp::none(), false))
    }

    fn copy_to_pinned_host<T: WithDType + CudaDType + DeviceRepr>(&self, host: &mut PinnedHostSlice<T>) -> Result<()> {
        let stream = self.device().as_cuda_device()?.cuda_stream();
        check(host, self.elem_count(), stream.context().ordinal())?;
        let in_order = self.contiguous()?;
        let (storage, layout) = in_order.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("its elements are not in order on a card");
        };
        let elements = storage.as_cuda_slice::<T>()?.slice(start..end);
        stream.memcpy_dtoh(&elements, host).map_err(Error::wrap)
    }
}

fn check<T>(host: &PinnedHostSlice<T>, elements: usize, card: usize) -> Result<()> {
    if host.len() != elements {
        bail!("page-locked memory of {} elements is not a tensor of {elements}", host.len());
    }
    let its = host.context().ordinal();
    if its != card {
        bail!("page-locked memory of card {its} is used with card {card}");
    }
    Ok(())
}
