//! mm-plan (front door to be written)
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod component;
mod infeasible;
mod machine;
mod plan;
mod policy;

pub use component::{Activation, Basis, Component, DType, Granularity, Group, Slab, Stack};
pub use infeasible::Infeasible;
pub use machine::{DeviceKind, Links, Machine};
pub use plan::{ComponentPlan, HostTier, Note, Peak, PhasePlan, Plan, Predicted, PredictedComponent, Proof, StackPlan};
pub use policy::{Policy, Rule, Strategy};
