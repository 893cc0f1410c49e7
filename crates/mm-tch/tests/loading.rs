//! What loads of one manager share, and what is left when they end: what any adapter promises.
#![cfg(feature = "libtorch")]

mod common;
#[path = "../../../tests/adapters/loading.rs"]
mod suite;
