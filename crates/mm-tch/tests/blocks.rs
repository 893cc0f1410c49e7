//! Blocks stream bit-identically under every strategy and budget, in exactly the bytes planned: what any adapter promises.
#![cfg(feature = "libtorch")]

mod common;
#[path = "../../../tests/adapters/blocks.rs"]
mod suite;
