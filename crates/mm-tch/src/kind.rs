//! What the planner, safetensors and libtorch call element types.

use mm_plan::DType;
use tch::Kind;

/// The planner's name of a variable's kind; `None` for those that can't be managed.
pub(crate) const fn dtype_of_kind(kind: Kind) -> Option<DType> {
    Some(match kind {
        Kind::Double => DType::F64,
        Kind::Float => DType::F32,
        Kind::Half => DType::F16,
        Kind::BFloat16 => DType::Bf16,
        Kind::Float8e4m3fn => DType::F8e4m3,
        Kind::Float8e5m2 => DType::F8e5m2,
        Kind::Int64 => DType::I64,
        Kind::Int => DType::I32,
        Kind::Int16 => DType::I16,
        Kind::Int8 => DType::I8,
        Kind::Uint8 | Kind::Bool => DType::U8,
        _ => return None,
    })
}

/// libtorch's name of a stored dtype; `None` for those that tch doesn't have.
pub(crate) const fn kind_of(dtype: DType) -> Option<Kind> {
    Some(match dtype {
        DType::F64 => Kind::Double,
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::Bf16 => Kind::BFloat16,
        DType::F8e4m3 => Kind::Float8e4m3fn,
        DType::F8e5m2 => Kind::Float8e5m2,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::I16 => Kind::Int16,
        DType::I8 => Kind::Int8,
        DType::U8 => Kind::Uint8,
        _ => return None,
    })
}

/// safetensors' name of a kind; `None` for those it doesn't have.
pub(crate) const fn stored_dtype(kind: Kind) -> Option<safetensors::Dtype> {
    use safetensors::Dtype as S;
    Some(match kind {
        Kind::Double => S::F64,
        Kind::Float => S::F32,
        Kind::Half => S::F16,
        Kind::BFloat16 => S::BF16,
        Kind::Float8e4m3fn => S::F8_E4M3,
        Kind::Float8e5m2 => S::F8_E5M2,
        Kind::Int64 => S::I64,
        Kind::Int => S::I32,
        Kind::Int16 => S::I16,
        Kind::Int8 => S::I8,
        Kind::Uint8 => S::U8,
        Kind::Bool => S::BOOL,
        _ => return None,
    })
}

/// Whether variables of this kind follow the compute kind.
pub(crate) const fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Float8e4m3fn | Kind::Float8e5m2)
}

/// The number that libtorch gives a kind; tch keeps its own to itself.
pub(crate) const fn code(kind: Kind) -> i32 {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::ComplexHalf => 8,
        Kind::ComplexFloat => 9,
        Kind::ComplexDouble => 10,
        Kind::Bool => 11,
        Kind::QInt8 => 12,
        Kind::QUInt8 => 13,
        Kind::QInt32 => 14,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        Kind::Float8e5m2fnuz => 25,
        Kind::Float8e4m3fnuz => 26,
    }
}
