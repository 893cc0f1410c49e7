//! Law 8 for rule `Cost`: its notes against the input, the plan's flags, the replay, and plans made anew.

use crate::{
    explained::has,
    generate::{Case, RING},
    replay::{active, phases, placed, size, tiers},
    run,
};
use mm_plan::{Basis, Component, HostTier, Note, Plan, Proof, Rule, Strategy, simulate};

const GIB: u64 = 1 << 30;

fn component<'a>(case: &'a Case, name: &str) -> &'a Component {
    case.components.iter().find(|c| c.name == name).unwrap()
}

fn holders(case: &Case) -> impl Iterator<Item = &Component> {
    case.components.iter().filter(|c| c.same_as.is_none())
}

fn request_ns(plan: &Plan) -> u64 {
    plan.predicted.as_ref().unwrap().request_ns
}

fn passes(plan: &Plan, name: &str) -> u64 {
    plan.predicted.as_ref().unwrap().components.iter().find(|c| c.name == name).unwrap().passes
}

/// Bytes of streamed groups in page-locked copies, and how many groups are in each tier.
fn streamed(case: &Case, plan: &Plan) -> (u64, [u64; 3]) {
    let (mut locked, mut count) = (0, [0; 3]);
    for component in holders(case) {
        let planned = plan.component(&component.name).unwrap();
        for ((group, resident), tier) in placed(component, planned).into_iter().zip(tiers(planned)) {
            match tier {
                _ if resident => continue,
                HostTier::PageLocked => (locked, count[0]) = (locked + size(group), count[0] + 1),
                HostTier::Staged => count[1] += 1,
                _ => count[2] += 1,
            }
        }
    }
    (locked, count)
}

/// Computing it takes time that no group has.
fn not_counted(plan: &Plan, component: &Component) -> bool {
    passes(plan, &component.name) > 0 && component.groups().next().is_none() && component.rest > 0
}

/// How rich a strategy is.
fn rank(strategy: Strategy) -> u32 {
    match strategy {
        Strategy::NoOffload => 3,
        Strategy::ModelOffload => 2,
        Strategy::BlockPin => 1,
        _ => 0,
    }
}

/// Every decision has its note.
pub(crate) fn explained(case: &Case, plan: &Plan) {
    let has = |code: &str, name: Option<&str>| has(plan, code, name);
    assert!(has("cost_request", None) && plan.proof.is_some());
    assert!(has("more_vram", None));
    assert_eq!(has("more_ram", None), case.machine.ram_available > 0);
    let works = simulate(&case.machine, &case.components, plan).unwrap().busy != Default::default();
    assert_eq!(plan.notes.iter().any(|n| n.code.starts_with("bottleneck_")), works);
    let streams = plan.components.iter().any(|c| c.streamed_count() > 0);
    assert_eq!(plan.notes.iter().any(|n| n.code.starts_with("host_")), streams);
    let computed = holders(case).filter(|c| passes(plan, &c.name) > 0);
    let unknown = computed.flat_map(Component::groups).any(|g| g.compute_ns.is_none());
    assert_eq!(has("compute_unknown", None), unknown);
    assert_eq!(has("compute_not_counted", None), holders(case).any(|c| not_counted(plan, c)));
    for component in holders(case) {
        let name = component.name.as_str();
        assert!(has("cost_placement", Some(name)));
        let strategy = plan.component(name).unwrap().strategy;
        let asked = *case.policy.strategies.get(name).unwrap_or(&case.policy.strategy);
        let free = asked == Strategy::Auto && !case.policy.resident.contains_key(name);
        if free && passes(plan, name) > 0 && rank(strategy) < rank(Strategy::NoOffload) {
            assert!(has("no_offload_rejected", Some(name)), "{name}: why not no_offload?");
        }
        assert!(asked == Strategy::Auto || asked == strategy);
    }
    for (number, phase) in plan.phases.iter().enumerate() {
        let told = plan.notes.iter().filter(|n| n.code.starts_with("activation_"));
        let told = told.filter(|n| n.numbers["phase"] == number as u64).count();
        let reserved = phase.activation.is_some_and(|a| a.basis == Basis::Unknown);
        assert_eq!(told, usize::from(reserved), "what is reserved in phase {number}");
    }
}

