//! What rule `Cost` may take: device bytes in each phase, page-locked bytes on the host.

use crate::{
    Activation, Basis, DeviceKind, Machine, Plan, Policy,
    candidates::Slabs,
    frontier::{Frontier, Terms},
    input::Input,
    part::Part,
    rates::RING,
};
use alloc::{vec, vec::Vec};
use core::cmp::Reverse;

/// Up to so many components are tried more thoroughly.
pub(crate) const FEW: usize = 6;

/// A phase's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    /// Bytes for weights and slots.
    pub(crate) room: u64,
    /// What activations are expected to take; basis `Unknown`: reserved.
    pub(crate) activation: Option<Activation>,
    /// Bytes of the components that are active.
    pub(crate) active: u128,
    /// What was to be reserved for activations that are not known, and what of it is left free.
    pub(crate) reserve: Option<(u64, u64)>,
}

/// All phases.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) phases: Vec<Phase>,
    pub(crate) rooms: Vec<u64>,
}

impl Budget {
    /// On a machine for which rule `Threshold` made the plan `baseline`: what that holds is always there, so that what is
    /// reserved for unknown activations never makes the plan slower than that one.
    pub(crate) fn of(
        baseline: &Plan,
        machine: &Machine,
        policy: &Policy,
        input: &Input<'_>,
        frontiers: &[Frontier<'_, '_>],
    ) -> Self {
        let free = baseline.budget.unwrap_or(0);
        let place = |holder: &usize| frontiers.binary_search_by_key(holder, |f| f.part.index).ok();
        // Kept by order of the policy, also where it is not active.
        let pinned: Vec<usize> = (0..frontiers.len()).filter(|i| frontiers[*i].pinned()).collect();
        let phases: Vec<Phase> = input
            .phases
            .iter()
            .zip(&baseline.phases)
            .map(|(phase, threshold)| {
                let active: Vec<usize> = phase.holders.iter().filter_map(place).collect();
                let mut there = active.clone();
                there.extend(pinned.iter().filter(|i| !active.contains(i)));
                let sum = |bytes: &dyn Fn(&Frontier<'_, '_>) -> u128| {
                    there.iter().map(|i| bytes(&frontiers[*i])).sum::<u128>()
                };
                let least = capped(sum(&|f| f.least().into()));
                let streaming = capped(sum(&|f| f.streaming()));
                let weights = active.iter().map(|i| frontiers[*i].part.bytes()).sum::<u128>();
                let hard = free.saturating_sub(policy.reserve).saturating_sub(phase.activation);
                let unknown = phase
                    .entries
                    .iter()
                    .any(|i| input.entries[*i].component.activation.is_none_or(|a| a.basis == Basis::Unknown));
                let wanted = policy.working_set_on(&machine.os).min(capped(weights / 2));
                let reserve = Some(wanted).filter(|wanted| unknown && *wanted > phase.activation);
                let soft = free.saturating_sub(policy.reserve).saturating_sub(reserve.unwrap_or(phase.activation));
                let room = soft.max(hard.min(streaming)).max(hard.min(least)).max(threshold.engine_bytes);
                let left = free.saturating_sub(policy.reserve).saturating_sub(room);
                let activation = match reserve {
                    Some(wanted) => Some(Activation { bytes: wanted.min(left), basis: Basis::Unknown }),
                    None => phase.known,
                };
                Phase { room, activation, active: weights, reserve: reserve.map(|wanted| (wanted, wanted.min(left))) }
            })
            .collect();
        Self { rooms: phases.iter().map(|phase| phase.room).collect(), phases }
    }
}

/// What the host may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Bytes of page-locked copies that all components may have.
    pub(crate) locked: u64,
    /// Groups without one go through the ring of staging buffers, else straight from the mapping.
    pub(crate) ring: bool,
}

