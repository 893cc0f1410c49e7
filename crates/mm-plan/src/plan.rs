//! What was decided. A plan is an authority: an engine runs exactly it, or refuses with the reason.

use crate::{Activation, Basis, Rule, Strategy};
use alloc::{string::String, vec::Vec};

/// Where the host keeps a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum HostTier {
    /// In its file, mapped or read when it is needed; no anonymous bytes.
    Mapped,
    /// Through a ring of page-locked staging buffers.
    Staged,
    /// In a page-locked copy of its own.
    PageLocked,
    /// In ordinary anonymous memory.
    Pageable,
}

/// A stack's groups.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StackPlan {
    /// Its path inside the component.
    pub name: String,
    /// Per group: on the device for the whole phase, or streamed.
    pub resident: Vec<bool>,
    /// Per group: where the host keeps it.
    pub host: Vec<HostTier>,
}

/// A component's placement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ComponentPlan {
    /// Its name.
    pub name: String,
    /// Its strategy, resolved: never `Auto`.
    pub strategy: Strategy,
    /// Device bytes outside its groups.
    pub rest: u64,
    /// Its stacks, in the component's order.
    pub stacks: Vec<StackPlan>,
    /// Slots that streamed groups take turns in.
    pub slots: u32,
    /// Device bytes of one slot.
    pub slot_bytes: u64,
    /// Device bytes while active: rest, residents and slots.
    pub engine_bytes: u64,
    /// Stays on the device between its phases, slots included. Else it is loaded anew for each phase it is active in.
    #[cfg_attr(feature = "serde", serde(default))]
    pub keep: bool,
    /// The component whose weights these are.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub same_as: Option<String>,
}

impl ComponentPlan {
    /// Of an alias: it has nothing of its own.
    pub(crate) fn alias(name: &str, strategy: Strategy, holder: &str) -> Self {
        Self {
            name: name.into(),
            strategy,
            rest: 0,
            stacks: Vec::new(),
            slots: 0,
            slot_bytes: 0,
            engine_bytes: 0,
            keep: false,
            same_as: Some(holder.into()),
        }
    }

    /// How many groups stay resident, all stacks.
    pub fn resident_count(&self) -> usize {
        self.stacks.iter().flat_map(|s| &s.resident).filter(|r| **r).count()
    }

    /// How many groups stream, all stacks.
    pub fn streamed_count(&self) -> usize {
        self.stacks.iter().flat_map(|s| &s.resident).filter(|r| !**r).count()
    }
}

/// A stretch in which one set of components is active.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PhasePlan {
    /// Active components, by name.
    pub components: Vec<String>,
    /// Rests + residents + slots on the device.
    pub engine_bytes: u64,
    /// Free VRAM − engine bytes − reserve; `None`: no device.
    pub headroom: Option<u64>,
    /// What of the headroom activations are expected to take: the largest known activation of the phase, or, with basis
    /// `Unknown`, what rule `Cost` reserved. `None`: not known, and nothing was reserved.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub activation: Option<Activation>,
}

/// The most the plan takes at any time, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Peak {
    /// Engine bytes on the device.
    pub device: u64,
    /// Anonymous and page-locked bytes on the host; mapped pages don't count.
    pub host: u64,
}

/// Predicted times of one component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PredictedComponent {
    /// Its name.
    pub name: String,
    /// Steady-state pass, nanoseconds.
    pub pass_ns: u64,
    /// What no order of copies could beat for this placement: the busiest of compute, link and staging in a pass.
    pub lower_bound_ns: u64,
    /// Passes of a request, aliases included.
    #[cfg_attr(feature = "serde", serde(default))]
    pub passes: u64,
    /// Loading it in a request, where it does not stay between phases, nanoseconds.
    #[cfg_attr(feature = "serde", serde(default))]
    pub load_ns: u64,
    /// What compute waits for copies in a request, loading not counted, nanoseconds.
    #[cfg_attr(feature = "serde", serde(default))]
    pub stall_ns: u64,
}

/// Predicted times, all of them from [`simulate`](crate::simulate).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Predicted {
    /// One request of many alike, nanoseconds: what stays on the device is there already.
    pub request_ns: u64,
    /// What no order of copies could beat for these placements, nanoseconds.
    pub lower_bound_ns: u64,
    /// Basis of the compute times; `Unknown`: counted as zero.
    pub compute: Basis,
    /// Per component.
    pub components: Vec<PredictedComponent>,
}

/// How good the plan is known to be among all placements that fit, not only those that were tried. Made by rule `Cost`
/// only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "kind", rename_all = "snake_case")
)]
pub enum Proof {
    /// Nothing is faster.
    Optimal,
    /// Nothing is faster by more than this.
    Within {
        /// The share of the predicted request time by which it exceeds the lower bound of all placements, permille,
        /// rounded up.
        gap_permille: u64,
    },
}

/// One decision, explained. `numbers` re-derive it; `text` says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Note {
    /// Stable code: `no_offload_rejected`.
    pub code: String,
    /// The component it is about; `None`: the plan as a whole.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub component: Option<String>,
    /// Named figures behind the decision.
    #[cfg_attr(feature = "serde", serde(default))]
    pub numbers: alloc::collections::BTreeMap<String, u64>,
    /// A sentence for people.
    pub text: String,
}

impl Note {
    /// A note about the plan as a whole.
    pub fn new(code: &str, numbers: &[(&str, u64)], text: impl Into<String>) -> Self {
        let numbers = numbers.iter().map(|(name, value)| (String::from(*name), *value)).collect();
        Self { code: code.into(), component: None, numbers, text: text.into() }
    }

    /// The same note about one component.
    #[must_use]
    pub fn about(self, component: &str) -> Self {
        Self { component: Some(component.into()), ..self }
    }
}

impl core::fmt::Display for Note {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What was decided, for all components.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    /// Version of this form: 1.
    pub schema: u32,
    /// The largest component's strategy: what `Auto` resolved to.
    pub strategy: Strategy,
    /// The rule that made the plan.
    pub rule: Rule,
    /// Not everything that streams has a page-locked copy.
    pub low_cpu_mem: bool,
    /// Free VRAM it was made for; `None`: no device.
    #[cfg_attr(feature = "serde", serde(default))]
    pub budget: Option<u64>,
    /// Placements, sorted by (phase, name).
    pub components: Vec<ComponentPlan>,
    /// Phases in order.
    pub phases: Vec<PhasePlan>,
    /// The most it takes.
    pub peak: Peak,
    /// Predicted times; `None` where no link is known, or no device.
    #[cfg_attr(feature = "serde", serde(default))]
    pub predicted: Option<Predicted>,
    /// How good it is known to be.
    #[cfg_attr(feature = "serde", serde(default))]
    pub proof: Option<Proof>,
    /// Why.
    pub notes: Vec<Note>,
}

impl Plan {
    /// A component's placement by name.
    pub fn component(&self, name: &str) -> Option<&ComponentPlan> {
        self.components.iter().find(|c| c.name == name)
    }
}
