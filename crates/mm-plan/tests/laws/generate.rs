//! Inputs for the laws. `any_case` contradicts itself never, `hostile_case` often; `cost_case` is for rule `Cost`.

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

/// Page-locked buffers that staged groups go through.
pub(crate) const RING: u64 = 192 << 20;

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

/// Nanoseconds in the order of what copies take, sometimes unknown.
fn compute() -> impl Generator<Value = Option<u64>> + Clone {
    prop::option::weighted(0.9, 0..1500u64)
}

fn group(bytes: impl Generator<Value = u64> + Clone) -> impl Generator<Value = Group> {
    let dtypes = select(vec![DType::Bytes, DType::Bf16, DType::F32]);
    let slabs = prop::collection::btree_map(dtypes, bytes.clone(), 1..3);
    (slabs, bytes, compute()).prop_map(|(slabs, host_bytes, compute_ns)| Group {
        slabs: slabs.into_iter().map(|(dtype, bytes)| Slab { dtype, bytes }).collect(),
        host_bytes,
        compute_ns,
    })
}

fn stack(bytes: impl Generator<Value = u64> + Clone + 'static) -> impl Generator<Value = Vec<Group>> {
    let uneven = vec(group(bytes.clone()), 0..14);
    let even = (bytes, 1..30usize, compute());
    let even = even.prop_map(|(bytes, count, compute_ns)| vec![Group { compute_ns, ..Group::of_bytes(bytes) }; count]);
    prop_oneof![uneven, even]
}

/// Rates at which a generated group takes about as long to copy as to compute, and far from it.
fn links() -> impl Generator<Value = Links> {
    let rate = || select(vec![1, 7_777, 100_000_000, 400_000_000, 1_000_000_000, 3_000_000_000, 25_000_000_000]);
    (rate(), prop::option::of(rate()), prop::option::of(rate()), select(vec![0, 0, 1, 40]))
        .prop_map(|(h2d, staging, disk, copy_fixed_ns)| Links { h2d, staging, disk, copy_fixed_ns })
}

/// Host bytes that hold less than a ring of staging buffers, or one and a little more.
fn host_bytes() -> impl Generator<Value = u64> {
    prop_oneof![0..30_000u64, RING..RING + 30_000]
}

fn component(bytes: impl Generator<Value = u64> + Clone + 'static) -> impl Generator<Value = Component> {
    let granularity = select(vec![Granularity::Whole, Granularity::Blocks, Granularity::Blocks, Granularity::Leaves]);
    let basis = select(vec![Basis::Measured, Basis::Declared, Basis::Unknown]);
    let activation = prop::option::of((bytes.clone(), basis).prop_map(|(bytes, basis)| Activation { bytes, basis }));
    let phase = prop::option::of(0..3u32);
    (granularity, vec(stack(bytes.clone()), 0..3), bytes, activation, phase, prop_oneof![0..4u32, 0..41u32]).prop_map(
        |(granularity, stacks, rest, activation, phase, passes)| {
            let stacks = stacks.into_iter().enumerate();
            let stacks = stacks.map(|(i, groups)| Stack { name: format!("stack{i}"), groups }).collect();
            Component { granularity, stacks, rest, activation, passes, phase, ..Component::whole("", 0) }
        },
    )
}

fn policy(bytes: impl Generator<Value = u64> + Clone + 'static) -> impl Generator<Value = Policy> {
    let names = || select(NAMES.to_vec()).prop_map(String::from);
    let overrides = (
        prop::collection::btree_map(names(), 0..40u32, 0..4),
        prop_oneof![Just(BTreeMap::new()), prop::collection::btree_map(names(), strategy(), 0..3)],
    );
    let limit = prop::option::of(prop_oneof![2 => bytes.clone().boxed(), 1 => host_bytes().boxed()]);
    let memory = (bytes.clone(), limit, prop_oneof![2 => Just(0), 1 => 0..2000u64]);
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
    let host = (
        select(vec![DeviceKind::Discrete, DeviceKind::Discrete, DeviceKind::Host]),
        host_bytes(),
        prop::option::weighted(0.7, links()),
        prop::option::weighted(0.2, host_bytes()),
    );
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
        let (device, ram, links, page_lock_limit) = host;
        let machine = Machine {
            device,
            vram_free: free,
            vram_total: free.map(|free| free * scale.2 / 1000),
            ram_available: ram,
            ram_total: ram,
            page_lock_limit,
            os: "linux".into(),
            links,
        };
        Case { machine, components, policy }
    })
}

/// Inputs that rule `Cost` plans, on a device with measured links, where nothing is asked for by name.
pub(crate) fn cost_case() -> impl Generator<Value = Case> {
    (any_case(), links(), 0..3000u64).prop_map(|(mut case, links, free)| {
        case.machine.links = Some(links);
        let largest = case.components.iter().map(Component::bytes).max().unwrap_or(0);
        case.machine.vram_free.get_or_insert(largest * free / 1000);
        let policy =
            Policy { strategy: Strategy::Auto, rule: Some(Rule::Cost), resident: BTreeMap::new(), ..case.policy };
        Case { policy: Policy { strategies: BTreeMap::new(), ..policy }, ..case }
    })
}

/// Extremes and contradictions.
pub(crate) fn hostile_case() -> impl Generator<Value = Case> {
    let bytes = || prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::MAX / 2), any::<u64>(), 0..1000u64].boxed();
    let name = || select(vec!["a", "b", "c", ""]).prop_map(String::from);
    let passes = prop_oneof![Just(0), Just(u32::MAX), any::<u32>(), 0..50u32];
    // Compute times of all groups: extreme ones, or as they are.
    let compute = prop::option::of(prop::option::of(bytes()));
    let named = (component(bytes()), name(), prop::option::weighted(0.2, name()), passes, compute).prop_map(
        |(mut component, name, same_as, passes, compute)| {
            if let Some(compute_ns) = compute {
                component.stacks.iter_mut().flat_map(|s| &mut s.groups).for_each(|g| g.compute_ns = compute_ns);
            }
            Component { name, same_as, passes, ..component }
        },
    );
    let extreme = (bytes(), prop::option::of(bytes()), prop::option::of(bytes()), bytes())
        .prop_map(|(h2d, staging, disk, copy_fixed_ns)| Links { h2d, staging, disk, copy_fixed_ns });
    let links = prop::option::of(prop_oneof![extreme, links()]);
    let device = select(vec![DeviceKind::Discrete, DeviceKind::Host]);
    let limits = (prop::option::of(bytes()), prop::option::of(bytes()));
    let machine = (prop::option::of(bytes()), prop::option::of(bytes()), bytes(), bytes(), links, device);
    let constants = (bytes(), bytes(), bytes(), any::<u32>(), bytes());
    (vec(named, 0..4), machine, policy(bytes()), constants, limits).prop_map(
        |(components, machine, policy, constants, (page_lock_limit, ram_limit))| {
            let (vram_free, vram_total, ram_available, ram_total, links, device) = machine;
            let (no_offload_factor, model_offload_factor, ram_factor, min_blocks, reserve) = constants;
            let os = String::new();
            let machine =
                Machine { device, vram_free, vram_total, ram_available, ram_total, page_lock_limit, os, links };
            let policy = Policy {
                no_offload_factor,
                model_offload_factor,
                ram_factor,
                min_blocks,
                reserve,
                ram_limit,
                ..policy
            };
            Case { machine, components, policy }
        },
    )
}
