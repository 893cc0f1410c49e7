//! Law 1: in each phase engine bytes, reserve and activation fit the free VRAM; what does not is demoted.

use crate::{
    Infeasible, Machine, Note, Strategy,
    input::{Input, Phase},
    notes::{capped, size},
    place::Placement,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::ToString,
    vec::Vec,
};
use core::cmp::Reverse;

/// Placements by entry; aliases have none.
pub(crate) type Placements<'a> = BTreeMap<usize, Placement<'a>>;

/// Components that may still be demoted, the one with the most resident bytes last, ties by name.
type Candidates<'a> = BTreeSet<(u128, Reverse<&'a str>, usize)>;

/// Bytes of everything that stays on the device in all phases.
pub(crate) fn pool(placements: &Placements<'_>, bytes: impl Fn(usize) -> u128) -> u128 {
    placements.iter().filter(|(_, p)| p.strategy == Strategy::NoOffload).map(|(i, _)| bytes(*i)).sum()
}

/// Bytes on the device in a phase, given the bytes of the pool.
pub(crate) fn engine_bytes(
    phase: &Phase,
    placements: &Placements<'_>,
    pool: u128,
    bytes: impl Fn(usize) -> u128,
) -> u128 {
    let active = phase.holders.iter().filter(|i| placements[i].strategy != Strategy::NoOffload);
    pool + active.map(|i| bytes(*i)).sum::<u128>()
}

/// Demotes until every phase fits. Without a device nothing bounds it.
pub(crate) fn fit(
    machine: &Machine,
    reserve: u64,
    input: &Input<'_>,
    placements: &mut Placements<'_>,
    notes: &mut Vec<Note>,
) -> Result<(), Infeasible> {
    let Some(free) = machine.vram_free else { return Ok(()) };
    let Some((mut phase, mut least)) = worst(reserve, input, placements) else { return Ok(()) };
    if least > free.into() && release_pool(placements) {
        let numbers = [("need", capped(least)), ("free", free)];
        let text = format!(
            "no_offload gives way to model_offload: keeping all components takes {} at the least, {} are free.",
            size(least),
            size(free),
        );
        notes.push(Note::new("no_offload_released", &numbers, text));
        (phase, least) = worst(reserve, input, placements).unwrap_or((phase, least));
    }
    if least > free.into() {
        return Err(infeasible(machine, free, phase, least, input, placements));
    }
    let mut kept = pool(placements, |i| placements[&i].footprint().total);
    for phase in &input.phases {
        let engine = engine_bytes(phase, placements, kept, |i| placements[&i].footprint().total);
        let need = engine + u128::from(reserve) + u128::from(phase.activation);
        if need > free.into() {
            notes.push(over_budget(phase, input, engine, reserve, free));
            demote(phase, need - u128::from(free), placements, notes);
            kept = pool(placements, |i| placements[&i].footprint().total);
        }
    }
    Ok(())
}

/// The phase that needs most even with everything demoted, and what it needs, reserves included.
fn worst<'i>(reserve: u64, input: &'i Input<'_>, placements: &Placements<'_>) -> Option<(&'i Phase, u128)> {
    let least: BTreeMap<usize, u128> = placements.iter().map(|(i, p)| (*i, p.minimum())).collect();
    let pool = pool(placements, |i| least[&i]);
    let needs = input.phases.iter().map(|phase| {
        let bytes = engine_bytes(phase, placements, pool, |i| least[&i]);
        (phase, bytes + u128::from(reserve) + u128::from(phase.activation))
    });
    // Of equals the first: max_by_key would take the last.
    needs.reduce(|worst, next| if next.1 > worst.1 { next } else { worst })
}

/// What `Auto` keeps on the device in all phases leaves it between them. False: nothing was kept.
fn release_pool(placements: &mut Placements<'_>) -> bool {
    let mut released = false;
    for placement in placements.values_mut().filter(|p| p.strategy == Strategy::NoOffload && !p.firm) {
        placement.strategy = Strategy::ModelOffload;
        released = true;
    }
    released
}

