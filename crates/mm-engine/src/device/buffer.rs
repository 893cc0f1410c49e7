//! Host memory typed as tensor libraries want to own it.

use super::pieces;
use bytemuck::allocation::try_zeroed_vec;
use half::{bf16, f16};
use mm_plan::DType;

/// Host memory as a tensor library owns it: what a [`HostDevice`](crate::HostDevice) allocates and copies into.
pub trait HostMemory: Send + Sized + 'static {
    /// Whether the library computes with this element type.
    fn holds(dtype: DType) -> bool;

    /// Allocates `bytes` of an element type that it holds, a multiple of its size; `None` where memory is short. What is in
    /// it does not matter.
    fn allocate(dtype: DType, bytes: u64) -> Option<Self>;

    /// Length in bytes, as allocated.
    fn len(&self) -> u64;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its memory. Nobody else looks at it meanwhile.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// A vector of one of the element types that tensor libraries hold on the CPU.
#[derive(Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum HostBuffer {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F8e4m3(Vec<float8::F8E4M3>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    U8(Vec<u8>),
}

macro_rules! each {
    ($self:expr, $v:ident => $body:expr) => {
        match $self {
            HostBuffer::F64($v) => $body,
            HostBuffer::F32($v) => $body,
            HostBuffer::F16($v) => $body,
            HostBuffer::Bf16($v) => $body,
            HostBuffer::F8e4m3($v) => $body,
            HostBuffer::I64($v) => $body,
            HostBuffer::I32($v) => $body,
            HostBuffer::I16($v) => $body,
            HostBuffer::U32($v) => $body,
            HostBuffer::U8($v) => $body,
        }
    };
}

impl HostBuffer {
    /// An empty vector of this element type, of `U32` for `Bytes`; `None` for types no tensor library computes with.
    pub fn empty(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::F64 => Self::F64(Vec::new()),
            DType::F32 => Self::F32(Vec::new()),
            DType::F16 => Self::F16(Vec::new()),
            DType::Bf16 => Self::Bf16(Vec::new()),
            DType::F8e4m3 => Self::F8e4m3(Vec::new()),
            DType::I64 => Self::I64(Vec::new()),
            DType::I32 => Self::I32(Vec::new()),
            DType::I16 => Self::I16(Vec::new()),
            DType::U32 => Self::U32(Vec::new()),
            DType::U8 => Self::U8(Vec::new()),
            // Of blocks of quantized elements, which begin with a number of two or four bytes: at such an address.
            DType::Bytes => Self::U32(Vec::new()),
            _ => return None,
        })
    }

    /// Element type.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F64(_) => DType::F64,
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
            Self::F8e4m3(_) => DType::F8e4m3,
            Self::I64(_) => DType::I64,
            Self::I32(_) => DType::I32,
            Self::I16(_) => DType::I16,
            Self::U32(_) => DType::U32,
            Self::U8(_) => DType::U8,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        each!(self, v => v.len() as u64) * self.dtype().size()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for `bytes` in all, no more; `false` where memory is short.
    #[must_use]
    pub fn reserve(&mut self, bytes: u64) -> bool {
        let Ok(count) = usize::try_from(bytes / self.dtype().size()) else { return false };
        each!(self, v => v.try_reserve_exact(count.saturating_sub(v.len())).is_ok())
    }

    /// Grows to `bytes`, zeros at the end; `false`, and nothing changed, where memory is short.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let Ok(count) = usize::try_from(bytes / self.dtype().size()) else { return false };
        each!(self, v => {
            if v.try_reserve(count.saturating_sub(v.len())).is_err() {
                return false;
            }
            if count > v.len() {
                v.resize(count, Default::default());
            }
        });
        true
    }

    /// Ends after `bytes`, and gives back what it has beyond; what is shorter stays as long as it is.
    pub fn truncate(&mut self, bytes: u64) {
        let count = usize::try_from(bytes / self.dtype().size()).unwrap_or(usize::MAX);
        each!(self, v => {
            v.truncate(count);
            v.shrink_to_fit();
        });
    }

    /// Its memory as bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, v => bytemuck::cast_slice_mut(v))
    }
}

impl HostMemory for HostBuffer {
    fn holds(dtype: DType) -> bool {
        Self::empty(dtype).is_some()
    }

    fn allocate(dtype: DType, bytes: u64) -> Option<Self> {
        let mut buffer = Self::empty(dtype)?;
        // Of the vector's elements: for bytes those are words.
        let element = buffer.dtype().size();
        let count = usize::try_from(bytes / element).ok()?;
        let room = usize::try_from(pieces::room(bytes) / element).ok()?;
        each!(&mut buffer, v => {
            // Zeros of the system's: nothing is written yet, and what is cut off never is.
            *v = try_zeroed_vec(room).or_else(|()| try_zeroed_vec(count)).ok()?;
            v.truncate(count);
        });
        Some(buffer)
    }

    fn len(&self) -> u64 {
        Self::len(self)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        Self::bytes_mut(self)
    }
}
