//! Law 7 by hand: extremes, contradictions and sizes at the limit end in a plan or an `Infeasible`.

#[path = "effort/mod.rs"]
mod effort;

use effort::effort;
use mm_plan::{
    Activation, Basis, Component, DType, DeviceKind, Group, Infeasible, Links, MAX_GROUPS, Machine, Plan, Policy, Rule,
    Slab, Stack, Strategy, plan, simulate,
};
use std::time::{Duration, Instant};

const MAX: u64 = u64::MAX;
const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

fn stack(name: &str, groups: impl IntoIterator<Item = u64>) -> Stack {
    Stack { name: name.into(), groups: groups.into_iter().map(Group::of_bytes).collect() }
}

fn alias(name: &str, of: &str) -> Component {
    Component { same_as: Some(of.into()), ..Component::whole(name, 1) }
}

fn machine(free: u64) -> Machine {
    Machine { vram_free: Some(free), ..Machine::default() }
}

fn of(strategy: Strategy) -> Policy {
    Policy { strategy, ..Policy::default() }
}

/// The message of a `BadInput`, whatever the order of the components.
fn refused(components: &[Component]) -> String {
    let text = |components: &[Component]| match plan(&machine(MAX), components, &Policy::default()) {
        Err(Infeasible::BadInput { text }) => text,
        other => panic!("{other:?}"),
    };
    let forward = text(components);
    let backward: Vec<Component> = components.iter().rev().cloned().collect();
    assert_eq!(text(&backward), forward);
    forward
}

#[test]
fn contradictions_are_named() {
    let whole = |name: &str| Component::whole(name, 1);
    assert!(refused(&[whole("a"), whole("b"), whole("a")]).contains("`a`"));
    assert!(refused(&[whole("a"), whole("")]).contains("no name"));
    assert!(refused(&[whole("a"), alias("b", "c")]).contains("`c`"));
    assert!(refused(&[alias("a", "a")]).contains("`a`"));
    assert!(refused(&[alias("a", "b"), alias("b", "c"), alias("c", "a"), whole("d")]).contains("circle"));
    assert!(refused(&[Component::blocks("a", 0, vec![stack("s", [1]), stack("s", [2])])]).contains("`s`"));
    let slab = Slab { dtype: DType::Bf16, bytes: 1 };
    let twice = Group { slabs: vec![slab, slab], host_bytes: 2, compute_ns: None };
    let stack = Stack { name: "s".into(), groups: vec![twice] };
    assert!(refused(&[Component::blocks("a", 0, vec![stack])]).contains("bf16"));
}

#[test]
fn chains_of_aliases_lead_to_the_holder() {
    let mut components = vec![Component::whole("0", 10)];
    components.extend((1..5000).map(|i| alias(&i.to_string(), &(i - 1).to_string())));
    let plan = plan(&machine(15), &components, &Policy::default()).unwrap();
    assert_eq!(plan.strategy, Strategy::NoOffload);
    assert!(plan.components.iter().all(|c| c.name == "0" || c.same_as.as_deref() == Some("0")));
    assert!(plan.phases.iter().all(|p| p.engine_bytes == 10));
}

#[test]
fn more_groups_than_the_limit_are_refused() {
    let half = MAX_GROUPS / 2;
    let model = |more: usize| {
        let first = Component::blocks("a", 0, vec![stack("s", vec![1; half])]);
        [first, Component::blocks("b", 0, vec![stack("s", vec![1; half + more])])]
    };
    assert!(plan(&machine(MAX), &model(0), &Policy::default()).is_ok());
    assert!(refused(&model(1)).contains("65537"));
}

#[test]
fn nothing_at_all() {
    for strategy in STRATEGIES {
        for free in [None, Some(0), Some(MAX)] {
            let machine = Machine { vram_free: free, ..Machine::default() };
            let empty = plan(&machine, &[], &of(strategy)).unwrap();
            assert_eq!((empty.peak.device, empty.phases.len()), (0, 0));
            let zeros =
                [Component::blocks("a", 0, vec![stack("s", [0; 9]), stack("empty", [])]), Component::whole("b", 0)];
            let zero = plan(&machine, &zeros, &of(strategy)).unwrap();
            assert_eq!(zero.peak.device, 0);
        }
    }
}

