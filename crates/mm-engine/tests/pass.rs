//! The laws of passes on a device of a virtual clock.

mod common;
#[path = "laws/forgotten.rs"]
mod forgotten;
#[path = "laws/pass.rs"]
mod pass;

use common::virtual_device::VirtualDevice as Dut;
