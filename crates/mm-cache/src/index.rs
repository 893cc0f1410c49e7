use crate::{digest::ContentId, hash::hash_range};
use std::{fs::File, io, ops::Range};
/// Stub.
#[derive(Default)]
pub struct Index;
impl Index {
    /// Stub.
    pub fn none() -> Self {
        Self
    }
    /// Stub.
    pub fn user() -> Self {
        Self
    }
    pub(crate) fn tensor_ids(&self, file: &File, ranges: &[Range<u64>]) -> io::Result<Vec<ContentId>> {
        ranges.iter().map(|r| hash_range(file, r.clone())).collect()
    }
}