/// False: not a note of this rule.
pub(crate) fn rederive(case: &Case, plan: &Plan, note: &Note) -> bool {
    let n = |name: &str| *note.numbers.get(name).unwrap_or_else(|| panic!("{} has no `{name}`", note.code));
    let about = || plan.component(note.component.as_deref().unwrap()).unwrap();
    match note.code.as_str() {
        "cost_threshold_stands" => {
            assert_eq!(n("threshold_ns"), request_ns(plan));
            assert!(note.numbers.get("cost_ns").is_none_or(|cost| *cost > n("threshold_ns")));
        }
        "cost_request" => {
            let predicted = plan.predicted.as_ref().unwrap();
            assert_eq!((n("request_ns"), n("plan_bound_ns")), (predicted.request_ns, predicted.lower_bound_ns));
            assert!(n("lower_bound_ns") <= n("request_ns"), "a bound over all placements");
            let mut other = case.clone();
            other.policy.rule = Some(Rule::Threshold);
            assert_eq!(n("threshold_ns"), request_ns(&run(&other).unwrap()));
            assert_eq!(n("saved_ns"), n("threshold_ns") - n("request_ns"));
            match plan.proof.unwrap() {
                Proof::Optimal => {}
                Proof::Within { gap_permille } => {
                    let gap = u128::from(n("request_ns") - n("lower_bound_ns")) * 1000;
                    assert_eq!(u128::from(gap_permille), gap.div_ceil(n("request_ns").into()));
                    assert!(gap > 0);
                }
            }
        }
        "bottleneck_compute" | "bottleneck_link" | "bottleneck_staging" | "bottleneck_loading" => {
            let busy = simulate(&case.machine, &case.components, plan).unwrap().busy;
            let lanes = [busy.compute_ns, busy.copy_ns, busy.staging_ns, busy.load_ns];
            assert_eq!(["compute_ns", "copy_ns", "staging_ns", "load_ns"].map(n), lanes);
            let named = ["compute", "link", "staging", "loading"].iter().position(|l| note.code.ends_with(l)).unwrap();
            assert_eq!(lanes[named], *lanes.iter().max().unwrap());
            assert_eq!(n("request_ns"), request_ns(plan));
        }
        "search_incomplete" => assert!(matches!(plan.proof, Some(Proof::Within { .. }))),
        "compute_unknown" => {
            let computed = || holders(case).filter(|c| passes(plan, &c.name) > 0).flat_map(Component::groups);
            let unknown = computed().filter(|g| g.compute_ns.is_none()).count();
            assert_eq!((n("unknown"), n("groups")), (unknown as u64, computed().count() as u64));
        }
        "compute_not_counted" => {
            let told = holders(case).filter(|c| not_counted(plan, c)).count();
            assert_eq!(n("components"), told as u64);
        }
        "cost_placement" => {
            let (planned, groups) = (about(), component(case, &about().name).groups().count());
            assert_eq!((n("groups"), n("resident")), (groups as u64, planned.resident_count() as u64));
            assert_eq!((n("slots"), n("keep")), (planned.slots.into(), planned.keep.into()));
            assert_eq!(n("engine_bytes"), planned.engine_bytes);
            let predicted =
                plan.predicted.as_ref().unwrap().components.iter().find(|c| c.name == planned.name).unwrap();
            assert_eq!((n("pass_ns"), n("lower_bound_ns")), (predicted.pass_ns, predicted.lower_bound_ns));
            assert_eq!(n("passes"), predicted.passes);
        }
        "no_offload_rejected" | "model_offload_rejected" => {
            let other = if note.code.starts_with("no_") { Strategy::NoOffload } else { Strategy::ModelOffload };
            assert!(rank(about().strategy) < rank(other));
            assert_eq!(n("bytes"), component(case, &about().name).bytes());
            if note.numbers.contains_key("room") {
                assert!(n("room") <= case.machine.vram_free.unwrap().saturating_sub(case.policy.reserve));
            } else {
                assert_eq!(n("request_ns"), request_ns(plan));
                assert!(n("with_ns") >= n("request_ns"), "rejected, though it would be faster");
                assert_eq!(n("bought_ns"), n("with_ns") - n("request_ns"));
            }
            if case.policy.resident.is_empty() {
                asked_for(case, plan, &about().name, other, note);
            }
        }
        "host_tiers" => {
            let (locked, count) = streamed(case, plan);
            assert_eq!((n("page_locked_bytes"), ["page_locked", "staged", "mapped"].map(n)), (locked, count));
            assert!(n("page_locked_bytes") <= n("limit"));
            assert_eq!(plan.peak.host, locked + if count[1] > 0 { RING } else { 0 });
        }
        "activation_reserved" | "activation_not_reserved" => {
            let phase = &plan.phases[n("phase") as usize];
            assert_eq!(phase.activation.map(|a| (a.bytes, a.basis)), Some((n("kept"), Basis::Unknown)));
            assert!(phase.headroom.unwrap() >= n("kept"));
            assert_eq!(n("wanted"), n("working_set").min(n("active") / 2));
            assert_eq!(n("kept") == n("wanted"), note.code == "activation_reserved");
            let members = &phases(case)[n("phase") as usize];
            let active = active(case, members);
            let here = holders(case).filter(|c| active.contains(c.name.as_str()));
            assert_eq!(n("active"), here.map(Component::bytes).sum::<u64>());
            let known = |c: &&Component| c.activation.is_some_and(|a| a.basis != Basis::Unknown);
            assert!(!case.components.iter().filter(|c| active.contains(c.name.as_str())).all(|c| known(&c)));
        }
        "more_vram" => {
            let mut more = case.clone();
            more.machine.vram_free = more.machine.vram_free.map(|free| free + GIB);
            gains(plan, note, &more);
        }
        "more_ram" => {
            let mut more = case.clone();
            more.machine.ram_available += GIB;
            gains(plan, note, &more);
        }
        _ => return false,
    }
    true
}

