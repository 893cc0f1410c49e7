//! The laws of the life cycle on a device of a virtual clock.

mod common;
#[path = "laws/concurrency.rs"]
mod concurrency;
#[path = "laws/displacement.rs"]
mod displacement;
#[path = "laws/overrides.rs"]
mod overrides;
#[path = "laws/plans.rs"]
mod plans;
#[path = "laws/registry.rs"]
mod registry;
#[path = "laws/release.rs"]
mod release;
#[path = "laws/sources.rs"]
mod sources;
#[path = "laws/survival.rs"]
mod survival;
#[path = "laws/transitions.rs"]
mod transitions;

use common::virtual_device::VirtualDevice as Dut;
