//! Executes memory plans: keeps on a device what fits, streams the rest through fixed slots, and stays within a byte
//! budget.
//!
//! An adapter describes a model's weights as a [`Module`] and gives them [`Homes`]; a [`ModelManager`] plans, loads and
//! runs. This crate knows no tensor library.
//!
//! ```
//! # use mm_engine::{Homes, HostBuffer, Place};
//! # struct Home(std::sync::Mutex<std::collections::HashMap<(Option<usize>, usize), HostBuffer>>);
//! # fn key(place: Place) -> Option<usize> { if let Place::Group(group) = place { Some(group) } else { None } }
//! # impl Homes<HostBuffer> for Home {
//! #     fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
//! #         self.0.lock().unwrap().insert((key(place), slab), buffer);
//! #         Ok(())
//! #     }
//! #     fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
//! #         self.0.lock().unwrap().remove(&(key(place), slab)).ok_or_else(|| "no buffer".to_owned())
//! #     }
//! # }
//! # let home = Home(Default::default());
//! use mm_engine::{Device, HostDevice, ModelManager, Module, ModuleSpec, Slab, StackSpec, timeline::Timeline};
//! use mm_plan::{DType, DeviceKind, Machine, Policy, Strategy};
//!
//! let block = |i: u8| {
//!     let mut slab = Slab::new(DType::U8);
//!     slab.push(mm_cache::TensorSlice::from_bytes("weight", safetensors::Dtype::U8, [4096], vec![i; 4096])?);
//!     Ok::<_, mm_cache::WeightsError>(vec![slab])
//! };
//! let groups = (0..16).map(block).collect::<Result<_, _>>()?; // 64 KiB of weights ...
//! let stacks = vec![StackSpec { name: "layers".into(), groups }];
//! let spec = ModuleSpec { name: "transformer".into(), phase: None, passes: 28, rest: vec![], stacks, homes: Box::new(home) };
//!
//! let (timeline, budget) = (std::sync::Arc::new(Timeline::default()), 16 << 10); // ... on a device of 16 KiB
//! let device = std::sync::Arc::new(HostDevice::new(budget, timeline.clone()));
//! let module = Module::new(spec, device.clone(), timeline.clone());
//! let machine = Machine { device: DeviceKind::Host, vram_free: Some(budget), ..Machine::default() };
//! let policy = Policy { strategy: Strategy::GroupOffload, ..Policy::default() };
//! let manager = ModelManager::new(device, timeline, machine, policy)?;
//! let _registration = manager.register("transformer", &module)?;
//!
//! let run = manager.begin(&module)?;
//! for group in 0..16 {
//!     let _lease = module.lease(group)?; // its bytes are in its home now; the next group is being copied
//! }
//! run.complete()?;
//! assert_eq!(manager.memory().peak, manager.apply()?.peak.device);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is guaranteed
//!
//! 1. **Right bytes**: a leased group's home holds exactly that group's weights until the lease is dropped, under every plan, also
//!    after a failed copy or a panic (`tests/pass.rs`, `tests/faults.rs`).
//! 2. **To the byte**: what is on the device is the plan's figure; nothing is allocated or freed during a pass
//!    (`tests/pass.rs`).
//! 3. **Order**: a copy into a slot waits for the compute that used it; the next pass's first copies start before this one ends;
//!    the order of groups is learned (`tests/pass.rs`, `tests/timeline.rs`).
//! 4. **Faults**: whichever call of the device fails, once or for ever, the error is told or the run is right, nothing leaks, and the
//!    next run is right (`tests/faults.rs`).
//! 5. **No hang**: too many leases, a run inside itself, threads that wait for each other are [`EngineError::Misuse`] at once
//!    (`tests/pass.rs`, `tests/manager.rs`). A [`Run`] that was forgotten keeps other threads out of its component.
//! 6. **A plan is run exactly or refused** with the place where it differs (`tests/manager.rs`).
//! 7. **Files may change**: weights are read by position, never through a mapping; a file truncated or written in place since
//!    it was opened is [`EngineError::Source`], never other weights and never the end of the process (`tests/files.rs`).
//! 8. **The budget is hard**, and a refused allocation leaves the account right (`tests/host_device.rs`).
//! 9. **As planned**: on a virtual clock, whatever the planner makes of 10,000 generated machines and models, each copy and each
//!    compute starts and ends at the nanosecond that `mm_plan::simulate` says (`tests/simulated`).
//! 10. **CUDA** (feature `cuda`): the same laws hold on a `CudaDevice`, over a fake driver that ends the
//!     program on misuse, whichever of its calls fails (`tests/cuda*.rs`). Not yet run on a card.
#![deny(unsafe_code)]

mod cast;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod error;
mod manager;
mod module;
mod order;
mod placement;
mod slab;
mod slots;
mod sync;
pub mod timeline;

#[cfg(test)]
extern crate self as mm_engine;
/// Among the unit tests, because only they can describe weights larger than any machine.
#[cfg(test)]
#[path = "../tests/simulated/mod.rs"]
mod simulated;

pub use cast::can_cast;
#[cfg(feature = "cuda")]
pub use cuda::{CudaBuffer, CudaCopy, CudaDevice, CudaMark, Staging};
/// The library whose streams a [`CudaDevice`] takes.
#[cfg(feature = "cuda")]
pub use cudarc;
pub use device::{CopyFailed, Device, DeviceMemory, HostBuffer, HostCopy, HostDevice, HostMemory, Reservation};
pub use error::{EngineError, Result};
pub use manager::{ModelManager, Registration, Run, Share, StrategyOverride};
pub use module::{GroupLease, Homes, Module, ModuleSpec, ModuleStats, Place, StackSpec};
pub use slab::{ALIGN, Slab, align, dtype_of};
