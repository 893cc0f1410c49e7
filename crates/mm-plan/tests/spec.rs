//! The JSON form: its shorthands, its round trip, and errors that name what is wrong.

use mm_plan::{Activation, Basis, Component, DType, Granularity, Group, Slab, Spec, Stack, Strategy};
use proptest::{prelude::*, strategy::Strategy as Generator};

/// The example of the documentation.
const FULL: &str = r#"{"schema": 1,
 "machine": {"vram_free": 25769803776, "vram_total": 25769803776,
             "ram_available": 34359738368, "ram_total": 34359738368, "os": "linux",
             "links": {"h2d": 25000000000, "staging": 10000000000, "disk": 3000000000, "copy_fixed_ns": 5000}},
 "components": [
   {"name": "transformer", "granularity": "blocks", "phase": 1, "passes": 28, "rest": 762000000,
    "activation": {"bytes": 1500000000, "basis": "declared"},
    "stacks": [{"name": "layers", "groups": [
        {"bytes": 386000000, "compute_ns": 9000000},
        {"slabs": {"bf16": 385975424, "f32": 24576}, "host_bytes": 193000000}]}]},
   {"name": "transformer_2", "same_as": "transformer"}],
 "policy": {"strategy": "auto", "rule": "threshold", "resident": {"transformer": 30}, "strategies": {"vae": "model_offload"},
            "no_offload_factor": 1500, "model_offload_factor": 1500, "ram_factor": 850, "page_lock_headroom": 17179869184,
            "min_blocks": 8, "tier_no_offload": 21474836480, "tier_model_offload": 12884901888,
            "working_set": 6979321856, "use_stream": true, "low_cpu_mem": true, "reserve": 0, "ram_limit": null}}"#;

