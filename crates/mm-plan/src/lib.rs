//! mm-plan (front door to be written)
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod component;
mod fit;
mod host;
mod infeasible;
mod input;
mod machine;
mod notes;
mod place;
mod plan;
mod planner;
mod policy;
mod spacing;
mod threshold;

pub use component::{Activation, Basis, Component, DType, Granularity, Group, Slab, Stack};
pub use infeasible::Infeasible;
pub use machine::{DeviceKind, Links, Machine};
pub use plan::{ComponentPlan, HostTier, Note, Peak, PhasePlan, Plan, Predicted, PredictedComponent, Proof, StackPlan};
pub use planner::plan;
pub use policy::{Policy, Rule, Strategy};

/// Groups that a plan takes at the most, all components together.
pub const MAX_GROUPS: usize = 65_536;
