//! What the caller wants: strategy, rule, constants and overrides.

use alloc::{collections::BTreeMap, string::String};

const GIB: u64 = 1 << 30;

/// How a component's weights are kept. Names as in diffusers-mm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Strategy {
    /// The planner chooses.
    #[default]
    Auto,
    /// Everything on the device all the time.
    NoOffload,
    /// A component is on the device while it is active.
    ModelOffload,
    /// As many blocks resident as fit, the others streamed.
    BlockPin,
    /// Every block streamed.
    GroupOffload,
}

impl Strategy {
    /// Name as on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::NoOffload => "no_offload",
            Self::ModelOffload => "model_offload",
            Self::BlockPin => "block_pin",
            Self::GroupOffload => "group_offload",
        }
    }
}

impl core::fmt::Display for Strategy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// By what `Auto` decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Rule {
    /// diffusers-mm's thresholds.
    Threshold,
    /// Least predicted time of a request, by [`simulate`](crate::simulate). Where no link was measured `Threshold` plans, and a
    /// note says so.
    Cost,
}

/// What the caller wants. Bytes, permille and counts; defaults are diffusers-mm's constants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Policy {
    /// The strategy for components without one of their own.
    pub strategy: Strategy,
    /// `None`: `Cost` where links are known, else `Threshold`.
    pub rule: Option<Rule>,
    /// Per component: how many blocks stay resident under `BlockPin`; clamped.
    pub resident: BTreeMap<String, u32>,
    /// Per component: its strategy.
    pub strategies: BTreeMap<String, Strategy>,
    /// Total × this ≤ free VRAM: `NoOffload`. Permille.
    pub no_offload_factor: u64,
    /// Largest component × this ≤ free VRAM: `ModelOffload`. Permille.
    pub model_offload_factor: u64,
    /// Weights > RAM × this: warning. Permille.
    pub ram_factor: u64,
    /// RAM beyond the weights before full page-locked copies are made.
    pub page_lock_headroom: u64,
    /// Blocks the largest stack needs for `BlockPin`.
    pub min_blocks: u32,
    /// No components known: free VRAM from which `NoOffload` is chosen.
    pub tier_no_offload: u64,
    /// No components known: free VRAM from which `ModelOffload` is chosen.
    pub tier_model_offload: u64,
    /// Reserved for activations when residents are counted, or, by rule `Cost`, where they are not known; `None`: 6.5 GiB, on
    /// Windows 8.5 GiB.
    pub working_set: Option<u64>,
    /// Copies run beside compute: two slots, by rule `Cost` up to four. Off: one slot.
    pub use_stream: bool,
    /// No full page-locked copies, tuned by `Auto` only. By rule `Cost`: page-locked copies leave
    /// [`page_lock_headroom`](Self::page_lock_headroom) of the available RAM free.
    pub low_cpu_mem: bool,
    /// Device bytes kept free besides activations.
    pub reserve: u64,
    /// Cap on anonymous and page-locked host bytes; `None`: available RAM.
    pub ram_limit: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            strategy: Strategy::Auto,
            rule: None,
            resident: BTreeMap::new(),
            strategies: BTreeMap::new(),
            no_offload_factor: 1500,
            model_offload_factor: 1500,
            ram_factor: 850,
            page_lock_headroom: 16 * GIB,
            min_blocks: 8,
            tier_no_offload: 20 * GIB,
            tier_model_offload: 12 * GIB,
            working_set: None,
            use_stream: true,
            low_cpu_mem: true,
            reserve: 0,
            ram_limit: None,
        }
    }
}

impl Policy {
    /// The working set in force on this operating system, bytes.
    pub fn working_set_on(&self, os: &str) -> u64 {
        self.working_set.unwrap_or(if os == "windows" { 17 * GIB / 2 } else { 13 * GIB / 2 })
    }
}
