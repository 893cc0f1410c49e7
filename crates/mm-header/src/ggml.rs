//! The tensor types of GGUF files: how many elements a block holds, and in how many bytes.
//!
//! Numbers and sizes as in `ggml.h` and `ggml-common.h` of ggml. Types that were removed there (the repacked `Q4_0_4_4`
//! and its like) are read still: files with them are around.

use safetensors::Dtype;

/// A type of tensors in GGUF files: f32, or blocks of quantized elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType(&'static Row);

#[derive(Debug, PartialEq, Eq)]
struct Row {
    number: u32,
    name: &'static str,
    /// Elements in a block.
    elements: u64,
    /// Bytes of a block.
    bytes: u64,
}

const fn row(number: u32, name: &'static str, elements: u64, bytes: u64) -> Row {
    Row { number, name, elements, bytes }
}

static TYPES: &[Row] = &[
    row(0, "f32", 1, 4),
    row(1, "f16", 1, 2),
    row(2, "q4_0", 32, 18),
    row(3, "q4_1", 32, 20),
    row(6, "q5_0", 32, 22),
    row(7, "q5_1", 32, 24),
    row(8, "q8_0", 32, 34),
    row(9, "q8_1", 32, 36),
    row(10, "q2_k", 256, 84),
    row(11, "q3_k", 256, 110),
    row(12, "q4_k", 256, 144),
    row(13, "q5_k", 256, 176),
    row(14, "q6_k", 256, 210),
    row(15, "q8_k", 256, 292),
    row(16, "iq2_xxs", 256, 66),
    row(17, "iq2_xs", 256, 74),
    row(18, "iq3_xxs", 256, 98),
    row(19, "iq1_s", 256, 50),
    row(20, "iq4_nl", 32, 18),
    row(21, "iq3_s", 256, 110),
    row(22, "iq2_s", 256, 82),
    row(23, "iq4_xs", 256, 136),
    row(24, "i8", 1, 1),
    row(25, "i16", 1, 2),
    row(26, "i32", 1, 4),
    row(27, "i64", 1, 8),
    row(28, "f64", 1, 8),
    row(29, "iq1_m", 256, 56),
    row(30, "bf16", 1, 2),
    row(31, "q4_0_4_4", 32, 18),
    row(32, "q4_0_4_8", 32, 18),
    row(33, "q4_0_8_8", 32, 18),
    row(34, "tq1_0", 256, 54),
    row(35, "tq2_0", 256, 66),
    row(36, "iq4_nl_4_4", 32, 18),
    row(37, "iq4_nl_4_8", 32, 18),
    row(38, "iq4_nl_8_8", 32, 18),
    row(39, "mxfp4", 32, 17),
    row(40, "nvfp4", 64, 36),
    row(41, "q1_0", 128, 18),
    row(42, "q2_0", 64, 18),
];

impl GgmlType {
    /// The type of this number; `None`: ggml has got a new one since, or the file is damaged.
    pub fn of_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.number == number).map(Self)
    }

    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Bytes of a tensor whose rows have `row` elements each. `None`: overflow, or a row that is no whole number of blocks.
    pub fn bytes(self, row: u64, rows: u64) -> Option<u64> {
        if !row.is_multiple_of(self.0.elements) {
            return None;
        }
        (row / self.0.elements).checked_mul(self.0.bytes)?.checked_mul(rows)
    }

    /// The number of it in files.
    pub const fn number(self) -> u32 {
        self.0.number
    }

    /// What it is called where its elements lie one by one; `None`: they are quantized.
    pub fn plain(self) -> Option<Dtype> {
        Some(match self.0.name {
            "f64" => Dtype::F64,
            "f32" => Dtype::F32,
            "f16" => Dtype::F16,
            "bf16" => Dtype::BF16,
            "i64" => Dtype::I64,
            "i32" => Dtype::I32,
            "i16" => Dtype::I16,
            "i8" => Dtype::I8,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the fields of the block structs in `ggml-common.h`: scales and minima as f16, quants in bits per element.
    #[test]
    fn block_sizes_follow_from_their_fields() {
        let bytes = |number, elements| GgmlType::of_number(number).and_then(|kind| kind.bytes(elements, 1));
        let half = 2;
        assert_eq!(bytes(2, 32), Some(half + 32 / 2), "q4_0");
        assert_eq!(bytes(3, 32), Some(2 * half + 32 / 2), "q4_1");
        assert_eq!(bytes(6, 32), Some(half + 4 + 32 / 2), "q5_0");
        assert_eq!(bytes(7, 32), Some(2 * half + 4 + 32 / 2), "q5_1");
        assert_eq!(bytes(8, 32), Some(half + 32), "q8_0");
        assert_eq!(bytes(9, 32), Some(2 * half + 32), "q8_1");
        assert_eq!(bytes(10, 256), Some(2 * half + 256 / 16 + 256 / 4), "q2_k");
        assert_eq!(bytes(11, 256), Some(half + 256 / 4 + 256 / 8 + 12), "q3_k");
        assert_eq!(bytes(12, 256), Some(2 * half + 12 + 256 / 2), "q4_k");
        assert_eq!(bytes(13, 256), Some(2 * half + 12 + 256 / 2 + 256 / 8), "q5_k");
        assert_eq!(bytes(14, 256), Some(half + 256 / 16 + 3 * 256 / 4), "q6_k");
        assert_eq!(bytes(15, 256), Some(4 + 256 + 256 / 16 * 2), "q8_k");
        assert_eq!(bytes(16, 256), Some(half + 256 / 8 * 2), "iq2_xxs");
        assert_eq!(bytes(17, 256), Some(half + 256 / 8 * 2 + 256 / 32), "iq2_xs");
        assert_eq!(bytes(18, 256), Some(half + 3 * (256 / 8)), "iq3_xxs");
        assert_eq!(bytes(19, 256), Some(half + 256 / 8 + 256 / 16), "iq1_s");
        assert_eq!(bytes(20, 32), Some(half + 32 / 2), "iq4_nl");
        assert_eq!(bytes(21, 256), Some(half + 13 * (256 / 32) + 256 / 64), "iq3_s");
        assert_eq!(bytes(22, 256), Some(half + 256 / 4 + 256 / 16), "iq2_s");
        assert_eq!(bytes(23, 256), Some(half + 2 + 256 / 64 + 256 / 2), "iq4_xs");
        assert_eq!(bytes(29, 256), Some(256 / 8 + 256 / 16 + 256 / 32), "iq1_m");
        assert_eq!(bytes(34, 256), Some(half + 256 / 64 + (256 - 4 * 256 / 64) / 5), "tq1_0");
        assert_eq!(bytes(35, 256), Some(half + 256 / 4), "tq2_0");
        assert_eq!(bytes(39, 32), Some(1 + 32 / 2), "mxfp4");
        assert_eq!(bytes(40, 64), Some(64 / 16 + 64 / 2), "nvfp4");
        assert_eq!(bytes(41, 128), Some(half + 128 / 8), "q1_0");
        assert_eq!(bytes(42, 64), Some(half + 64 / 4), "q2_0");
    }

    #[test]
    fn no_part_of_a_block_and_no_overflow() {
        let q4_0 = GgmlType::of_number(2).expect("a type");
        assert_eq!((q4_0.bytes(64, 3), q4_0.bytes(33, 1), q4_0.bytes(0, 5)), (Some(108), None, Some(0)));
        assert_eq!(q4_0.bytes(u64::MAX - 31, 2), None);
        for removed in [4, 5, 43, u32::MAX] {
            assert_eq!(GgmlType::of_number(removed), None);
        }
    }
}
