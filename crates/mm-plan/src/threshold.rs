//! Rule `Threshold`: which strategy `Auto` stands for, to the letter of diffusers-mm.

use crate::{
    Machine, Note, Policy, Strategy,
    input::{self, Input},
    notes::{capped, factor, size},
    place,
};
use alloc::{format, vec::Vec};

/// What the rule looks at.
struct Weights {
    /// All components, aliases once.
    total: u128,
    largest: u128,
    /// Blocks of the main stack of the largest component; of components tied for largest, the most.
    blocks: usize,
}

impl Weights {
    fn of(input: &Input<'_>) -> Self {
        let sizes: Vec<(u128, usize)> = input
            .holders()
            .map(|i| {
                let component = input.entries[i].component;
                let main = place::main_stack(component).filter(|_| input::streamable(component));
                (input::bytes(component), main.map_or(0, |main| component.stacks[main].groups.len()))
            })
            .collect();
        let (largest, blocks) = sizes.iter().copied().max().unwrap_or_default();
        Self { total: sizes.iter().map(|(bytes, _)| bytes).sum(), largest, blocks }
    }
}

/// All device bytes of the weights, aliases once.
pub(crate) fn weights(input: &Input<'_>) -> u128 {
    Weights::of(input).total
}

/// What `Auto` resolves to, and why.
pub(crate) fn resolve(machine: &Machine, input: &Input<'_>, policy: &Policy, notes: &mut Vec<Note>) -> Strategy {
    let Some(free) = machine.vram_free else {
        let text = "group_offload: this machine has no device, so nothing is tuned.";
        notes.push(Note::new("auto_no_device", &[], text));
        return Strategy::GroupOffload;
    };
    if free == 0 {
        let text = "group_offload: no device memory is free, so nothing is tuned.";
        notes.push(Note::new("auto_no_free_vram", &[("free", 0)], text));
        return Strategy::GroupOffload;
    }
    if input.entries.is_empty() {
        return tier(free, policy, notes);
    }
    let weights = Weights::of(input);
    let mut fits = |what: &str, strategy: Strategy, bytes: u128, permille: u64| {
        let need = bytes.saturating_mul(permille.into());
        let fits = need <= u128::from(free) * 1000;
        // Rounded up, it compares with whole bytes exactly as the product does.
        let need = need.div_ceil(1000);
        let (code, verdict) = if fits { ("", "fits") } else { ("_rejected", "does not fit") };
        let product = format!("{what} of {} × {} = {}", size(bytes), factor(permille), size(need));
        let text = format!("{strategy}: {product} {verdict} {} free.", size(free));
        let numbers = [("bytes", capped(bytes)), ("factor_permille", permille), ("need", capped(need)), ("free", free)];
        notes.push(Note::new(&format!("auto_{strategy}{code}"), &numbers, text));
        fits
    };
    if fits("a total", Strategy::NoOffload, weights.total, policy.no_offload_factor) {
        return Strategy::NoOffload;
    }
    if fits("a largest component", Strategy::ModelOffload, weights.largest, policy.model_offload_factor) {
        return Strategy::ModelOffload;
    }
    let numbers = [("blocks", weights.blocks as u64), ("min_blocks", policy.min_blocks.into())];
    let blocks = format!("the largest component's main stack has {} blocks", weights.blocks);
    if weights.blocks as u64 >= policy.min_blocks.into() {
        let text = format!("block_pin: {blocks}, {} are enough.", policy.min_blocks);
        notes.push(Note::new("auto_block_pin", &numbers, text));
        Strategy::BlockPin
    } else {
        let text = format!("group_offload: {blocks}, block_pin wants {}.", policy.min_blocks);
        notes.push(Note::new("auto_block_pin_rejected", &numbers, text));
        Strategy::GroupOffload
    }
}

/// No components known: by the device's size alone.
fn tier(free: u64, policy: &Policy, notes: &mut Vec<Note>) -> Strategy {
    let strategy = if free >= policy.tier_no_offload {
        Strategy::NoOffload
    } else if free >= policy.tier_model_offload {
        Strategy::ModelOffload
    } else {
        Strategy::GroupOffload
    };
    let numbers = [
        ("free", free),
        ("tier_no_offload", policy.tier_no_offload),
        ("tier_model_offload", policy.tier_model_offload),
    ];
    let text = format!(
        "{strategy}: no components are known and {} are free; no_offload takes {}, model_offload {}.",
        size(free),
        size(policy.tier_no_offload),
        size(policy.tier_model_offload),
    );
    notes.push(Note::new("auto_tier", &numbers, text));
    strategy
}

/// Whether full page-locked copies are left out. `Auto` tunes it where it streams; otherwise the policy stands.
pub(crate) fn low_cpu_mem(
    machine: &Machine,
    policy: &Policy,
    auto: Option<Strategy>,
    weights: u128,
    notes: &mut Vec<Note>,
) -> bool {
    let streams = matches!(auto, Some(Strategy::BlockPin | Strategy::GroupOffload));
    let free = machine.vram_free.unwrap_or(0);
    if !streams || free == 0 || machine.ram_available == 0 || weights == 0 {
        return policy.low_cpu_mem;
    }
    let need = weights + u128::from(policy.page_lock_headroom);
    let low = need > machine.ram_available.into();
    let numbers = [
        ("weights", capped(weights)),
        ("headroom", policy.page_lock_headroom),
        ("need", capped(need)),
        ("ram_available", machine.ram_available),
    ];
    let (code, verdict) = if low {
        ("low_cpu_mem_on", "no full page-locked copies")
    } else {
        ("low_cpu_mem_off", "full page-locked copies")
    };
    let text = format!(
        "{verdict}: weights of {} and {} headroom need {} of the {} RAM available.",
        size(weights),
        size(policy.page_lock_headroom),
        size(need),
        size(machine.ram_available),
    );
    notes.push(Note::new(code, &numbers, text));
    low
}

/// Warns where the weights hardly fit the RAM.
pub(crate) fn warn_ram(machine: &Machine, policy: &Policy, weights: u128, notes: &mut Vec<Note>) {
    let limit = u128::from(machine.ram_available) * u128::from(policy.ram_factor);
    if machine.ram_available == 0 || weights.saturating_mul(1000) <= limit {
        return;
    }
    let numbers = [
        ("weights", capped(weights)),
        ("ram_available", machine.ram_available),
        ("factor_permille", policy.ram_factor),
        ("limit", capped(limit / 1000)),
    ];
    let text = format!(
        "warning: weights of {} exceed {} × {} of RAM available = {}; expect the system to page.",
        size(weights),
        factor(policy.ram_factor),
        size(machine.ram_available),
        size(limit / 1000),
    );
    notes.push(Note::new("ram_warning", &numbers, text));
}
