//! One tensor as a header describes it, whatever the format.

use mm_header::GgmlType;
use mm_plan::DType;
use safetensors::Dtype;

/// A tensor of a checked header.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Outermost dimension first, as PyTorch has it.
    pub(crate) shape: Box<[usize]>,
    pub(crate) stored: Stored,
    /// Bytes in the file.
    pub(crate) bytes: u64,
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Safetensors(Dtype),
    Gguf(GgmlType),
}

impl Stored {
    /// Lower-case name: `bf16`, `q4_k`.
    pub(crate) fn name(self) -> String {
        match self.plan_dtype() {
            DType::Bytes => match self {
                Self::Safetensors(dtype) => dtype.to_string().to_lowercase(),
                Self::Gguf(kind) => kind.name().to_owned(),
            },
            named => named.name().to_owned(),
        }
    }

    /// `Bytes` for what the planner has no name for: packed, scaled and quantized formats, which are never cast.
    pub(crate) fn plan_dtype(self) -> DType {
        match self {
            Self::Safetensors(dtype) => plan_dtype(dtype),
            Self::Gguf(kind) => kind.plain().map_or(DType::Bytes, plan_dtype),
        }
    }
}

impl Tensor {
    /// Element type and bytes on the device, where floating-point weights are cast to the type asked for and all others
    /// stay as they are.
    pub(crate) fn on_device(&self, asked: Option<DType>) -> (DType, u64) {
        let stored = self.stored.plan_dtype();
        match asked {
            Some(asked) if is_float(stored) => (asked, (self.bytes / stored.size()).saturating_mul(asked.size())),
            _ => (stored, self.bytes),
        }
    }
}

/// Whether weights of this type can be cast to another.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::Bf16 | DType::F8e4m3 | DType::F8e5m2)
}

fn plan_dtype(stored: Dtype) -> DType {
    match stored {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F8_E4M3 => DType::F8e4m3,
        Dtype::F8_E5M2 => DType::F8e5m2,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 | Dtype::BOOL => DType::U8,
        _ => DType::Bytes,
    }
}
