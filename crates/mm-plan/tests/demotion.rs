//! Law 1 by example: what gives way, in which order, and on which byte.

use mm_plan::{
    Activation, Basis, Component, Group, HostTier, Infeasible, Machine, Plan, Policy, Stack, Strategy, plan,
};

fn stack(name: &str, groups: usize, bytes: u64) -> Stack {
    Stack { name: name.into(), groups: vec![Group::of_bytes(bytes); groups] }
}

fn machine(free: u64) -> Machine {
    Machine { vram_free: Some(free), ..Machine::default() }
}

/// Keeps as many blocks as asked for, then lets law 1 decide.
fn pinned(free: u64, components: &[Component], reserve: u64) -> Result<Plan, Infeasible> {
    let resident = components.iter().map(|c| (c.name.clone(), u32::MAX)).collect();
    plan(&machine(free), components, &Policy { strategy: Strategy::BlockPin, resident, reserve, ..Policy::default() })
}

fn residents(plan: &Plan, name: &str) -> usize {
    plan.component(name).unwrap().resident_count()
}

#[test]
fn residents_give_way_one_by_one_before_slots() {
    let model = [Component::blocks("a", 5, vec![stack("s", 10, 100)])];
    // Free VRAM, residents, slots. Two slots cost two blocks, so eight residents are the first to save anything.
    for (free, kept, slots) in
        [(1005, 10, 0), (1004, 7, 2), (905, 7, 2), (904, 6, 2), (205, 0, 2), (204, 0, 1), (105, 0, 1)]
    {
        let plan = pinned(free, &model, 0).unwrap();
        let planned = plan.component("a").unwrap();
        assert_eq!((planned.resident_count(), planned.slots), (kept, slots), "{free}");
        assert_eq!(plan.strategy, Strategy::BlockPin, "the name stays");
    }
    let error = pinned(104, &model, 0).unwrap_err();
    assert_eq!(error, Infeasible::NeverFits { component: "a".into(), need: 105, have: 104, smallest: 105 });
    let error = pinned(104, &model, 10).unwrap_err();
    assert_eq!(error, Infeasible::NeverFits { component: "a".into(), need: 115, have: 104, smallest: 115 });
}

#[test]
fn the_component_with_most_residents_gives_first_ties_by_name() {
    let of =
        |name: &str, groups| Component { phase: Some(0), ..Component::blocks(name, 0, vec![stack("s", groups, 10)]) };
    let plan = pinned(299, &[of("a", 20), of("b", 10)], 0).unwrap();
    assert_eq!((residents(&plan, "a"), residents(&plan, "b")), (17, 10));
    let plan = pinned(199, &[of("b", 10), of("a", 10)], 0).unwrap();
    assert_eq!((residents(&plan, "a"), residents(&plan, "b")), (7, 10));
}

#[test]
fn the_main_stack_gives_before_the_others() {
    let model = [Component::blocks("a", 0, vec![stack("other", 4, 10), stack("main", 10, 10)])];
    let plan = pinned(70, &model, 0).unwrap();
    let count = |stack: usize| plan.components[0].stacks[stack].resident.iter().filter(|r| **r).count();
    assert_eq!((count(0), count(1)), (4, 1));
    let plan = pinned(50, &model, 0).unwrap();
    let count = |stack: usize| plan.components[0].stacks[stack].resident.iter().filter(|r| **r).count();
    assert_eq!((count(0), count(1)), (3, 0));
}

#[test]
fn no_offload_chosen_by_auto_leaves_the_device_where_nothing_else_helps() {
    let activation = Some(Activation { bytes: 900, basis: Basis::Measured });
    let model = [Component { activation, ..Component::whole("vae", 400) }, Component::whole("encoder", 400)];
    assert_eq!(plan(&machine(1700), &model, &Policy::default()).unwrap().strategy, Strategy::NoOffload);
    let released = plan(&machine(1699), &model, &Policy::default()).unwrap();
    assert!(released.components.iter().all(|c| c.strategy == Strategy::ModelOffload));
    assert!(released.notes.iter().any(|n| n.code == "no_offload_released"));
    let asked = plan(&machine(1699), &model, &Policy { strategy: Strategy::NoOffload, ..Policy::default() });
    assert!(matches!(asked, Err(Infeasible::NeverFits { smallest: 1700, .. })));
}

#[test]
fn an_unknown_activation_reserves_nothing() {
    let of = |basis| {
        let activation = Some(Activation { bytes: 900, basis });
        plan(&machine(600), &[Component { activation, ..Component::whole("vae", 400) }], &Policy::default())
    };
    assert!(of(Basis::Unknown).is_ok());
    assert!(of(Basis::Estimated).is_err());
}

#[test]
fn an_alias_keeps_its_holder_on_the_device() {
    let alias = Component { same_as: Some("a".into()), phase: Some(1), ..Component::whole("again", 0) };
    let other = Component { phase: Some(1), ..Component::whole("b", 50) };
    let model = [Component { phase: Some(0), ..Component::whole("a", 100) }, other, alias];
    let policy = Policy { strategy: Strategy::ModelOffload, ..Policy::default() };
    let plan = plan(&machine(150), &model, &policy).unwrap();
    assert_eq!(plan.phases[1].components, ["a", "again", "b"]);
    assert_eq!((plan.phases[0].engine_bytes, plan.phases[1].engine_bytes), (100, 150));
}

#[test]
fn page_locked_copies_give_way_from_the_last_on_the_byte() {
    let model = [Component::blocks("a", 0, vec![stack("s", 4, 10)])];
    let locked = |policy: Policy, ram_available| {
        let machine = Machine { ram_available, ..machine(100) };
        let policy = Policy { strategy: Strategy::GroupOffload, low_cpu_mem: false, ..policy };
        let plan = plan(&machine, &model, &policy).unwrap();
        let host = &plan.components[0].stacks[0].host;
        let count = host.iter().take_while(|t| **t == HostTier::PageLocked).count();
        assert!(host[count..].iter().all(|t| *t == HostTier::Mapped));
        assert_eq!(plan.peak.host, 10 * count as u64);
        count
    };
    let limit = |bytes| Policy { ram_limit: Some(bytes), ..Policy::default() };
    assert_eq!([40, 39, 30, 29, 9, 0].map(|bytes| locked(limit(bytes), 1)), [4, 3, 3, 2, 0, 0]);
    assert_eq!([0, 39, 40].map(|ram| locked(Policy::default(), ram)), [4, 3, 4], "zero: unknown, no bound");
}
