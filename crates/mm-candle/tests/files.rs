//! Weight files that are truncated, written or replaced while a model streams from them: what any adapter promises.

mod common;
#[path = "../../../tests/adapters/files.rs"]
mod suite;