#[test]
fn no_free_vram_is_group_offload_that_does_not_fit() {
    let model = [Component::blocks("a", 3, vec![stack("s", [5; 9])])];
    let machine = Machine { vram_free: Some(0), vram_total: Some(8), ..Machine::default() };
    let error = plan(&machine, &model, &Policy::default()).unwrap_err();
    assert_eq!(error, Infeasible::NotNow { component: "a".into(), need: 8, have: 0, smallest: 8 });
    let machine = Machine { vram_total: Some(7), ..machine };
    let error = plan(&machine, &model, &Policy::default()).unwrap_err();
    assert_eq!(error, Infeasible::NeverFits { component: "a".into(), need: 8, have: 7, smallest: 8 });
}

#[test]
fn figures_beyond_64_bits() {
    let activation = Some(Activation { bytes: MAX, basis: Basis::Measured });
    let model = [
        Component { activation, passes: u32::MAX, phase: Some(u32::MAX), ..Component::whole("a", MAX) },
        Component::blocks("b", MAX, vec![stack("s", [MAX; 20]), stack("t", [MAX; 3])]),
    ];
    let links = Some(Links { h2d: 0, staging: Some(0), disk: Some(MAX), copy_fixed_ns: MAX });
    for strategy in STRATEGIES {
        let policy = Policy {
            no_offload_factor: MAX,
            model_offload_factor: MAX,
            ram_factor: MAX,
            page_lock_headroom: MAX,
            working_set: Some(MAX),
            reserve: MAX,
            ..of(strategy)
        };
        for free in [None, Some(0), Some(1), Some(MAX)] {
            let machine = Machine { vram_free: free, ram_available: MAX, ram_total: MAX, links, ..Machine::default() };
            match plan(&machine, &model, &policy) {
                Ok(plan) => assert_eq!((free, plan.peak.device), (None, MAX)),
                Err(error) => assert!(matches!(error, Infeasible::NeverFits { smallest: MAX, .. }), "{error}"),
            }
        }
    }
}

/// Rates of nothing and of everything, computes and passes without end: rule `Cost` and `simulate` still answer.
#[test]
fn times_beyond_64_bits() {
    let group = |bytes, compute_ns| Group { compute_ns, ..Group::of_bytes(bytes) };
    let rates = [0, 1, MAX];
    for compute in [None, Some(0), Some(1), Some(MAX)] {
        for (passes, bytes) in [(u32::MAX, 1000), (u32::MAX, 1 << 40), (1, 1 << 40), (0, 5)] {
            let groups = (0..9).map(|i| group(bytes + i, compute.map(|ns| ns.saturating_sub(i)))).collect();
            let transformer = Component::blocks("a", 7, vec![Stack { name: "s".into(), groups }]);
            let model = [Component { passes, ..transformer }, Component { passes, ..alias("b", "a") }];
            for (h2d, staging, disk) in rates.into_iter().flat_map(|h| rates.into_iter().map(move |s| (h, s, h ^ s))) {
                for (device, fixed) in [(DeviceKind::Discrete, 0), (DeviceKind::Discrete, MAX), (DeviceKind::Host, 1)] {
                    let links = Links { h2d, staging: Some(staging), disk: Some(disk), copy_fixed_ns: fixed };
                    let machine = Machine { device, links: Some(links), ram_available: 3, ..machine(bytes * 5) };
                    let plan = plan(&machine, &model, &Policy::default()).unwrap();
                    let schedule = simulate(&machine, &model, &plan);
                    assert_eq!(schedule.is_ok(), h2d > 0, "a link of rate zero was not measured");
                    assert_eq!(plan.predicted.map(|p| p.request_ns), schedule.ok().map(|s| s.request_ns));
                }
            }
        }
    }
}

