//! What loads of one manager share, and what is left when they end: what any adapter promises.

mod common;
#[path = "../../../tests/adapters/loading.rs"]
mod suite;
