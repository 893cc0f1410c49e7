//! Inputs for the laws. `any_case` contradicts itself never, `hostile_case` often.

use mm_plan::{
    Activation, Basis, Component, DType, DeviceKind, Granularity, Group, Links, Machine, Policy, Rule, Slab, Stack,
    Strategy,
};
use proptest::{collection::vec, prelude::*, sample::select, strategy::Strategy as Generator};
use std::collections::BTreeMap;

/// One input of the planner.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) machine: Machine,
    pub(crate) components: Vec<Component>,
    pub(crate) policy: Policy,
}

const NAMES: [&str; 5] = ["transformer", "vae", "text_encoder", "unet", "image_encoder"];

fn strategy() -> impl Generator<Value = Strategy> {
    select(vec![
        Strategy::Auto,
        Strategy::Auto,
        Strategy::Auto,
        Strategy::NoOffload,
        Strategy::ModelOffload,
        Strategy::BlockPin,
        Strategy::BlockPin,
        Strategy::GroupOffload,
    ])
}

fn group(bytes: impl Generator<Value = u64> + Clone) -> impl Generator<Value = Group> {
    let dtypes = select(vec![DType::Bytes, DType::Bf16, DType::F32]);
    (prop::collection::btree_map(dtypes, bytes, 1..3), any::<Option<u64>>()).prop_map(|(slabs, compute_ns)| Group {
        slabs: slabs.into_iter().map(|(dtype, bytes)| Slab { dtype, bytes }).collect(),
        host_bytes: 1,
        compute_ns,
    })
}

fn stack(bytes: impl Generator<Value = u64> + Clone + 'static) -> impl Generator<Value = Vec<Group>> {
    let uneven = vec(group(bytes.clone()), 0..14);
    let even = (bytes, 1..30usize).prop_map(|(bytes, count)| vec![Group::of_bytes(bytes); count]);
    prop_oneof![uneven, even]
}

fn component(bytes: impl Generator<Value = u64> + Clone + 'static) -> impl Generator<Value = Component> {
    let granularity = select(vec![Granularity::Whole, Granularity::Blocks, Granularity::Blocks, Granularity::Leaves]);
    let basis = select(vec![Basis::Measured, Basis::Declared, Basis::Unknown]);
    let activation = prop::option::of((bytes.clone(), basis).prop_map(|(bytes, basis)| Activation { bytes, basis }));
    let phase = prop::option::of(0..3u32);
    (granularity, vec(stack(bytes.clone()), 0..3), bytes, activation, phase, 0..4u32).prop_map(
        |(granularity, stacks, rest, activation, phase, passes)| {
            let stacks = stacks.into_iter().enumerate();
            let stacks = stacks.map(|(i, groups)| Stack { name: format!("stack{i}"), groups }).collect();
            Component { granularity, stacks, rest, activation, passes, phase, ..Component::whole("", 0) }
        },
    )
}

fn policy(bytes: impl Generator<Value = u64> + Clone) -> impl Generator<Value = Policy> {
    let names = || select(NAMES.to_vec()).prop_map(String::from);
    let overrides = (
        prop::collection::btree_map(names(), 0..40u32, 0..4),
        prop_oneof![Just(BTreeMap::new()), prop::collection::btree_map(names(), strategy(), 0..3)],
    );
    let memory = (bytes.clone(), prop::option::of(bytes.clone()), prop_oneof![2 => Just(0), 1 => 0..2000u64]);
    let rule = select(vec![None, None, Some(Rule::Threshold), Some(Rule::Cost)]);
    // A small working set lets block_pin fill the device, so that what comes on top has to be demoted.
    let memory = (prop_oneof![2 => Just(0), 1 => bytes.clone()], memory);
    (strategy(), rule, overrides, memory, any::<bool>(), any::<bool>()).prop_map(
        |(strategy, rule, (resident, strategies), (working_set, (headroom, ram_limit, reserve)), use_stream, low)| {
            Policy {
                strategy,
                rule,
                resident,
                strategies,
                working_set: Some(working_set),
                page_lock_headroom: headroom,
                ram_limit,
                reserve,
                use_stream,
                low_cpu_mem: low,
                ..Policy::default()
            }
        },
    )
}

/// Consistent inputs whose budgets range from nothing to more than everything.
pub(crate) fn any_case() -> impl Generator<Value = Case> {
    let bytes = 0..1000u64;
    let components = vec(component(bytes.clone()), 0..NAMES.len());
    let aliases = vec((any::<prop::sample::Index>(), prop::option::of(0..3u32)), 0..2);
    let scale = (
        prop_oneof![1 => 0..3000u64, 2 => 500..1300u64],
        prop_oneof![1 => Just(None), 12 => Just(Some(()))],
        1000..2000u64,
    );
    let host =
        (select(vec![DeviceKind::Discrete, DeviceKind::Discrete, DeviceKind::Host]), 0..30_000u64, any::<bool>());
    (components, aliases, scale, host, policy(bytes)).prop_map(|(mut components, aliases, scale, host, policy)| {
        components.iter_mut().zip(NAMES).for_each(|(component, name)| component.name = name.into());
        // Of the largest component most budgets are a part; of all together few.
        let largest = components.iter().map(Component::bytes).max().unwrap_or(0);
        let holders = components.len();
        for (i, (of, phase)) in aliases.into_iter().enumerate().filter(|_| holders > 0) {
            let same_as = Some(components[of.index(holders)].name.clone());
            components.push(Component { same_as, phase, ..Component::whole(format!("alias{i}"), 77) });
        }
        let free = scale.1.map(|()| largest * scale.0 / 1000 + scale.0 / 2);
        let links = host.2.then_some(Links { h2d: 1, staging: None, disk: None, copy_fixed_ns: 0 });
        let machine = Machine {
            device: host.0,
            vram_free: free,
            vram_total: free.map(|free| free * scale.2 / 1000),
            ram_available: host.1,
            ram_total: host.1,
            page_lock_limit: None,
            os: "linux".into(),
            links,
        };
        Case { machine, components, policy }
    })
}

/// Extremes and contradictions.
pub(crate) fn hostile_case() -> impl Generator<Value = Case> {
    let bytes = || prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::MAX / 2), any::<u64>(), 0..1000u64].boxed();
    let name = || select(vec!["a", "b", "c", ""]).prop_map(String::from);
    let named = (component(bytes()), name(), prop::option::weighted(0.2, name()), any::<u32>())
        .prop_map(|(component, name, same_as, passes)| Component { name, same_as, passes, ..component });
    let machine = (prop::option::of(bytes()), prop::option::of(bytes()), bytes(), bytes());
    let constants = (bytes(), bytes(), bytes(), any::<u32>(), bytes());
    (vec(named, 0..4), machine, policy(bytes()), constants).prop_map(|(components, machine, policy, constants)| {
        let (vram_free, vram_total, ram_available, ram_total) = machine;
        let (no_offload_factor, model_offload_factor, ram_factor, min_blocks, reserve) = constants;
        let machine = Machine { vram_free, vram_total, ram_available, ram_total, ..Machine::default() };
        let policy = Policy { no_offload_factor, model_offload_factor, ram_factor, min_blocks, reserve, ..policy };
        Case { machine, components, policy }
    })
}