/// Passes in which nothing happens are not walked through one by one.
#[test]
fn passes_without_end_over_nothing() {
    let links = Some(Links { h2d: 1000, staging: None, disk: None, copy_fixed_ns: 0 });
    let machine = Machine { links, ..machine(60) };
    let model = [Component { passes: u32::MAX, ..Component::whole("a", 5) }];
    let plan = plan(&machine, &model, &Policy::default()).unwrap();
    let begin = Instant::now();
    let schedule = simulate(&machine, &model, &plan).unwrap();
    assert_eq!(schedule.visits[0].passes, u32::MAX.into());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

/// What is not a plan for these components is refused, whatever is wrong with it.
#[test]
fn simulate_refuses_plans_of_something_else() {
    let links = Some(Links { h2d: 1000, staging: None, disk: None, copy_fixed_ns: 0 });
    let machine = Machine { links, ..machine(60) };
    let model = |groups| [Component::blocks("a", 7, vec![stack("s", vec![10; groups])]), Component::whole("b", 1)];
    let good = plan(&machine, &model(9), &of(Strategy::GroupOffload)).unwrap();
    assert!(simulate(&machine, &model(9), &good).is_ok());
    let refused = |components: &[Component], plan: &Plan| {
        assert!(matches!(simulate(&machine, components, plan), Err(Infeasible::BadInput { .. })));
    };
    refused(&model(8), &good);
    refused(&model(9)[..1], &good);
    refused(&[], &good);
    let changed = |change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        refused(&model(9), &plan);
    };
    changed(&|plan| plan.components.clear());
    changed(&|plan| plan.components.reverse());
    changed(&|plan| plan.phases.clear());
    changed(&|plan| plan.components[0].slots = 0);
    changed(&|plan| plan.components[0].stacks.clear());
    changed(&|plan| plan.components[0].stacks[0].name.push('x'));
    changed(&|plan| plan.components[0].stacks[0].host.clear());
    changed(&|plan| plan.components[0].same_as = Some("b".into()));
    let unmeasured = Machine { links: None, ..machine.clone() };
    assert!(simulate(&unmeasured, &model(9), &good).is_err());
    let mut many = good.clone();
    many.components[0].slots = u32::MAX;
    let _ = simulate(&machine, &model(9), &many);
}

#[test]
fn zero_constants_divide_nothing() {
    let policy = Policy {
        no_offload_factor: 0,
        model_offload_factor: 0,
        ram_factor: 0,
        page_lock_headroom: 0,
        min_blocks: 0,
        working_set: Some(0),
        ram_limit: Some(0),
        ..Policy::default()
    };
    let model = [Component::blocks("a", 1, vec![stack("s", [0, 0, 3])])];
    for free in [1, 4, 100] {
        let _ = plan(&machine(free), &model, &policy);
    }
    assert_eq!(plan(&machine(4), &model, &policy).unwrap().peak.device, 4);
}

fn fits(free: u64, model: &[Component]) -> Plan {
    let plan = plan(&machine(free), model, &Policy { working_set: Some(0), ..of(Strategy::BlockPin) }).unwrap();
    assert!(plan.peak.device <= free);
    plan
}

/// Rule `Cost` plans it, and how long that took.
fn fits_by_cost(free: u64, model: &[Component]) -> Duration {
    let links = Some(Links { h2d: 1_000_000, staging: None, disk: None, copy_fixed_ns: 3 });
    let begin = Instant::now();
    let plan = plan(&Machine { links, ..machine(free) }, model, &Policy::default()).unwrap();
    assert!(plan.peak.device <= free && plan.rule == Rule::Cost);
    begin.elapsed()
}

/// The largest inputs: all groups in one stack, each in its own, in 5000 components that are active together, and in as
/// many that are active alone.
fn largest() -> [(u64, Vec<Component>); 4] {
    let uneven = |i: usize| 1 + (i as u64 * 7919) % 1000;
    let one = vec![Component::blocks("a", 0, vec![stack("s", (0..MAX_GROUPS).map(uneven))])];
    let stacks = (0..MAX_GROUPS).map(|i| stack(&i.to_string(), [uneven(i)])).collect();
    let many = |phase: Option<u32>| {
        let of = |i: usize| {
            let s = stack("s", (0..13).map(|j| uneven(i + j)));
            Component { phase, passes: 1 + i as u32 % 7, ..Component::blocks(i.to_string(), 1, vec![s]) }
        };
        (0..5000usize).map(of).collect::<Vec<_>>()
    };
    let stacks = vec![Component::blocks("a", 0, stacks)];
    [(50_000, one), (50_000, stacks), (6_000_000, many(Some(0))), (1_000_000, many(None))]
}

/// Sizes at which a planner that tries every count of every stack would not come back.
#[test]
fn the_largest_models_end() {
    for (free, model) in largest() {
        fits(free, &model);
        let took = fits_by_cost(free, &model);
        let most = effort(None, Some(Duration::from_secs(5)));
        assert!(most.is_none_or(|most| took < most), "{} components: {took:?}", model.len());
    }
    let alone: Vec<Component> = (0..5000).map(|i| Component::whole(i.to_string(), 7)).collect();
    let kept = plan(&machine(35_000), &alone, &of(Strategy::NoOffload)).unwrap();
    assert!(kept.phases.iter().all(|p| p.engine_bytes == 35_000));
}
