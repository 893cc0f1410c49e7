//! Law 6: `Threshold` decides as diffusers-mm 0.1.0 does, on its answers and on every boundary, one byte either side.
//!
//! `data/diffusers-mm.jsonl` was produced by running diffusers-mm 0.1.0's own resolver on modules of these sizes:
//! `spec` is an input of the planner, `expect` what the resolver answered.

use mm_plan::{Component, Group, Infeasible, Machine, Plan, Policy, Stack, Strategy, plan};

const GIB: u64 = 1 << 30;

#[cfg(feature = "serde")]
#[test]
fn sixty_answers_of_diffusers_mm() {
    #[derive(serde::Deserialize)]
    struct Row {
        spec: mm_plan::Spec,
        expect: Expect,
    }
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Expect {
        strategy: Strategy,
        low_cpu_mem: Option<bool>,
        #[serde(default)]
        resident: std::collections::BTreeMap<String, usize>,
    }
    let mut rows = 0;
    let mut counts = 0;
    for (index, line) in include_str!("data/diffusers-mm.jsonl").lines().enumerate() {
        let row: Row = serde_json::from_str(line).unwrap_or_else(|error| panic!("row {index}: {error}"));
        let plan = row.spec.plan().unwrap_or_else(|error| panic!("row {index}: {error}"));
        assert_eq!(plan.strategy, row.expect.strategy, "row {index}");
        if let Some(low_cpu_mem) = row.expect.low_cpu_mem {
            assert_eq!(plan.low_cpu_mem, low_cpu_mem, "row {index}");
        }
        for (name, resident) in row.expect.resident {
            assert_eq!(plan.component(&name).unwrap().resident_count(), resident, "row {index}");
            counts += 1;
        }
        rows += 1;
    }
    assert_eq!(rows, 60);
    assert!(counts > 5);
}

fn stack(blocks: usize, bytes: u64) -> Stack {
    Stack { name: "layers".into(), groups: vec![Group::of_bytes(bytes); blocks] }
}

fn machine(free: u64) -> Machine {
    Machine { vram_free: Some(free), os: "linux".into(), ..Machine::default() }
}

fn auto(machine: &Machine, components: &[Component]) -> Plan {
    plan(machine, components, &Policy::default()).unwrap()
}

#[test]
fn no_offload_from_one_and_a_half_times_the_total() {
    let model = [Component::whole("a", 600), Component::whole("b", 401)];
    // 1001 × 1.5 = 1501.5
    assert_eq!(auto(&machine(1502), &model).strategy, Strategy::NoOffload);
    assert_eq!(auto(&machine(1501), &model).strategy, Strategy::ModelOffload);
    let even = [Component::whole("a", 600), Component::whole("b", 400)];
    assert_eq!(auto(&machine(1500), &even).strategy, Strategy::NoOffload);
    assert_eq!(auto(&machine(1499), &even).strategy, Strategy::ModelOffload);
}

#[test]
fn model_offload_from_one_and_a_half_times_the_largest() {
    let model = [Component::blocks("a", 0, vec![stack(8, 100)]), Component::whole("b", 700)];
    assert_eq!(auto(&machine(1200), &model).strategy, Strategy::ModelOffload);
    assert_eq!(auto(&machine(1199), &model).strategy, Strategy::BlockPin);
}

#[test]
fn block_pin_from_eight_blocks() {
    let of = |blocks| [Component::blocks("a", 0, vec![stack(blocks, 1000)])];
    assert_eq!(auto(&machine(7000), &of(8)).strategy, Strategy::BlockPin);
    assert_eq!(auto(&machine(7000), &of(7)).strategy, Strategy::GroupOffload);
}

#[test]
fn the_stack_with_the_most_bytes_counts() {
    let small = Stack { name: "small".into(), ..stack(20, 1) };
    let of = |blocks| [Component::blocks("a", 0, vec![small.clone(), stack(blocks, 1000)])];
    assert_eq!(auto(&machine(7000), &of(8)).strategy, Strategy::BlockPin);
    assert_eq!(auto(&machine(7000), &of(7)).strategy, Strategy::GroupOffload);
}

#[test]
fn an_alias_counts_once() {
    let alias = Component { same_as: Some("a".into()), ..Component::whole("b", 1000) };
    let model = [Component::whole("a", 1000), alias];
    assert_eq!(auto(&machine(1500), &model).strategy, Strategy::NoOffload);
    assert_eq!(auto(&machine(1500), &model[..1]).strategy, Strategy::NoOffload);
    let (missing, unknown) = (plan(&machine(1500), &model[1..], &Policy::default()), "`a`");
    assert!(matches!(missing, Err(Infeasible::BadInput { text }) if text.contains(unknown)));
}