fn component(json: &str) -> Result<Component, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn spec(json: &str) -> Result<Spec, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// A spec around one list of components.
fn with_components(components: &str) -> String {
    format!(r#"{{"schema": 1, "machine": {{}}, "components": {components}}}"#)
}

#[test]
fn the_documented_example_reads_and_plans() {
    let spec = spec(FULL).unwrap();
    let transformer = &spec.components[0];
    assert_eq!((transformer.passes, transformer.phase, transformer.rest), (28, Some(1), 762_000_000));
    assert_eq!(transformer.activation, Some(Activation { bytes: 1_500_000_000, basis: Basis::Declared }));
    let groups = &transformer.stacks[0].groups;
    assert_eq!(groups[0], Group { compute_ns: Some(9_000_000), ..Group::of_bytes(386_000_000) });
    let slabs = vec![Slab { dtype: DType::Bf16, bytes: 385_975_424 }, Slab { dtype: DType::F32, bytes: 24_576 }];
    assert_eq!(groups[1], Group { slabs, host_bytes: 193_000_000, compute_ns: None });
    assert_eq!(spec.components[1].same_as.as_deref(), Some("transformer"));
    assert_eq!(spec.machine.links.unwrap().staging, Some(10_000_000_000));
    assert_eq!(spec.policy.strategies["vae"], Strategy::ModelOffload);
    let plan = spec.plan().unwrap();
    assert_eq!(plan.strategy, Strategy::NoOffload);
    let again: mm_plan::Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(again, plan);
}

#[test]
fn the_policy_written_out_is_the_default() {
    let mut written = spec(FULL).unwrap().policy;
    assert_eq!(written.working_set.take(), Some(mm_plan::Policy::default().working_set_on("linux")));
    written.rule = None;
    written.resident.clear();
    written.strategies.clear();
    assert_eq!(written, mm_plan::Policy::default());
}

#[test]
fn defaults_of_a_component() {
    let whole = component(r#"{"name": "vae", "stacks": [], "rest": 5}"#).unwrap();
    assert_eq!(whole, Component::whole("vae", 5));
    let blocks = component(r#"{"name": "t", "stacks": [{"name": "layers", "count": 3, "bytes": 7}]}"#).unwrap();
    let layers = Stack { name: "layers".into(), groups: vec![Group::of_bytes(7); 3] };
    assert_eq!(blocks, Component::blocks("t", 0, vec![layers]));
    let declared = component(r#"{"name": "t", "activation": 9, "phase": null, "passes": null}"#).unwrap();
    assert_eq!(declared.activation, Some(Activation { bytes: 9, basis: Basis::Declared }));
    assert_eq!(component(r#"{"name": "t", "activation": null}"#).unwrap().activation, None);
    let leaves = component(r#"{"name": "t", "granularity": "leaves", "stacks": []}"#).unwrap();
    assert_eq!(leaves.granularity, Granularity::Leaves);
}

#[test]
fn errors_name_the_field() {
    for (json, named) in [
        (with_components(r#"[{"name": "t", "colour": 1}]"#), "colour"),
        (with_components(r#"[{"name": "t", "stacks": [{"name": "layers", "size": 1}]}]"#), "size"),
        (with_components(r#"[{"name": "t", "stacks": [{"name": "layers"}]}]"#), "stack `layers` of component `t`"),
        (with_components(r#"[{"name": "t", "stacks": [{"name": "l", "count": 1, "bytes": 1, "groups": []}]}]"#), "`l`"),
        (with_components(r#"[{"name": "t", "stacks": [{"name": "l", "groups": [{"byte": 1}]}]}]"#), "byte"),
        (with_components(r#"[{"name": "t", "stacks": [{"name": "l", "groups": [{}]}]}]"#), "`bytes` or `slabs`"),
        (with_components(r#"[{"name": "t", "stacks": [{"name": "l", "groups": [{"slabs": {"q4": 1}}]}]}]"#), "q4"),
        (
            with_components(
                r#"[{"name": "t", "stacks": [{"name": "l", "groups": [{"slabs": {"f16": 1, "f16": 2}}]}]}]"#,
            ),
            "f16 twice",
        ),
        (with_components(r#"[{"name": "t", "activation": {"bytes": 1, "base": 2}}]"#), "base"),
        (with_components(r#"[{"name": "t", "activation": "many"}]"#), "activation"),
        (with_components(r#"[{"rest": 1}]"#), "name"),
        (r#"{"schema": 2, "machine": {}}"#.into(), "schema"),
        (r#"{"machine": {}}"#.into(), "schema"),
        (r#"{"schema": 1}"#.into(), "machine"),
        (r#"{"schema": 1, "machine": {"vram": 1}}"#.into(), "vram"),
        (r#"{"schema": 1, "machine": {"links": {"h2d": 1, "pcie": 1}}}"#.into(), "pcie"),
        (r#"{"schema": 1, "machine": {}, "policy": {"strategie": "auto"}}"#.into(), "strategie"),
        (r#"{"schema": 1, "machine": {}, "extra": 1}"#.into(), "extra"),
    ] {
        let error = spec(&json).expect_err(&json);
        assert!(error.contains(named), "{json}: {error}");
    }
}

#[test]
fn numbers_that_are_no_byte_counts_are_refused() {
    for bytes in ["-1", "1.5", "18446744073709551616", "\"7\"", "1e3"] {
        assert!(component(&format!(r#"{{"name": "t", "rest": {bytes}}}"#)).is_err(), "{bytes}");
        assert!(component(&format!(r#"{{"name": "t", "activation": {bytes}}}"#)).is_err(), "{bytes}");
    }
}

/// Would take exabytes if the groups were made before they are counted.
#[test]
fn a_huge_count_is_refused_before_it_is_made() {
    let stack = |name: usize, count: u64| format!(r#"{{"name": "{name}", "count": {count}, "bytes": 1}}"#);
    for count in [65_537, 1_000_000_000_000_000_000, u64::MAX] {
        let json = format!(r#"[{{"name": "t", "stacks": [{}]}}]"#, stack(0, count));
        let error = spec(&with_components(&json)).unwrap_err();
        assert!(error.contains("65536"), "{error}");
        assert!(component(&json[1..json.len() - 1]).is_err());
    }
    // Each is within the limit; together they would be 100,000 × 65,536 groups.
    let stacks: Vec<String> = (0..100_000).map(|name| stack(name, 65_536)).collect();
    let json = format!(r#"[{{"name": "t", "stacks": [{}]}}]"#, stacks.join(","));
    assert!(spec(&with_components(&json)).unwrap_err().contains("6553600000"));
    let most = format!(r#"[{{"name": "t", "stacks": [{}]}}]"#, stack(0, 65_536));
    assert_eq!(spec(&with_components(&most)).unwrap().components[0].stacks[0].groups.len(), 65_536);
}

fn groups() -> impl Generator<Value = Vec<Group>> {
    let dtype = prop::sample::select(vec![DType::Bytes, DType::Bf16, DType::F32, DType::F8e4m3]);
    let slabs = prop::collection::btree_map(dtype, any::<u64>(), 0..4);
    let group = (slabs, any::<u64>(), any::<Option<u64>>()).prop_map(|(slabs, host_bytes, compute_ns)| {
        let slabs = slabs.into_iter().map(|(dtype, bytes)| Slab { dtype, bytes }).collect();
        Group { slabs, host_bytes, compute_ns }
    });
    let equal = (any::<u64>(), 0..5usize).prop_map(|(bytes, count)| vec![Group::of_bytes(bytes); count]);
    prop_oneof![prop::collection::vec(group, 0..4), equal]
}

fn any_component() -> impl Generator<Value = Component> {
    let stack = (".*", groups()).prop_map(|(name, groups)| Stack { name, groups });
    let granularity = prop::sample::select(vec![Granularity::Whole, Granularity::Blocks, Granularity::Leaves]);
    let basis = prop::sample::select(vec![Basis::Measured, Basis::Declared, Basis::Estimated, Basis::Unknown]);
    let activation = prop::option::of((any::<u64>(), basis).prop_map(|(bytes, basis)| Activation { bytes, basis }));
    let kind = (granularity, prop::collection::vec(stack, 0..3), activation);
    let numbers = (any::<u64>(), any::<u32>(), any::<Option<u32>>(), prop::option::of(".*"));
    (".*", kind, numbers).prop_map(|(name, (granularity, stacks, activation), (rest, passes, phase, same_as))| {
        Component { name, granularity, stacks, rest, activation, passes, phase, same_as }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_component_survives_the_round_trip(component in any_component()) {
        let json = serde_json::to_string(&component).unwrap();
        prop_assert_eq!(serde_json::from_str::<Component>(&json).unwrap(), component);
    }
}
