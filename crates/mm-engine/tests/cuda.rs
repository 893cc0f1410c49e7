//! The laws of passes and of the life cycle on CUDA, over a fake driver that aborts on misuse.

mod common;
#[path = "laws/manager.rs"]
mod manager;
#[path = "laws/pass.rs"]
mod pass;

use common::fake_cuda::FakeCuda as Dut;
