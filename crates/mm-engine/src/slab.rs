//! Host description of a slab: which stored tensors it is filled from, and where each lies in it.

use crate::{
    EngineError, Result,
    cast::{can_cast, cast},
};
use mm_cache::{TensorSlice, WeightsError};
use mm_plan::DType;
use std::cell::RefCell;

/// Each tensor in a slab starts at a multiple of this, bytes.
pub const ALIGN: u64 = 256;

/// `bytes` rounded up to [`ALIGN`]; saturating.
pub const fn align(bytes: u64) -> u64 {
    bytes.div_ceil(ALIGN).saturating_mul(ALIGN)
}

/// What is cast is read in pieces of this many bytes, which stay in a core's own cache until they are cast.
const PIECE: usize = 256 << 10;
/// The same where the disk is read each time, whose short reads are slow.
const PIECE_OF_DISK: usize = 4 << 20;

thread_local! {
    /// The piece under way; as `u64` so that every element type is aligned in it.
    static BOUNCE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// One tensor's place in a slab.
#[derive(Clone)]
struct Part {
    offset: u64,
    source: TensorSlice,
}

/// A group's weights of one dtype, packed. Filling it reads the stored tensors and casts them; nothing is mapped.
#[derive(Clone)]
pub struct Slab {
    dtype: DType,
    bytes: u64,
    parts: Vec<Part>,
    /// Bytes in the stored form of what is not there.
    #[cfg(test)]
    hollow: u64,
    around_cache: bool,
}

impl Slab {
    /// An empty slab of one device dtype. One of `Bytes` takes tensors of one-byte elements as they are: quantized ones.
    pub const fn new(dtype: DType) -> Self {
        Self {
            dtype,
            bytes: 0,
            parts: Vec::new(),
            around_cache: false,
            #[cfg(test)]
            hollow: 0,
        }
    }

    /// A slab of any size with nothing in it, for tests that copy nothing.
    #[cfg(test)]
    pub(crate) fn hollow(dtype: DType, bytes: u64, host_bytes: u64) -> Self {
        Self { dtype, bytes, parts: Vec::new(), around_cache: false, hollow: host_bytes }
    }

    /// The same, read around the page cache: for weights that would not fit there.
    #[must_use]
    pub(crate) fn around_cache(&self) -> Self {
        Self { around_cache: true, ..self.clone() }
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
        #[cfg(test)]
        if self.parts.is_empty() {
            return self.hollow;
        }
        self.parts.iter().map(|p| p.source.byte_len()).sum()
    }

    /// What it is filled from, in order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorSlice> {
        self.parts.iter().map(|part| &part.source)
    }

    /// Fills the front of `into` with this slab, casting where the stored dtype differs. Padding
    /// between tensors is left as it is. `into` may be longer than the slab: a slot is.
    ///
    /// # Errors
    /// `Source` names the tensor that can't be read or cast, also where its file was truncated or written in place
    /// since it was opened.
    pub fn fill(&self, into: &mut [u8]) -> Result<()> {
        for part in &self.parts {
            self.fill_part(part, 0, Self::whole(part, self.dtype, into)?)?;
        }
        Ok(())
    }

    /// Fills only the tensor last pushed.
    ///
    /// # Errors
    /// As [`Slab::fill`].
    pub fn fill_last(&self, into: &mut [u8]) -> Result<()> {
        self.parts.last().map_or(Ok(()), |part| self.fill_part(part, 0, Self::whole(part, self.dtype, into)?))
    }

    /// Reads the tensor last pushed alone, to the front of `into`.
    ///
    /// # Errors
    /// As [`Slab::fill`].
    pub fn read_last(&self, into: &mut [u8]) -> Result<()> {
        let Some(part) = self.parts.last() else { return Ok(()) };
        self.fill_part(part, 0, Self::whole(&Part { offset: 0, source: part.source.clone() }, self.dtype, into)?)
    }

    /// Fills `into` with what lies at `start` (a multiple of [`ALIGN`]) of this slab; a slab larger than a buffer goes
    /// through it in pieces.
    ///
    /// # Errors
    /// As [`Slab::fill`].
    #[cfg(feature = "cuda")]
    pub(crate) fn fill_piece(&self, start: u64, into: &mut [u8]) -> Result<()> {
        let end = start.saturating_add(into.len() as u64);
        for part in &self.parts {
            let bytes = part.source.shape().iter().map(|d| *d as u64).product::<u64>() * self.dtype.size();
            let (from, to) = (part.offset.max(start), (part.offset + bytes).min(end));
            if from < to {
                // Both lie within `into`, whose length is a `usize`.
                let place = &mut into[(from - start) as usize..(to - start) as usize];
                self.fill_part(part, (from - part.offset) / self.dtype.size(), place)?;
            }
        }
        Ok(())
    }

    /// Where a tensor lies in `into`, which begins where the slab does.
    fn whole<'a>(Part { offset, source }: &Part, dtype: DType, into: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let bytes = source.shape().iter().try_fold(dtype.size(), |bytes, dim| bytes.checked_mul(*dim as u64));
        let range = bytes
            .and_then(|bytes| Some(usize::try_from(*offset).ok()?..usize::try_from(offset.checked_add(bytes)?).ok()?));
        range
            .and_then(|range| into.get_mut(range))
            .ok_or_else(|| EngineError::Internal(format!("slab buffer too short for {:?}", source.name())))
    }

    fn read(&self, source: &TensorSlice, offset: u64, into: &mut [u8]) -> Result<(), WeightsError> {
        if self.around_cache { source.read_around_cache(offset, into) } else { source.read_into(offset, into) }
    }

    /// Fills `place` with a tensor's elements from the `first` on, as many as it has room for.
    fn fill_part(&self, Part { source, .. }: &Part, first: u64, place: &mut [u8]) -> Result<()> {
        let fail = |reason: String| EngineError::Source {
            file: source.file().to_path_buf(),
            tensor: source.name().to_owned(),
            range: source.file_range(),
            reason,
        };
        let from = dtype_of(source.dtype()).ok_or_else(|| fail(format!("unknown dtype {:?}", source.dtype())))?;
        // Taken as they are, whatever they stand for.
        let from = if self.dtype == DType::Bytes && from.size() == 1 { DType::Bytes } else { from };
        let first = first * from.size();
        // Reading asks afterwards whether the file has changed; asking before spares reading what is lost already.
        source.check().map_err(|e| fail(e.reason()))?;
        if from == self.dtype {
            return self.read(source, first, place).map_err(|e| fail(e.reason()));
        }
        if !can_cast(from, self.dtype) {
            return Err(fail(format!("no cast from {from} to {}", self.dtype)));
        }
        BOUNCE.with_borrow_mut(|bounce| {
            let size = if self.around_cache { PIECE_OF_DISK } else { PIECE };
            bounce.resize(size / size_of::<u64>(), 0);
            let bounce: &mut [u8] = bytemuck::cast_slice_mut(bounce);
            let (stored, wide) = (from.size() as usize, self.dtype.size() as usize);
            for (index, place) in place.chunks_mut(size / stored * wide).enumerate() {
                let piece = &mut bounce[..place.len() / wide * stored];
                self.read(source, first + (index * size) as u64, piece).map_err(|e| fail(e.reason()))?;
                cast(from, piece, self.dtype, place).map_err(&fail)?;
            }
            Ok(())
        })
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