fn infeasible(
    machine: &Machine,
    free: u64,
    phase: &Phase,
    least: u128,
    input: &Input<'_>,
    placements: &Placements<'_>,
) -> Infeasible {
    let kept = placements.iter().filter(|(_, p)| p.strategy == Strategy::NoOffload).map(|(i, _)| i);
    let on_device = phase.holders.iter().chain(kept).map(|i| &placements[i]);
    let component = on_device
        .max_by_key(|p| (p.minimum(), Reverse(p.component.name.as_str())))
        .map(|p| p.component.name.clone())
        .or_else(|| phase.entries.first().map(|i| input.entries[*i].component.name.to_string()))
        .unwrap_or_default();
    let total = machine.vram_total.unwrap_or(free).max(free);
    let (need, smallest) = (capped(least), capped(least));
    if least <= total.into() {
        Infeasible::NotNow { component, need, have: free, smallest }
    } else {
        Infeasible::NeverFits { component, need, have: total, smallest }
    }
}

/// Frees `over` bytes in this phase; `worst` has shown that it can be done.
fn demote(phase: &Phase, mut over: u128, placements: &mut Placements<'_>, notes: &mut Vec<Note>) {
    let kept = placements.iter().filter(|(_, p)| p.strategy == Strategy::NoOffload).map(|(i, _)| i);
    let on_device: BTreeSet<usize> = kept.chain(&phase.holders).copied().filter(|i| !placements[i].firm).collect();
    let before: Vec<(usize, Placement<'_>)> = on_device.iter().map(|i| (*i, placements[i].clone())).collect();
    let mut residents: Candidates<'_> = before.iter().map(|(i, p)| candidate(*i, p)).collect();
    // Slots are only taken once no residents are left to take.
    let mut slots = Candidates::new();
    while over > 0 {
        let from_residents = residents.pop_last();
        let Some((_, _, index)) = from_residents.or_else(|| slots.pop_last()) else { break };
        let Some(placement) = placements.get_mut(&index) else { break };
        let total = placement.footprint().total;
        if from_residents.is_none() {
            placement.cap_slots(1);
            if placement.footprint().total == total {
                placement.lower();
            }
        } else if !placement.lower() {
            if placement.slot_cap > 1 {
                slots.insert(candidate(index, placement));
            }
            continue;
        }
        over = over.saturating_sub(total - placement.footprint().total);
        residents.insert(candidate(index, placement));
    }
    for (index, before) in before {
        notes.extend(demoted(&before, &placements[&index]));
    }
}

fn candidate<'a>(index: usize, placement: &Placement<'a>) -> (u128, Reverse<&'a str>, usize) {
    (placement.footprint().resident, Reverse(placement.component.name.as_str()), index)
}

fn over_budget(phase: &Phase, input: &Input<'_>, engine: u128, reserve: u64, free: u64) -> Note {
    let need = engine + u128::from(reserve) + u128::from(phase.activation);
    let numbers = [
        ("engine_bytes", capped(engine)),
        ("reserve", reserve),
        ("activation", phase.activation),
        ("need", capped(need)),
        ("free", free),
    ];
    let names: Vec<&str> = phase.entries.iter().map(|i| input.entries[*i].component.name.as_str()).collect();
    let text = format!(
        "while {} {} active, {} of weights and slots, {} reserve and {} activation exceed the {} free: \
         groups are demoted.",
        names.join(", "),
        if names.len() == 1 { "is" } else { "are" },
        size(engine),
        size(reserve),
        size(phase.activation),
        size(free),
    );
    Note::new("phase_over_budget", &numbers, text)
}

fn demoted(before: &Placement<'_>, after: &Placement<'_>) -> Option<Note> {
    let (was, is) = (before.footprint(), after.footprint());
    if was.total == is.total {
        return None;
    }
    let name = after.component.name.as_str();
    let (from, to) = (before.resident_count(), after.resident_count());
    let numbers = [
        ("residents_before", from as u64),
        ("residents_after", to as u64),
        ("slots_before", was.slots.into()),
        ("slots_after", is.slots.into()),
        ("engine_bytes_before", capped(was.total)),
        ("engine_bytes_after", capped(is.total)),
    ];
    let text = format!(
        "{name} keeps {to} of {from} resident groups and {} slots: {} instead of {}.",
        is.slots,
        size(is.total),
        size(was.total),
    );
    Some(Note::new("demoted", &numbers, text).about(name))
}