/// The ways to use the host: with the ring where it fits; without it where it does not, or where what it takes matters.
pub(crate) fn hosts(machine: &Machine, policy: &Policy, weights: u128) -> Vec<Host> {
    if machine.device == DeviceKind::Host {
        return vec![Host { locked: 0, ring: false }];
    }
    let lockable = machine.page_lock_limit.unwrap_or(u64::MAX);
    let available = Some(machine.ram_available).filter(|ram| *ram > 0);
    let fits = policy.ram_limit.or(available).is_none_or(|limit| RING <= limit) && RING <= lockable;
    let headroom = if policy.low_cpu_mem { policy.page_lock_headroom } else { 0 };
    let limit = match (policy.ram_limit, available) {
        (Some(limit), _) => limit,
        (None, Some(available)) => available.saturating_sub(headroom),
        (None, None) if policy.low_cpu_mem => 0,
        (None, None) => u64::MAX,
    };
    let limit = limit.min(lockable);
    let with = Host { locked: limit.saturating_sub(RING), ring: true };
    let without = Host { locked: limit, ring: false };
    let matters = weights > with.locked.into() && (limit < 8 * RING || weights <= limit.into());
    match (fits, matters) {
        (true, false) => vec![with],
        (true, true) => vec![with, without],
        (false, _) => vec![without],
    }
}

/// Ways to share page-locked memory out among components: what each may have at most. They depend on the components alone,
/// and with more memory no share gets smaller.
///
/// Where there is enough for all there is but one. Else each gets its part by bytes and passes, or, where few share, those
/// with most passes come before the others, with all their bytes or with half of them.
pub(crate) fn shares(parts: &[&Part<'_>], host: u64) -> Vec<Vec<u64>> {
    let bytes = |part: &&Part<'_>| part.groups.iter().map(|(_, facts)| facts.bytes).sum::<u128>();
    let all: Vec<u128> = parts.iter().map(bytes).collect();
    if all.iter().sum::<u128>() <= host.into() {
        return vec![all.iter().map(|bytes| *bytes as u64).collect()];
    }
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|i| (Reverse(parts[*i].passes()), Reverse(all[*i]), *i));
    let mut ways = Vec::new();
    for first in [1, 2] {
        let (mut shares, mut left) = (vec![0; parts.len()], u128::from(host));
        // First the part of them that comes first, then what the others want, then the rest of it.
        for round in [first, 1] {
            for i in &order {
                let more = (all[*i] / round).saturating_sub(shares[*i]).min(left);
                shares[*i] += more;
                left -= more;
            }
        }
        ways.push(shares);
    }
    let weight = |i: usize| all[i].saturating_mul(parts[i].passes().into());
    let total = (0..parts.len()).map(weight).fold(0, u128::saturating_add).max(1);
    ways.push((0..parts.len()).map(|i| (u128::from(host).saturating_mul(weight(i)) / total).min(all[i])).collect());
    ways.dedup();
    if parts.len() > FEW {
        ways.drain(..ways.len() - 1);
    }
    ways.into_iter().map(|shares| shares.into_iter().map(capped).collect()).collect()
}

/// A component's terms under the policy.
pub(crate) fn terms(part: &Part<'_>, policy: &Policy, host: Host) -> Terms {
    let name = part.component.name.as_str();
    let asked = *policy.strategies.get(name).unwrap_or(&policy.strategy);
    let resident = policy.resident.get(name).copied();
    let slot_cap = if policy.use_stream { u32::MAX } else { 1 };
    Terms { asked, resident, slot_cap, lock_cap: host.locked, ring: host.ring }
}

/// Device bytes with every group streamed through two slots, or whole where nothing streams.
pub(crate) fn streaming(part: &Part<'_>, slots: u32) -> u128 {
    if !part.streamable {
        return part.bytes();
    }
    let count = part.groups.len() as u32;
    let slot = Slabs::of(part).slot(&vec![true; part.groups.len()]);
    u128::from(part.component.rest) + slot * u128::from(slots.min(2).min(count))
}

fn capped(bytes: u128) -> u64 {
    crate::notes::capped(bytes)
}
