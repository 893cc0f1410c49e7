//! Tells what this machine has and what a checkpoint holds, reading no more than headers.
//!
//! ```
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../checkpoints/shapes");
//! let checkpoint = mm_probe::inspect(path, Some(mm_plan::DType::Bf16))?;
//! let transformer = checkpoint.components.iter().find(|c| c.name == "transformer").expect("a component");
//! assert_eq!(transformer.class.as_deref(), Some("ZImageTransformer2DModel"));
//! assert_eq!(transformer.component.stacks.len(), 3);
//!
//! let machine = mm_probe::probe().host_machine(Some(8 << 20));
//! assert_eq!(machine.vram_free, Some(8 << 20));
//! # Ok::<(), mm_probe::InspectError>(())
//! ```
//!
//! Guarantees, each with the test file that checks it:
//! 1. Of a checkpoint only the files that would be loaded are read, whatever lies beside them, and of weights only the
//!    header (`tests/checkpoint.rs`, `tests/variants.rs`).
//! 2. Component and block bytes are, to the byte, the sum over the tensors that the model loads, in every layout there are
//!    fixtures for (`tests/fixtures.rs`); GGUF types have their own block sizes (`tests/gguf.rs`).
//! 3. No checkpoint makes it panic, wait or take memory by what a file claims: each fault is an error that names the file
//!    (`tests/hostile.rs`, `tests/mutations`).
//! 4. RAM is what a control group leaves, not what the host has (`src/cgroup_tests.rs`).
//! 5. A machine without a GPU or a driver is described, not refused (`tests/machine.rs`).

#![forbid(unsafe_code)]

mod activation;
mod cgroup;
mod checkpoint;
mod document;
mod error;
mod files;
mod gguf;
mod gpu;
mod header;
mod hub;
mod layout;
mod machine;
mod packed;
mod shared;
mod single_file;
mod stacks;
mod tensor;
mod unloaded;

pub use activation::{Architecture, Workload, estimate};
pub use checkpoint::{BlockBytes, BlockStack, Checkpoint, CheckpointComponent, inspect, inspect_variant};
pub use document::read_config;
pub use error::InspectError;
pub use files::{Library, WeightFiles, weight_files};
pub use gpu::Gpu;
pub use hub::locate;
pub use machine::{MachineReport, probe};
pub use unloaded::Unloaded;
