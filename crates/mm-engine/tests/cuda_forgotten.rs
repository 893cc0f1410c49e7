//! What a program forgets, on CUDA over a fake driver: a program of its own, because it leaks.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;
#[path = "laws/forgotten.rs"]
mod forgotten;

use common::fake_cuda::FakeCuda as Dut;
