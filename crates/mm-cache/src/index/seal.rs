//! A check sum over all of a row, so that what a disk or a power loss damaged is never believed.

use std::ops::Range;

use crate::digest::ContentId;

/// Blake3, cut to this: damage is no attacker, and passes it once in 2^128.
pub(super) type Seal = [u8; 16];

/// Changes with the schema, so that rows of one are no rows of another.
const CONTEXT: &str = "mm-cache 2026-11 index of content ids, schema 1, one row";

pub(super) fn of_file(numbers: &[i64; 5], content: Option<&ContentId>) -> Seal {
    seal(b'f', numbers, &[], content)
}

/// Over the file's numbers too: rows of tensors that lost their file must not pass for another's.
pub(super) fn of_tensor(numbers: &[i64; 5], range: &Range<i64>, content: &ContentId) -> Seal {
    seal(b't', numbers, &[range.start, range.end], Some(content))
}

fn seal(kind: u8, numbers: &[i64; 5], range: &[i64], content: Option<&ContentId>) -> Seal {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&[kind]);
    for number in numbers.iter().chain(range) {
        hasher.update(&number.to_le_bytes());
    }
    if let Some(content) = content {
        hasher.update(content.as_bytes());
    }
    let mut seal = Seal::default();
    hasher.finalize_xof().fill(&mut seal);
    seal
}
