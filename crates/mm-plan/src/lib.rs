//! Decides which model weights stay on a device, which stream through slots, and where the host keeps them.
//!
//! A pure function: `no_std`, no dependencies (`serde` is optional), no I/O, no clock, integers only. Any scheduler can
//! embed it.
//!
//! ```
//! use mm_plan::{Component, Group, Machine, Policy, Stack, Strategy, plan};
//!
//! const GIB: u64 = 1 << 30;
//! let machine = Machine { vram_free: Some(16 * GIB), ram_available: 64 * GIB, ..Machine::default() };
//! let layers = Stack { name: "layers".into(), groups: vec![Group::of_bytes(GIB / 2); 40] };
//! let transformer = Component::blocks("transformer", GIB, vec![layers]);
//! let plan = plan(&machine, &[transformer, Component::whole("vae", GIB)], &Policy::default())?;
//! assert_eq!(plan.strategy, Strategy::BlockPin);
//! assert_eq!(plan.components[0].resident_count(), 16);
//! assert!(plan.peak.device <= 16 * GIB);
//! println!("{}", plan.notes[0]);
//! # Ok::<(), mm_plan::Infeasible>(())
//! ```
//!
//! # What is guaranteed
//!
//! The numbers are those of the project's laws.
//!
//! 1. **Fits**: engine bytes, reserve and the largest known activation are within the free VRAM in every phase, and
//!    page-locked bytes within the host's limit (`tests/laws.rs`, `tests/demotion.rs`). What does not fit is an [`Infeasible`] that names
//!    the smallest free VRAM that would do; one byte less does not.
//! 2. **Complete**: each group is resident or has a slot that holds it (`tests/laws.rs`).
//! 3. **Stable**: the same input, in any order, gives the same plan, byte for byte (`tests/laws.rs`).
//! 4. **Monotone**: by rule `Cost`, more VRAM, RAM or bandwidth never makes the predicted time worse (`tests/laws/monotone.rs`,
//!    `tests/shapes.rs`). This holds as long as the search gets to its end; a plan whose search did not says so in a note.
//! 5. **Optimal**: by rule `Cost`, up to ten groups no placement is faster (`tests/laws/optimal.rs`, against an exhaustive twin);
//!    beyond that [`Proof`] tells how much could be gained at the most. It is never slower than rule `Threshold`'s plan.
//! 6. **Parity**: `Threshold` decides as diffusers-mm 0.1.0, on its own answers and on every boundary one byte either
//!    side (`tests/parity.rs`).
//! 7. **Total**: any input gives a plan or an [`Infeasible`]; never a panic, an overflow or a loop (`tests/laws.rs`,
//!    `tests/hostile.rs`).
//! 8. **Explained**: each decision has a [`Note`] whose numbers re-derive it (`tests/laws.rs`).
//!
//! The times are [`simulate`]'s, which agrees with an independent replay to the nanosecond (`tests/laws/cost_model.rs`).
//!
//! # How rule `Cost` decides
//!
//! It needs a device and measured [`Links`]. Per component it lists sets of groups that may stream, with one to four slots,
//! staying on the device between phases or not; what is listed depends on the component alone. The best combination that fits all
//! phases is found by branch and bound; a placement is simulated only when its lower bound makes it worth it. Of equally fast
//! ones it takes the one that copies least, of those the smallest.
//!
//! Activations that are not known get min(working set, half of the active bytes), as long as what remains holds everything
//! streamed through two slots, and no less than rule `Threshold` would hold.
//!
//! # How rule `Threshold` decides
//!
//! - `Auto` is resolved once for all components; [`Policy::strategies`] sets single ones. It tunes `low_cpu_mem`
//!   only where it resolves to group_offload or block_pin.
//! - A no_offload component is on the device in every phase, any other while it is active. An alias has no bytes; while
//!   it is active its holder is.
//! - block_pin keeps (free − rest − working set − one block) / block groups of the stack with the most bytes, evenly
//!   spaced, and all of the other stacks. What cannot be streamed counts as rest.
//! - Streamed groups of a component take turns in two slots (one without [`Policy::use_stream`]), each as large as
//!   the largest streamed slab of each dtype.
//! - A phase that does not fit is demoted: residents first, from the component that holds most, then the second slots.
//!   The strategy keeps its name. Where `Auto` chose no_offload and even that is not enough, it becomes model_offload.
//!   A no_offload or model_offload that was asked for is never demoted.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod budget;
mod candidates;
mod component;
mod cost;
mod explain;
mod family;
mod fit;
mod frontier;
mod host;
mod infeasible;
mod input;
mod machine;
mod notes;
mod part;
mod place;
mod plan;
mod planner;
mod policy;
mod price;
mod rates;
mod recurrence;
mod search;
mod simulate;
mod spacing;
#[cfg(feature = "serde")]
mod spec;
mod threshold;
mod tree;

pub use component::{Activation, Basis, Component, DType, Granularity, Group, Slab, Stack};
pub use infeasible::Infeasible;
pub use machine::{DeviceKind, Links, Machine};
pub use plan::{ComponentPlan, HostTier, Note, Peak, PhasePlan, Plan, Predicted, PredictedComponent, Proof, StackPlan};
pub use planner::plan;
pub use policy::{Policy, Rule, Strategy};
pub use simulate::{Busy, Lane, MemoryPoint, Schedule, Span, Visit, simulate};
#[cfg(feature = "serde")]
pub use spec::Spec;

/// Groups that a plan takes at the most, all components together.
pub const MAX_GROUPS: usize = 65_536;
