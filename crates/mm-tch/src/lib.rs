//! Runs tch (libtorch) models in less memory than their weights, bit for bit as they would run otherwise.
//!
#![cfg_attr(
    feature = "libtorch",
    doc = r#"
```no_run
use mm_plan::{DeviceKind, Machine, Policy};
use mm_tch::{LoadSpec, Manager};
use tch::{Kind, Tensor, nn, nn::Module};

let budget = Some(64 << 10);
let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
let manager = Manager::cpu(machine, Policy::default())?;
let spec = LoadSpec::new("head", ["head.safetensors".into()]);
let head = manager.load(&spec, |path| Ok(nn::linear(path, 3, 2, Default::default())))?;
let y = head.run(|head| Ok(head.forward(&Tensor::ones([1, 3], (Kind::Float, tch::Device::Cpu)))))?;
# Ok::<(), mm_tch::Error>(())
```
"#
)]
//!
//! Any model that is built over an `nn::Path` is a component: it is on the device inside `Component::run`, whole. One that
//! holds its repeated blocks in `Blocks` instead of a `Vec` streams block by block. A TorchScript file is a component, whole. What
//! stays and what streams is the plan's business; this crate decides nothing, and knows no model.
//!
//! - Feature `libtorch` brings tch 0.24 in, which needs libtorch 2.11.0: `cargo xtask libtorch` makes one for the CPU, and `LIBTORCH` says
//!   where it is. The feature adds API and changes no behaviour. Without it this crate is empty and builds on any machine.
//! - Feature `doc-only` lets check, clippy and doc run with no libtorch.
//!
//! Guarantees, each with the test file that checks it:
//! 1. Outputs are bit-identical to an unmanaged run under every strategy and budget, after errors and
//!    panics too (`tests/blocks.rs`, `tests/models.rs`, `tests/transformer.rs`).
//! 2. Device bytes equal the plan's figure to the byte; only what the model asks for counts (`tests/blocks.rs`).
//! 3. Computing with a weight that is not on the device is an error from every op, and so it is with views,
//!    `detach()` and clones that were kept (`tests/refusal.rs`).
//! 4. A variable that two blocks hold is kept with the rest (`tests/models.rs`).
//! 5. What the process holds follows the budget; building holds at most the rest and one block, beside libtorch's
//!    own (`tests/memory.rs`).
//! 6. Files, variables and shapes that don't fit are named (`tests/models.rs`).
//! 7. A file truncated or written in place while it streams is an error that names file, tensor and range (`tests/files.rs`).
//! 8. A program whose linker dropped libtorch's CUDA library finds the GPU nevertheless (`cuda_is_available`, `src/cuda.rs`).
//!
//! How: a variable keeps its shape and kind, and its storage changes. Putting a group on the device makes its variables
//! views of a slot's memory. Evicting moves that memory to a storage of its own and leaves the former one refusing: every
//! kernel asks the storage for its address, and this one throws. So nothing is copied, every layer sees the change, and
//! whoever kept a view has an error, not stale numbers. tch reaches no storages; `src/memory.cpp` does.
//!
//! What to know:
//! - tch's layers panic where libtorch has an error; the same ops named `f_…` return it. A panic inside a run leaves the
//!   next run right.
//! - tch makes and fills variables while a model is built. A model without `Blocks` is there whole once, before it is managed;
//!   `Init::Const(0.)` in a layer's configuration spares the time of filling them at random.
//! - Values that a constructor computes from its variables are of those random numbers, as they are before `VarStore::load`;
//!   views that it makes of them refuse.
//! - Training is refused: nothing in a run is recorded, and a weight told to require grad is an error.
//! - What is written into a weight in a run (batch norms in training mode do) lasts until it is evicted; then the file counts again.
//! - CUDA is to come: the device is host memory.
#![deny(unsafe_code)]

#[cfg(feature = "libtorch")]
mod blocks;
#[cfg(feature = "libtorch")]
mod build;
#[cfg(feature = "libtorch")]
mod component;
#[cfg(feature = "libtorch")]
mod cuda;
#[cfg(feature = "libtorch")]
mod error;
#[cfg(feature = "libtorch")]
mod home;
#[cfg(feature = "libtorch")]
mod kind;
#[cfg(feature = "libtorch")]
mod manager;
#[cfg(feature = "libtorch")]
#[allow(unsafe_code)]
mod memory;
#[cfg(feature = "libtorch")]
mod script;

#[cfg(feature = "libtorch")]
pub use self::{
    blocks::{Blocks, Lease},
    build::CpuDevice,
    component::{Component, LoadSpec, load_unmanaged},
    cuda::cuda_is_available,
    error::{Error, Result},
    manager::{Manager, describe},
    memory::TorchMemory,
};
