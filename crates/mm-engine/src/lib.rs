//! mm-engine (front door to be written)
mod cast;
mod device;
mod error;
mod manager;
mod module;
mod order;
mod placement;
mod slab;
mod slots;
pub mod timeline;

pub use cast::can_cast;
pub use device::{CopyFailed, Device, DeviceMemory, HostBuffer, HostCopy, HostDevice, Reservation};
pub use error::{EngineError, Result};
pub use manager::{ModelManager, Registration, Run, StrategyOverride};
pub use module::{GroupLease, Homes, Module, ModuleSpec, ModuleStats, Place, StackSpec};
pub use slab::{ALIGN, Slab, align, dtype_of};
