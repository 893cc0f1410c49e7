//! The GPUs that the NVIDIA driver reports. No driver, no GPUs: that is a machine like any other, not an error.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::{Deserialize, Serialize};

/// One GPU. Figures that the driver does not give are `None`. Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's number for it. CUDA's own may differ (`CUDA_VISIBLE_DEVICES`); the UUID does not.
    pub index: u32,
    /// The product: `NVIDIA GeForce RTX 4090`.
    pub name: Option<String>,
    /// Identifies the card.
    pub uuid: Option<String>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// Memory in all.
    pub total: Option<u64>,
    /// Memory that nobody uses now.
    pub free: Option<u64>,
    /// Memory in use, by this process and others.
    pub used: Option<u64>,
    /// It computes in the host's memory and has none of its own to report.
    pub unified: bool,
    /// PCIe generation the card and its slot can do together; the present one is lower while the card idles.
    pub pcie_generation: Option<u32>,
    /// PCIe lanes the card and its slot can do together.
    pub pcie_width: Option<u32>,
}

/// All GPUs, by index.
pub(crate) fn gpus() -> Vec<Gpu> {
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let driver = nvml.sys_driver_version().ok();
    let devices =
        (0..nvml.device_count().unwrap_or(0)).filter_map(|index| Some((index, nvml.device_by_index(index).ok()?)));
    devices.map(|(index, device)| gpu(index, &device, driver.clone())).collect()
}

fn gpu(index: u32, device: &Device<'_>, driver: Option<String>) -> Gpu {
    let memory = device.memory_info();
    // Said of a card without memory of its own. Any other error, of an old driver say, leaves the figures unknown.
    let unified = matches!(memory, Err(NvmlError::NotSupported));
    let memory = memory.ok();
    Gpu {
        index,
        name: device.name().ok(),
        uuid: device.uuid().ok(),
        driver,
        total: memory.as_ref().map(|memory| memory.total),
        free: memory.as_ref().map(|memory| memory.free),
        used: memory.as_ref().map(|memory| memory.used),
        unified,
        pcie_generation: device.max_pcie_link_gen().ok(),
        pcie_width: device.max_pcie_link_width().ok(),
    }
}