#[test]
fn tiers_where_no_components_are_known() {
    for (free, strategy) in [
        (20 * GIB, Strategy::NoOffload),
        (20 * GIB - 1, Strategy::ModelOffload),
        (12 * GIB, Strategy::ModelOffload),
        (12 * GIB - 1, Strategy::GroupOffload),
        (0, Strategy::GroupOffload),
    ] {
        assert_eq!(auto(&machine(free), &[]).strategy, strategy, "{free}");
    }
}

#[test]
fn no_device_is_group_offload_untuned() {
    let model = [Component::blocks("a", 5, vec![stack(8, GIB)])];
    let none = Machine { vram_free: None, ram_available: 1000 * GIB, ..Machine::default() };
    let plan = auto(&none, &model);
    assert_eq!((plan.strategy, plan.low_cpu_mem), (Strategy::GroupOffload, true));
    assert_eq!(plan.component("a").unwrap().resident_count(), 0);
}

#[test]
fn page_locked_copies_from_weights_and_sixteen_gib() {
    let model = [Component::blocks("a", 0, vec![stack(8, GIB)])];
    for (ram, low_cpu_mem) in [(24 * GIB, false), (24 * GIB - 1, true), (0, true)] {
        let machine = Machine { ram_available: ram, ..machine(8 * GIB) };
        assert_eq!(auto(&machine, &model).low_cpu_mem, low_cpu_mem, "{ram}");
    }
}

#[test]
fn only_auto_that_streams_tunes_page_locking() {
    let model = [Component::blocks("a", 0, vec![stack(8, GIB)])];
    let machine = Machine { ram_available: 100 * GIB, ..machine(12 * GIB) };
    assert!(auto(&machine, &model).low_cpu_mem, "no_offload is not tuned");
    for strategy in [Strategy::BlockPin, Strategy::GroupOffload, Strategy::ModelOffload] {
        let policy = Policy { strategy, ..Policy::default() };
        assert!(plan(&machine, &model, &policy).unwrap().low_cpu_mem, "{strategy}");
    }
}

#[test]
fn ram_warning_beyond_eighty_five_percent() {
    let warns = |bytes| {
        let machine = Machine { ram_available: 1000, ..machine(1_000_000) };
        auto(&machine, &[Component::whole("a", bytes)]).notes.iter().any(|n| n.code == "ram_warning")
    };
    assert!(warns(851));
    assert!(!warns(850));
}

/// (free − rest − working set − one block) / block, the other stacks counted as rest.
#[test]
fn resident_count_on_each_boundary() {
    let other = Stack { name: "other".into(), groups: vec![Group::of_bytes(50); 2] };
    let model = [Component::blocks("a", 900, vec![other, stack(10, 100)])];
    let count = |free: u64, os: &str, working_set: Option<u64>| {
        let policy = Policy { strategy: Strategy::BlockPin, working_set, ..Policy::default() };
        let machine = Machine { os: os.into(), ..machine(free) };
        // The residents of the main stack: the two others are always resident.
        plan(&machine, &model, &policy).unwrap().component("a").unwrap().resident_count() - 2
    };
    let base = 900 + 100 + 100;
    for residents in 0..=10 {
        let free = base + 500 + 100 * residents;
        assert_eq!(count(free, "linux", Some(500)), residents as usize);
        assert_eq!(count(free - 1, "linux", Some(500)), residents.saturating_sub(1) as usize);
    }
    assert_eq!(count(base + 500 + 100_000, "linux", Some(500)), 10, "clamped");
    assert_eq!(count(base + 13 * GIB / 2 + 300, "linux", None), 3);
    assert_eq!(count(base + 17 * GIB / 2 + 300, "windows", None), 3);
    assert_eq!(count(base + 17 * GIB / 2 + 299, "windows", None), 2);
}

#[test]
fn a_resident_override_wins_clamped() {
    let model = [Component::blocks("a", 0, vec![stack(10, 100)])];
    for (asked, resident) in [(0, 0), (4, 4), (10, 10), (u32::MAX, 10)] {
        let policy =
            Policy { strategy: Strategy::BlockPin, resident: [("a".to_string(), asked)].into(), ..Policy::default() };
        let plan = plan(&machine(GIB), &model, &policy).unwrap();
        assert_eq!(plan.component("a").unwrap().resident_count(), resident);
    }
}
