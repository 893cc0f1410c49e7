//! mm-cache (front door to be written)

mod error;
mod header;
mod mapping;
mod weights;

pub use error::WeightsError;
pub use weights::{TensorSlice, Weights};
