//! What a plan is made for: one device with its host.

use alloc::string::String;

/// What the device is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum DeviceKind {
    /// A card with its own memory behind a link.
    #[default]
    Discrete,
    /// Host memory under a byte budget. Page-locking buys nothing here: streamed groups stay mapped.
    Host,
}

/// Measured rates between the tiers. Bytes per second, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Links {
    /// Host to device from page-locked memory, bytes per second. On a host device: from the mapping into its memory, the
    /// cast included. Zero: not measured.
    pub h2d: u64,
    /// Filling page-locked memory from a mapping, casts included, bytes per second; `None`: taken as half of `h2d`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub staging: Option<u64>,
    /// Reading the disk, bytes per second: the rate of a mapping whose file does not fit the available RAM; `None`: as
    /// if it fit.
    #[cfg_attr(feature = "serde", serde(default))]
    pub disk: Option<u64>,
    /// What each copy costs besides its bytes, nanoseconds.
    #[cfg_attr(feature = "serde", serde(default))]
    pub copy_fixed_ns: u64,
}

/// One device with its host. Bytes throughout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Machine {
    /// What the device is made of.
    #[cfg_attr(feature = "serde", serde(default))]
    pub device: DeviceKind,
    /// Device memory free for the engine; `None`: no device. A host device presents its budget here.
    #[cfg_attr(feature = "serde", serde(default))]
    pub vram_free: Option<u64>,
    /// Device memory in all; tells `NeverFits` from `NotNow`. `None`: taken as `vram_free`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub vram_total: Option<u64>,
    /// Host memory available now; zero: unknown.
    #[cfg_attr(feature = "serde", serde(default))]
    pub ram_available: u64,
    /// Host memory in all; zero: unknown.
    #[cfg_attr(feature = "serde", serde(default))]
    pub ram_total: u64,
    /// How many bytes may be page-locked; `None`: no limit but memory.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub page_lock_limit: Option<u64>,
    /// `linux`, `windows`, `macos`; decides the default working set.
    #[cfg_attr(feature = "serde", serde(default))]
    pub os: String,
    /// Measured links; `None`: never measured.
    #[cfg_attr(feature = "serde", serde(default))]
    pub links: Option<Links>,
}
