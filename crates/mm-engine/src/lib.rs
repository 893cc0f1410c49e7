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
//! 5. **Out of memory is survived**: in loading, a copy or computing. Idle components leave, residents become streamed, slots go, and the
//!    pass is tried again with the same bytes; what was given up comes back. As long as the least fits, whatever others take, each
//!    request is right (`tests/faults.rs`, `tests/laws/survival.rs`; the rules alone in `tests/survival.rs`).
//! 6. **No hang**: threads whose components fit the device together run beside each other, others in turn, and nobody is put off for
//!    ever; too many leases, a run inside itself, and whatever could only be waited for without end are [`EngineError::Misuse`] at
//!    once (`tests/laws/concurrency.rs`; the rules alone against every order in `tests/admission.rs`, the waiting under a checker of schedules
//!    in `tests/schedules.rs`). A [`Run`] that was forgotten keeps other threads out of its component.
//! 7. **A plan is run exactly or refused** with the place where it differs (`tests/laws/plans.rs`). Another plan is put in force whole or not
//!    at all, and touches only what it places differently (`tests/laws/{transitions,overrides}.rs`).
//! 8. **Files may change**: weights are read by position, never through a mapping; a file truncated or written in place since
//!    it was opened is [`EngineError::Source`], never other weights and never the end of the process (`tests/files.rs`).
//! 9. **The budget is hard**, and a refused allocation leaves the account right (`tests/host_device.rs`).
//! 10. **As planned**: on a virtual clock, whatever the planner makes of 10,000 generated machines and models, each copy and each
//!     compute starts and ends at the nanosecond that `mm_plan::simulate` says (`tests/simulated`).
//! 11. **Host tiers are those of the plan**, or [`ModuleStats::notes`] say which are not, and why; page-locked bytes are booked before they
//!     are allocated (`tests/tiers.rs`, `tests/cuda_tiers.rs`).
//! 12. **CUDA** (feature `cuda`): the same laws hold on a `CudaDevice`, over a fake driver that ends the
//!     program on misuse, whichever of its calls fails (`tests/cuda*.rs`). Not yet run on a card.
//! 13. **A module is on the device once** however many names, registrations and sources it has, and as long as it has one
//!     (`tests/laws/{registry,displacement,sources,release}.rs`).
//! 14. **Calibration** is asked for ([`ModelManager::calibrate`]), replaces a plan between passes alone, once, where that gains more than
//!     a bound, and never changes a byte (`tests/calibration.rs`, `tests/calibration_host.rs`, on CUDA
//!     `tests/cuda_calibration.rs`).
//! 15. **What a component is made of may change under it** ([`ModelManager::replace`]): its next run has it, planned to the byte, and none
//!     before. What a library adds to weights that were copied ([`Homes::arrived`]) it adds once (`tests/replace.rs`).
#![deny(unsafe_code)]

pub mod calibrate;
mod cast;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod error;
mod manager;
mod module;
mod order;
mod placement;
mod scope;
mod slab;
mod slots;
mod source;
mod sync;
mod tiers;
pub mod timeline;

#[cfg(test)]
extern crate self as mm_engine;
/// Among the unit tests, because only they can describe weights larger than any machine.
#[cfg(test)]
#[path = "../tests/simulated/mod.rs"]
mod simulated;

pub use calibrate::Calibration;
pub use cast::can_cast;
#[cfg(feature = "cuda")]
pub use cuda::{CudaBuffer, CudaCopy, CudaDevice, CudaMark, CudaSource, Staging};
/// The library whose streams a [`CudaDevice`] takes.
#[cfg(feature = "cuda")]
pub use cudarc;
pub use device::{
    AnyBuffer, AnyCopy, AnyDevice, AnyEvent, AnySource, CopyFailed, Device, DeviceMemory, DriverMemory, HostBuffer,
    HostCopy, HostDevice, HostMemory, Reservation, Stopwatch, Ticket,
};
pub use error::{EngineError, Result};
pub use manager::{
    Managed, Managing, ModelManager, Pipeline, Registration, Released, Run, Share, SourceRegistration,
    StrategyOverride, managed,
};
pub use module::{GroupLease, Homes, Module, ModuleSpec, ModuleStats, Place, StackSpec};
pub use scope::{DeviceScope, device_scope, scoped_device, scoped_dtype};
pub use slab::{ALIGN, Slab, align, dtype_of};
pub use source::HostSource;
