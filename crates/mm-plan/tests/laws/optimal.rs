//! Law 5: no placement is faster, by the twin's word; and `Threshold` never is.

use crate::{
    effort::effort,
    generate::{Case, cost_case},
    need,
    replay::{placed, size},
    run,
    schedule::{copied_times, request},
    twin::{self, Best},
    with_free,
};
use mm_plan::{
    Activation, Basis, Component, DType, DeviceKind, Group, Infeasible, Links, Machine, Plan, Policy, Proof, Rule,
    Slab, Stack,
};
use proptest::{collection::vec, prelude::*, sample::select, strategy::Strategy as Generator};

fn group() -> impl Generator<Value = Group> {
    let slab = |dtype| (1..1000u64).prop_map(move |bytes| Slab { dtype, bytes });
    let slabs = prop_oneof![
        3 => slab(DType::Bf16).prop_map(|one| vec![one]),
        1 => (slab(DType::Bf16), slab(DType::F32)).prop_map(|(one, other)| vec![one, other]),
    ];
    (slabs, 1..1500u64, 0..1500u64).prop_map(|(slabs, host_bytes, compute)| Group {
        slabs,
        host_bytes,
        compute_ns: Some(compute),
    })
}

/// Up to ten groups in one to three components, sizes and compute times all different; memory for a part of them.
fn small_case() -> impl Generator<Value = Case> {
    let cuts = prop_oneof![Just((0, 0)), (0..11usize).prop_map(|a| (a, a)), (0..11usize, 0..11usize)];
    let about = (0..400u64, prop_oneof![0..4u32, 0..12u32], prop::option::of(0..2u32), prop::option::of(0..300u64));
    let links = (select(vec![100_000_000, 400_000_000, 1_000_000_000, 3_000_000_000]), select(vec![0, 30]));
    let disk = prop::option::weighted(0.2, Just(150_000_000));
    let budget = (prop_oneof![1 => 0..1300u64, 3 => 150..900u64], 0..200u64, any::<prop::sample::Index>());
    let alias = prop::option::weighted(0.2, (prop::option::of(0..2u32), 0..5u32));
    (vec(group(), 1..11), cuts, vec(about, 3), (links, disk), budget, alias, any::<bool>()).prop_map(
        |(groups, (a, b), abouts, ((h2d, copy_fixed_ns), disk), (share, reserve, stacks), alias, use_stream)| {
            let (a, b) = (a.min(b).min(groups.len()), b.max(a).min(groups.len()));
            let parts = [&groups[..a], &groups[a..b], &groups[b..]];
            let mut components = Vec::new();
            for (i, (part, (rest, passes, phase, activation))) in parts.into_iter().zip(abouts).enumerate() {
                if part.is_empty() {
                    continue;
                }
                let (first, second) = part.split_at(stacks.index(part.len() + 1));
                let stack = |name: &str, groups: &[Group]| Stack { name: name.into(), groups: groups.to_vec() };
                let activation = activation.map(|bytes| Activation { bytes, basis: Basis::Declared });
                let stacks = vec![stack("first", first), stack("second", second)];
                let name = ["transformer", "text_encoder", "vae"][i];
                components.push(Component { passes, phase, activation, ..Component::blocks(name, rest, stacks) });
            }
            let all: u64 = components.iter().map(Component::bytes).sum();
            if let Some((phase, passes)) = alias {
                let same_as = Some(components[0].name.clone());
                components.push(Component { same_as, phase, passes, ..Component::whole("again", 5) });
            }
            let machine = Machine {
                device: DeviceKind::Host,
                vram_free: Some(all * share / 1000 + reserve),
                ram_available: 1,
                links: Some(Links { h2d, staging: None, disk, copy_fixed_ns }),
                ..Machine::default()
            };
            let policy = Policy { working_set: Some(0), reserve, use_stream, ..Policy::default() };
            Case { machine, components, policy }
        },
    )
}

/// A plan beside the twin's best; `None`: both say that nothing fits.
fn both(case: &Case) -> Option<(Plan, Best)> {
    match (run(case), twin::best(case)) {
        (Ok(plan), Some(best)) => Some((plan, best)),
        (Err(Infeasible::NeverFits { .. } | Infeasible::NotNow { .. }), None) => None,
        (plan, best) => panic!("{best:?}, but {plan:?}"),
    }
}

fn compare(case: &Case) {
    let Some((plan, best)) = both(case) else { return };
    assert_eq!(plan.rule, Rule::Cost);
    let time = u128::from(plan.predicted.as_ref().unwrap().request_ns);
    assert!(time >= best.time, "{time} ns, faster than anything: {best:?}");
    assert!(time * 1000 <= best.time * 1001, "{time} ns, best {best:?}");
    assert_eq!(time, best.time, "within the law, but not the best");
    assert_eq!(plan.proof, Some(Proof::Optimal));
}

/// Bytes that a plan copies in a request.
fn traffic(case: &Case, plan: &Plan) -> u64 {
    let visits = request(case, plan).visits.into_iter().map(|visit| {
        let component = case.components.iter().find(|c| c.name == visit.component).unwrap();
        let planned = plan.component(&visit.component).unwrap();
        let streamed: u64 =
            placed(component, planned).iter().filter(|(_, resident)| !resident).map(|(g, _)| size(g)).sum();
        let times = copied_times(planned.streamed_count(), planned.slots as usize, visit.passes, planned.keep);
        streamed * times + if planned.keep { 0 } else { component.bytes() - streamed }
    });
    visits.sum()
}

/// A plan is never slower than the other rule's.
fn beats_threshold(case: &Case) {
    let mut other = case.clone();
    other.policy.rule = Some(Rule::Threshold);
    let (Ok(plan), Ok(other)) = (run(case), run(&other)) else {
        return;
    };
    let (time, other) = (plan.predicted.unwrap().request_ns, other.predicted.unwrap().request_ns);
    assert!(time <= other, "{time} ns, by threshold {other} ns");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(effort(300, 10_000)))]

    #[test]
    fn law_5_optimal(case in small_case()) {
        compare(&case);
    }

    /// With just what the plan takes nothing changes; a byte less is a byte less.
    #[test]
    fn law_5_optimal_to_the_byte(case in small_case()) {
        let need = run(&case).ok().and_then(|plan| need(&case, &plan));
        for free in need.into_iter().flat_map(|need| [need, need.saturating_sub(1)]) {
            compare(&with_free(&case, free));
        }
    }

    #[test]
    fn of_equally_fast_placements_the_one_that_copies_least_then_the_smallest(case in small_case()) {
        if let Some((plan, best)) = both(&case) {
            let time = u128::from(plan.predicted.as_ref().unwrap().request_ns);
            let bytes = plan.components.iter().map(|c| c.engine_bytes).sum::<u64>();
            prop_assert!(time > best.time || (traffic(&case, &plan), bytes) == (best.traffic, best.bytes), "{best:?}");
        }
    }

    #[test]
    fn never_slower_than_threshold(case in prop_oneof![small_case(), cost_case()]) {
        beats_threshold(&case);
    }
}
