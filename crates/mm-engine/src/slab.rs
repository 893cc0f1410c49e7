//! Host description of a slab: which stored tensors it is filled from, and where each lies in it.

use crate::{EngineError, Result, cast::cast};
use mm_cache::TensorSlice;
use mm_plan::DType;

/// Each tensor in a slab starts at a multiple of this, bytes.
pub const ALIGN: u64 = 256;

/// `bytes` rounded up to [`ALIGN`]; saturating.
pub const fn align(bytes: u64) -> u64 {
    bytes.div_ceil(ALIGN).saturating_mul(ALIGN)
}

/// One tensor's place in a slab.
#[derive(Clone)]
struct Part {
    offset: u64,
    source: TensorSlice,
}

/// A group's weights of one dtype, packed. Filling it reads the stored tensors and casts them.
#[derive(Clone)]
pub struct Slab {
    dtype: DType,
    bytes: u64,
    parts: Vec<Part>,
}

impl Slab {
    /// An empty slab of one device dtype.
    pub const fn new(dtype: DType) -> Self {
        Self { dtype, bytes: 0, parts: Vec::new() }
    }

    /// Appends a tensor; returns its offset in bytes.
    pub fn push(&mut self, source: TensorSlice) -> u64 {
        let offset = self.bytes;
        let elements: u64 = source.shape().iter().map(|d| *d as u64).product();
        self.bytes = align(offset + elements * self.dtype.size());
        self.parts.push(Part { offset, source });
        offset
    }

    /// Element type on the device.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes on the device, a multiple of [`ALIGN`].
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes in the stored form.
    pub fn host_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.source.bytes().len() as u64).sum()
    }

    /// Fills the front of `into` with this slab, casting where the stored dtype differs. Padding
    /// between tensors is left as it is. `into` may be longer than the slab: a slot is.
    ///
    /// # Errors
    /// `Source` names the tensor that can't be read or cast.
    pub fn fill(&self, into: &mut [u8]) -> Result<()> {
        for part in &self.parts {
            self.fill_part(part, into)?;
        }
        Ok(())
    }

    /// Fills only the tensor last pushed.
    ///
    /// # Errors
    /// As [`Slab::fill`].
    pub fn fill_last(&self, into: &mut [u8]) -> Result<()> {
        self.parts.last().map_or(Ok(()), |part| self.fill_part(part, into))
    }

    fn fill_part(&self, Part { offset, source }: &Part, into: &mut [u8]) -> Result<()> {
        let fail = |reason: String| EngineError::Source {
            file: source.file().to_path_buf(),
            tensor: source.name().to_owned(),
            range: source.file_range(),
            reason,
        };
        let from = dtype_of(source.dtype()).ok_or_else(|| fail(format!("unknown dtype {:?}", source.dtype())))?;
        source.check().map_err(|e| fail(e.to_string()))?;
        let stored = source.bytes();
        let start = usize::try_from(*offset).map_err(|e| fail(e.to_string()))?;
        let length = stored.len() / from.size() as usize * self.dtype.size() as usize;
        let place = start
            .checked_add(length)
            .and_then(|end| into.get_mut(start..end))
            .ok_or_else(|| EngineError::Internal(format!("slab buffer too short for {:?}", source.name())))?;
        cast(from, stored, self.dtype, place).map_err(fail)
    }
}

/// The planner's name of a stored dtype; `None` for those without one (sub-byte formats).
pub fn dtype_of(stored: safetensors::Dtype) -> Option<DType> {
    use safetensors::Dtype as S;
    Some(match stored {
        S::F64 => DType::F64,
        S::F32 => DType::F32,
        S::F16 => DType::F16,
        S::BF16 => DType::Bf16,
        S::F8_E4M3 => DType::F8e4m3,
        S::F8_E5M2 => DType::F8e5m2,
        S::I64 => DType::I64,
        S::I32 => DType::I32,
        S::I16 => DType::I16,
        S::I8 => DType::I8,
        S::U64 => DType::U64,
        S::U32 => DType::U32,
        S::U16 => DType::U16,
        S::U8 | S::BOOL => DType::U8,
        _ => return None,
    })
}
