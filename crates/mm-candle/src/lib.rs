//! candle models under memory management (front door to be written).
mod blocks;
mod build;
mod component;
mod error;
mod home;
mod manager;
mod plain;

pub use blocks::{Blocks, Lease};
pub use component::{Component, LoadSpec, load_unmanaged};
pub use error::Error;
pub use home::plan_dtype;
pub use manager::Manager;
