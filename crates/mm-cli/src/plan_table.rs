//! A plan as tables and sentences.

use crate::size::show;
use crate::table::{Table, time};
use mm_plan::{Activation, Basis, ComponentPlan, HostTier, Note, Plan, Predicted, Proof};

/// All of it, for a terminal.
pub(crate) fn table(plan: &Plan) -> String {
    let budget = plan.budget.map_or("no device".into(), |budget| format!("{} free", show(budget)));
    let mut parts = vec![format!(
        "{}: at most {} on the device ({budget}), {} of host memory\n",
        plan.strategy,
        show(plan.peak.device),
        show(plan.peak.host)
    )];
    parts.extend(plan.predicted.as_ref().map(|predicted| promise(predicted, plan.proof)));
    parts.push(format!("\n{}", placements(plan)));
    parts.extend(plan.predicted.as_ref().map(|predicted| format!("\n{}", times(plan, predicted))));
    parts.push(format!("\n{}", phases(plan)));
    parts.extend(plan.notes.iter().map(|note| format!("\n- {}", sentence(note))));
    parts.concat()
}

/// A note as a line of a list.
pub(crate) fn sentence(note: &Note) -> String {
    match &note.component {
        Some(component) if !note.text.contains(component.as_str()) => format!("{component}: {note}"),
        _ => note.to_string(),
    }
}

/// What a request takes, and how sure that is.
fn promise(predicted: &Predicted, proof: Option<Proof>) -> String {
    format!(
        "predicted: {} per request, with these placements at least {}\n           {}\n",
        time(predicted.request_ns),
        time(predicted.lower_bound_ns),
        certainty(predicted, proof)
    )
}

/// How good a plan is known to be, and what that rests on.
pub(crate) fn certainty(predicted: &Predicted, proof: Option<Proof>) -> String {
    let proof = match proof {
        None => String::new(),
        Some(Proof::Optimal | Proof::Within { gap_permille: 0 }) => "nothing is faster; ".into(),
        Some(Proof::Within { gap_permille: gap }) => format!("at most {}.{} % could be gained; ", gap / 10, gap % 10),
    };
    format!("{proof}{}", basis_of_compute(predicted.compute))
}

fn basis_of_compute(basis: Basis) -> &'static str {
    match basis {
        Basis::Measured => "compute times are measured",
        Basis::Declared => "compute times are declared",
        Basis::Estimated => "compute times are estimated",
        Basis::Unknown => "compute times are unknown and count as zero",
    }
}

fn placements(plan: &Plan) -> Table {
    let mut table =
        Table::new(&["component", "strategy", ">outside blocks", ">resident", ">streamed", "slots", ">on device"]);
    for part in &plan.components {
        let name = part.same_as.as_ref().map_or(part.name.clone(), |same| format!("{} = {same}", part.name));
        table.row([
            name,
            part.strategy.to_string(),
            show(part.rest),
            part.resident_count().to_string(),
            part.streamed_count().to_string(),
            if part.slots == 0 { "-".into() } else { format!("{} × {}", part.slots, show(part.slot_bytes)) },
            show(part.engine_bytes),
        ]);
    }
    table
}

fn times(plan: &Plan, predicted: &Predicted) -> Table {
    let mut table =
        Table::new(&["component", ">passes", ">at least", ">loading", ">stalled", "between phases", "streams from"]);
    for times in &predicted.components {
        let Some(part) = plan.component(&times.name) else { continue };
        table.row([
            times.name.clone(),
            if times.pass_ns == 0 {
                times.passes.to_string()
            } else {
                format!("{} × {}", times.passes, time(times.pass_ns))
            },
            time_or_none(times.lower_bound_ns),
            time_or_none(times.load_ns),
            time_or_none(times.stall_ns),
            if part.keep { "stays".into() } else { "leaves".into() },
            tiers(part),
        ]);
    }
    table
}

fn time_or_none(ns: u64) -> String {
    if ns == 0 { "-".into() } else { time(ns) }
}

/// Where its streamed groups come from: `12 page-locked, 14 staged`.
fn tiers(part: &ComponentPlan) -> String {
    let streamed = || {
        let groups = part.stacks.iter().flat_map(|stack| stack.resident.iter().zip(&stack.host));
        groups.filter(|(resident, _)| !**resident).map(|(_, tier)| *tier)
    };
    let tiers = [
        (HostTier::PageLocked, "page-locked"),
        (HostTier::Staged, "staged"),
        (HostTier::Mapped, "mapped"),
        (HostTier::Pageable, "pageable"),
    ];
    let counts = tiers.map(|(tier, name)| (streamed().filter(|found| *found == tier).count(), name));
    let parts: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

fn phases(plan: &Plan) -> Table {
    let mut columns = vec!["active together", ">on device", ">left free"];
    let known = plan.predicted.is_some() || plan.phases.iter().any(|phase| phase.activation.is_some());
    if known {
        columns.push("of it for activations");
    }
    let mut table = Table::new(&columns);
    for phase in &plan.phases {
        let headroom = phase.headroom.map_or("no device".into(), show);
        let mut row = vec![phase.components.join(", "), show(phase.engine_bytes), headroom];
        if known {
            row.push(activation(phase.activation));
        }
        table.row(row);
    }
    table
}

fn activation(activation: Option<Activation>) -> String {
    let Some(Activation { bytes, basis }) = activation else { return "not known".into() };
    let basis = match basis {
        Basis::Measured => "measured",
        Basis::Declared => "declared",
        Basis::Estimated => "estimated",
        Basis::Unknown => "kept free, as it is not known",
    };
    format!("{}, {basis}", show(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_in_words() {
        let words = |compute, proof| {
            certainty(&Predicted { request_ns: 2, lower_bound_ns: 1, compute, components: Vec::new() }, proof)
        };
        let gap = |permille| Some(Proof::Within { gap_permille: permille });
        assert_eq!(words(Basis::Measured, None), "compute times are measured");
        for proof in [Some(Proof::Optimal), gap(0)] {
            assert_eq!(words(Basis::Declared, proof), "nothing is faster; compute times are declared");
        }
        for (permille, percent) in [(3, "0.3"), (30, "3.0"), (999, "99.9"), (u64::MAX, "1844674407370955161.5")] {
            let text = format!("at most {percent} % could be gained; compute times are unknown and count as zero");
            assert_eq!(words(Basis::Unknown, gap(permille)), text);
        }
    }
}
