//! The laws of passes and of the life cycle on CUDA, over a fake driver that aborts on misuse.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;
#[path = "laws/concurrency.rs"]
mod concurrency;
#[path = "laws/displacement.rs"]
mod displacement;
#[path = "laws/overrides.rs"]
mod overrides;
#[path = "laws/pass.rs"]
mod pass;
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

use common::fake_cuda::FakeCuda as Dut;