/// What a note says of a strategy is what comes out when it is asked for, beside the same reserves: where rule threshold places it
/// otherwise then, more may be kept for activations, and that much less is there to place in.
fn asked_for(case: &Case, first: &Plan, name: &str, strategy: Strategy, note: &Note) {
    let mut asked = case.clone();
    asked.policy.strategies.insert(name.into(), strategy);
    match run(&asked) {
        // A device with room for it may still lack it beside what is reserved for activations.
        Ok(plan) => {
            let kept =
                |plan: &Plan| plan.phases.iter().map(|p| p.activation.map_or(0, |a| a.bytes)).collect::<Vec<_>>();
            // The plan of rule threshold doesn't tell what was tried beside it.
            let reserves_more = has(&plan, "cost_threshold_stands", None)
                || kept(&plan).iter().zip(kept(first)).any(|(asked, first)| *asked > first);
            if let Some(with) = note.numbers.get("with_ns").filter(|_| !reserves_more) {
                assert!(request_ns(&plan) <= *with, "{} with {strategy} of {name}", request_ns(&plan));
            }
        }
        Err(error) => assert!(note.numbers.contains_key("room"), "{error}"),
    }
}

/// What a note promises is what more memory brings.
fn gains(plan: &Plan, note: &Note, more: &Case) {
    let n = |name: &str| note.numbers[name];
    assert_eq!((n("bytes"), n("request_ns")), (GIB, request_ns(plan)));
    assert_eq!(n("gain_ns"), n("request_ns").saturating_sub(n("with_ns")));
    let anew = run(more).unwrap();
    if !has(&anew, "cost_threshold_stands", None) && !has(&anew, "search_incomplete", None) {
        let (brought, promised) = (request_ns(&anew), n("with_ns"));
        assert!(brought <= promised, "{} promised what more memory does not bring: {promised}, {brought}", note.code);
        assert!(brought == promised || n("complete") == 0, "{} said {promised}, it is {brought}", note.code);
    }
}
