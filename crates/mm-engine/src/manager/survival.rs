//! What running out of memory teaches: which component takes less than it could, by how much, and for how long. Rules alone,
//! with no lock and no device.
//!
//! - Who runs out of memory runs with what is idle off the device from then on. That costs least, so it comes first.
//! - If that is not enough its reserve is raised, step by step: by what was short or, where that is more, by an eighth of what is on
//!   the device with it, as much again, a quarter, all. After these four steps there is nothing left to give up.
//! - A reserve is what the planner is to leave free beside all else while the component is active. It is a wish: it never makes a plan
//!   impossible.
//! - After so many good passes the last step is taken back, then the one before, and at last what is idle may stay again.
//! - Who then runs out of memory again is trusted half as soon.

use super::admission::Id;
use mm_plan::{Activation, Basis, Component, Infeasible, Machine, Plan, Policy};
use std::collections::BTreeMap;

/// By which part of what is on the device a reserve is raised at each step: one over two to the power of these.
const SHARES: [u32; 4] = [3, 3, 2, 0];

/// Good passes until the last step is taken back.
pub(super) const PASSES: u32 = 32;

/// The most of them, however often memory ran out.
pub(super) const MOST_PASSES: u32 = 1024;

/// What memory ran out for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Strain {
    /// What is idle leaves before it runs.
    alone: bool,
    /// Bytes, first step first.
    steps: Vec<u64>,
    /// The most that was on the device with it when a step was made.
    most: u64,
    /// Good passes since something changed here.
    good: u32,
    /// So many until something is taken back.
    patience: u32,
    /// Something was taken back since memory ran out last.
    trusted: bool,
    times: u64,
}

#[derive(Default)]
pub(super) struct Survival {
    of: BTreeMap<Id, Strain>,
}

/// What is left free beside a component, which has these names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reserve {
    pub(super) names: Vec<String>,
    pub(super) bytes: u64,
    /// How often memory ran out.
    pub(super) times: u64,
    /// Good passes until it is lowered.
    pub(super) passes: u32,
}

impl Survival {
    /// Memory ran out for it. `true`: what is idle may have been in the way so far, and is to leave.
    pub(super) fn ran_out(&mut self, id: Id) -> bool {
        let fresh =
            Strain { alone: false, steps: Vec::new(), most: 0, good: 0, patience: PASSES, trusted: false, times: 0 };
        let strain = self.of.entry(id).or_insert(fresh);
        if strain.trusted {
            strain.patience = strain.patience.saturating_mul(2).min(MOST_PASSES);
        }
        (strain.good, strain.trusted) = (0, false);
        strain.times = strain.times.saturating_add(1);
        !std::mem::replace(&mut strain.alone, true)
    }

    /// Raises the reserve of one that was `short` bytes short (zero: nobody knows) with `held` bytes on the device. `false`: it has
    /// been raised as often as it is.
    pub(super) fn raise(&mut self, id: Id, short: u64, held: u64) -> bool {
        let Some(strain) = self.of.get_mut(&id) else { return false };
        let Some(share) = SHARES.get(strain.steps.len()) else { return false };
        strain.most = strain.most.max(held);
        strain.steps.push(short.min(held).max(strain.most >> share).max(1));
        true
    }

    /// Steps of its reserve.
    pub(super) fn steps(&self, id: Id) -> usize {
        self.of.get(&id).map_or(0, |strain| strain.steps.len())
    }

    /// Takes all steps after the first `count` back: they were of no use.
    pub(super) fn take_back(&mut self, id: Id, count: usize) {
        if let Some(strain) = self.of.get_mut(&id) {
            strain.steps.truncate(count);
        }
    }

    /// A pass of it went well. `true`: something was taken back.
    pub(super) fn passed(&mut self, id: Id) -> bool {
        let Some(strain) = self.of.get_mut(&id) else { return false };
        strain.good += 1;
        if strain.good < strain.patience {
            return false;
        }
        (strain.good, strain.trusted) = (0, true);
        if strain.steps.pop().is_some() || std::mem::replace(&mut strain.alone, false) {
            return true;
        }
        // Long ago, as if it had never been.
        self.of.remove(&id);
        false
    }

    /// Whether what is idle leaves before it runs.
    pub(super) fn is_alone(&self, id: Id) -> bool {
        self.of.get(&id).is_some_and(|strain| strain.alone)
    }

    /// What is reserved for components that ran out of memory, by component; `names`: what they are called.
    pub(super) fn reserves(&self, names: impl Fn(Id) -> Vec<String>) -> Vec<Reserve> {
        let reserve = |(id, strain): (&Id, &Strain)| Reserve {
            names: names(*id),
            bytes: strain.steps.iter().fold(0, |sum, step| sum.saturating_add(*step)),
            times: strain.times,
            passes: strain.patience.saturating_sub(strain.good),
        };
        self.of.iter().filter(|(_, strain)| strain.alone).map(reserve).filter(|r| !r.names.is_empty()).collect()
    }

    /// It is gone.
    pub(super) fn forget(&mut self, id: Id) {
        self.of.remove(&id);
    }
}

/// The most that is on the device while any component of these names is active.
pub(super) fn active_bytes(plan: &Plan, names: &[String]) -> u64 {
    let active = plan.phases.iter().filter(|phase| phase.components.iter().any(|c| names.contains(c)));
    active.map(|phase| phase.engine_bytes).max().unwrap_or(0)
}

/// The plan in which, while these components are active, so many bytes less are on the device than in the plan that would be made
/// otherwise; as many less as can be, where that is less.
///
/// # Errors
/// As [`mm_plan::plan`] without any reserves.
pub(super) fn plan(
    machine: &Machine,
    components: &[Component],
    policy: &Policy,
    reserves: &[Reserve],
) -> Result<Plan, Infeasible> {
    let plan = mm_plan::plan(machine, components, policy)?;
    let free = machine.vram_free.unwrap_or(0);
    let usable = free.saturating_sub(policy.reserve);
    // What may be on the device while a component is active, and what would be.
    let mut ceilings: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for reserve in reserves.iter().filter(|reserve| reserve.bytes > 0) {
        let engine = active_bytes(&plan, &reserve.names);
        let ceiling = engine.saturating_sub(reserve.bytes);
        ceilings.extend(reserve.names.iter().map(|name| (name.as_str(), (ceiling, engine))));
    }
    if ceilings.is_empty() {
        return Ok(plan);
    }
    // What a ceiling leaves free is told to the planner as what computing takes.
    let lowered = |more: u64| {
        let lower = |component: &Component| {
            let Some((ceiling, engine)) = ceilings.get(component.name.as_str()) else { return component.clone() };
            let known = component.activation.filter(|activation| activation.basis != Basis::Unknown);
            let ceiling = ceiling.saturating_add(more).min(*engine);
            // No less than what is known: the plan that the ceiling lies under leaves that free.
            let bytes = usable.saturating_sub(ceiling);
            let basis = known.map_or(Basis::Estimated, |known| known.basis);
            Component { activation: Some(Activation { bytes, basis }), ..component.clone() }
        };
        mm_plan::plan(machine, &components.iter().map(lower).collect::<Vec<_>>(), policy)
    };
    let least = match lowered(0) {
        Err(Infeasible::NeverFits { smallest, .. } | Infeasible::NotNow { smallest, .. }) => {
            lowered(smallest.saturating_sub(free))
        }
        made => made,
    };
    Ok(least.unwrap_or(plan))
}
