//! Where the host keeps each group, within the host's limit.

use crate::{
    ComponentPlan, DeviceKind, HostTier, Machine, Note, Policy,
    input::Input,
    notes::{capped, size},
    place,
};
use alloc::{format, vec::Vec};

/// Page-locks what streams, where that buys something and fits. Returns the page-locked bytes.
///
/// A page-locked copy has the group's device bytes: casts happen while host memory is filled.
pub(crate) fn assign(
    machine: &Machine,
    policy: &Policy,
    low_cpu_mem: bool,
    input: &Input<'_>,
    plans: &mut [ComponentPlan],
    notes: &mut Vec<Note>,
) -> u64 {
    if !plans.iter().any(|plan| plan.streamed_count() > 0) {
        return 0;
    }
    if machine.vram_free.is_none() || machine.device == DeviceKind::Host {
        let text = "streamed groups stay mapped: without a link to a device page-locking buys nothing.";
        notes.push(Note::new("host_mapped", &[], text));
        return 0;
    }
    if low_cpu_mem {
        let text = "streamed groups stay mapped: low_cpu_mem leaves out full page-locked copies.";
        notes.push(Note::new("host_low_cpu_mem", &[], text));
        return 0;
    }
    let limit = policy.ram_limit.or((machine.ram_available > 0).then_some(machine.ram_available));
    let limit = limit.into_iter().chain(machine.page_lock_limit).min();
    let wanted = page_locked(input, plans);
    let mut locked = wanted;
    // From the last: what runs first starts from page-locked memory.
    'fits: for (entry, plan) in input.entries.iter().zip(plans.iter_mut()).rev() {
        for (stack, groups) in plan.stacks.iter_mut().zip(&entry.component.stacks).rev() {
            for (tier, group) in stack.host.iter_mut().zip(&groups.groups).rev() {
                if limit.is_none_or(|limit| locked <= limit.into()) {
                    break 'fits;
                }
                if *tier == HostTier::PageLocked {
                    *tier = HostTier::Mapped;
                    locked -= place::group_bytes(group);
                }
            }
        }
    }
    let groups =
        plans.iter().flat_map(|p| &p.stacks).flat_map(|s| &s.host).filter(|t| **t == HostTier::PageLocked).count();
    let mut numbers =
        Vec::from([("wanted", capped(wanted)), ("page_locked", capped(locked)), ("groups", groups as u64)]);
    numbers.extend(limit.map(|limit| ("limit", limit)));
    let note = if locked < wanted {
        let text = format!(
            "{} of {} page-locked copies fit the host's limit of {}; the other streamed groups stay mapped.",
            size(locked),
            size(wanted),
            size(limit.unwrap_or(0)),
        );
        Note::new("host_limit", &numbers, text)
    } else {
        Note::new(
            "host_page_locked",
            &numbers,
            format!("page-locked copies of all streamed groups take {}.", size(locked)),
        )
    };
    notes.push(note);
    capped(locked)
}

/// Marks every streamed group page-locked and sums them up.
fn page_locked(input: &Input<'_>, plans: &mut [ComponentPlan]) -> u128 {
    let mut sum = 0;
    for (entry, plan) in input.entries.iter().zip(plans) {
        for (stack, groups) in plan.stacks.iter_mut().zip(&entry.component.stacks) {
            for ((tier, resident), group) in stack.host.iter_mut().zip(&stack.resident).zip(&groups.groups) {
                if !resident {
                    *tier = HostTier::PageLocked;
                    sum += place::group_bytes(group);
                }
            }
        }
    }
    sum
}
