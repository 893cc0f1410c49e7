//! The laws of passes and of the life cycle on CUDA, over a fake driver that aborts on misuse.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;
#[path = "laws/manager.rs"]
mod manager;
#[path = "laws/pass.rs"]
mod pass;

use common::fake_cuda::FakeCuda as Dut;
