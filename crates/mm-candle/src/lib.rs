//! candle models under memory management (front door to be written).
mod blocks;
mod component;
mod error;

pub use blocks::{Blocks, Lease};
pub use component::{Component, LoadSpec, load_unmanaged};
pub use error::Error;
