//! Tensors laid side by side, as the engine packs them.

use std::collections::BTreeMap;

use mm_plan::{DType, Group, Slab};

use crate::tensor::Tensor;

/// Each tensor in a slab starts at a multiple of this; as the engine packs.
const ALIGN: u64 = 256;

/// One slab per element type on the device. Sums saturate, as sizes are only claims of a header about a file that may be
/// sparse.
#[derive(Default)]
pub(crate) struct Packed {
    slabs: BTreeMap<DType, u64>,
    /// Bytes on the device, without alignment.
    pub(crate) device: u64,
    /// Bytes in the files.
    pub(crate) stored: u64,
}

impl Packed {
    /// Weights computed in `dtype`; `None`: as they are stored.
    pub(crate) fn of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, dtype: Option<DType>) -> Self {
        let mut packed = Self::default();
        for tensor in tensors {
            let (on_device, bytes) = tensor.on_device(dtype);
            let slab = packed.slabs.entry(on_device).or_default();
            *slab = slab.saturating_add(bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX));
            packed.device = packed.device.saturating_add(bytes);
            packed.stored = packed.stored.saturating_add(tensor.bytes);
        }
        packed
    }

    pub(crate) fn into_group(self) -> Group {
        let slabs = self.slabs.into_iter().map(|(dtype, bytes)| Slab { dtype, bytes }).collect();
        Group { slabs, host_bytes: self.stored, compute_ns: None }
    }
}
