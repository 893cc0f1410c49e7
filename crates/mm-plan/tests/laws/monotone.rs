//! Law 4: with more of anything, a request takes no longer, and what fitted still fits.

use crate::{
    effort::effort,
    generate::{Case, cost_case},
    run,
};
use mm_plan::{Component, ComponentPlan, Infeasible, Links, Plan};
use proptest::{collection::btree_set, prelude::*};
use std::collections::BTreeSet;

/// Shares of a base value, permille, ascending; neighbours that differ by little as well.
fn ladder() -> impl proptest::strategy::Strategy<Value = BTreeSet<u64>> {
    let steps = btree_set(1..3000u64, 2..5);
    (steps, 1..3000u64, 1..30u64).prop_map(|(mut steps, near, by)| {
        steps.extend([near, near + by]);
        steps
    })
}

/// Plans the case on every step; `set` puts the value in.
fn climbs(case: &Case, base: u64, ladder: &BTreeSet<u64>, set: impl Fn(&mut Case, u64)) {
    let mut before: Option<(u64, u64, String)> = None;
    for permille in ladder {
        // Zero would mean: not known.
        let value = (base * permille / 1000).max(1);
        let mut case = case.clone();
        set(&mut case, value);
        match (run(&case), &before) {
            (Ok(plan), _) => {
                let (now, outline) = (plan.predicted.as_ref().unwrap().request_ns, outline(&plan));
                if let Some((less, time, was)) = before {
                    assert!(now <= time, "{now} ns with {value}: {outline}; {time} ns with {less}: {was}");
                }
                before = Some((value, now, outline));
            }
            (Err(error), Some((less, ..))) => panic!("infeasible with {value}, not with {less}: {error}"),
            (Err(Infeasible::BadInput { text }), None) => panic!("{text}"),
            (Err(_), None) => {}
        }
    }
}

/// What a plan is, for people who look at a failure.
fn outline(plan: &Plan) -> String {
    let of = |c: &ComponentPlan| {
        let (residents, streamed) = (c.resident_count(), c.streamed_count());
        format!("{} {residents}+{streamed} {} slots{}", c.name, c.slots, if c.keep { " kept" } else { "" })
    };
    let components: Vec<String> = plan.components.iter().map(of).collect();
    let odd = plan.notes.iter().filter(|n| matches!(n.code.as_str(), "search_incomplete" | "cost_threshold_stands"));
    let odd: Vec<&str> = odd.map(|n| n.code.as_str()).collect();
    format!("{:?}, {}, host {} {}", plan.proof, components.join(", "), plan.peak.host, odd.join(" "))
}

fn set_links(case: &mut Case, change: impl Fn(&mut Links)) {
    change(case.machine.links.as_mut().unwrap());
}

/// What all components take on the device.
fn bytes(case: &Case) -> u64 {
    case.components.iter().map(Component::bytes).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(effort(200, 20_000)))]

    #[test]
    fn law_4_monotone_in_vram(case in cost_case(), ladder in ladder()) {
        climbs(&case, bytes(&case), &ladder, |case, value| case.machine.vram_free = Some(value));
    }

    #[test]
    fn law_4_monotone_in_ram(case in cost_case(), ladder in ladder()) {
        climbs(&case, case.machine.ram_available.max(1000), &ladder, |case, value| case.machine.ram_available = value);
    }

    #[test]
    fn law_4_monotone_in_the_caps_on_host_memory(case in cost_case(), ladder in ladder(), locked in any::<bool>()) {
        climbs(&case, case.machine.ram_available.max(1000), &ladder, |case, value| {
            if locked {
                case.machine.page_lock_limit = Some(value);
            } else {
                case.policy.ram_limit = Some(value);
            }
        });
    }

    #[test]
    fn law_4_monotone_in_the_link(case in cost_case(), ladder in ladder()) {
        let base = case.machine.links.unwrap().h2d;
        climbs(&case, base, &ladder, |case, value| set_links(case, |links| links.h2d = value));
    }

    #[test]
    fn law_4_monotone_in_staging(case in cost_case(), ladder in ladder()) {
        let base = case.machine.links.unwrap().h2d;
        climbs(&case, base, &ladder, |case, value| set_links(case, |links| links.staging = Some(value)));
    }

    #[test]
    fn law_4_monotone_in_the_disk(case in cost_case(), ladder in ladder()) {
        let mut case = case;
        // Less than all weights, so that the disk counts.
        case.machine.ram_available = case.machine.ram_available.min(bytes(&case) / 2).max(1);
        let base = case.machine.links.unwrap().h2d;
        climbs(&case, base, &ladder, |case, value| set_links(case, |links| links.disk = Some(value)));
    }
}
