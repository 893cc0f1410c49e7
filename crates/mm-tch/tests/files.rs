//! Weight files that are truncated, written or replaced while a model streams from them: what any adapter promises.
#![cfg(feature = "libtorch")]

mod common;
#[path = "../../../tests/adapters/files.rs"]
mod suite;
