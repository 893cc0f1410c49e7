//! The laws of the life cycle on a device of a virtual clock.

mod common;
#[path = "laws/manager.rs"]
mod manager;

use common::virtual_device::VirtualDevice as Dut;
