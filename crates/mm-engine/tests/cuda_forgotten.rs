//! What a program forgets, on CUDA over a fake driver: a program of its own, because it leaks.

mod common;
#[path = "laws/forgotten.rs"]
mod forgotten;

use common::fake_cuda::FakeCuda as Dut;
