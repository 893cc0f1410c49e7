//! How long it takes to make a plan, and to simulate one: `cargo bench -p mm-plan`.
//!
//! Each line's name ends with its target, where it has one: what the median on one core must not exceed. 64 ms for 64
//! cards is a thousand plans a second. `threshold` plans the same inputs by that rule, for comparison.

use divan::{Bencher, black_box, counter::ItemsCount};
use mm_plan::{Activation, Basis, Component, Group, Links, Machine, Policy, Rule, Stack, plan, simulate};
use std::{fmt, sync::LazyLock};

const GIB: u64 = 1 << 30;
const MB: u64 = 1_000_000;

fn main() {
    divan::main();
}

#[divan::bench(args = &*CASES, max_time = 5)]
fn cost(bencher: Bencher<'_, '_>, case: &Case) {
    case.bench(bencher, Rule::Cost);
}

#[divan::bench(args = &*CASES, max_time = 5)]
fn threshold(bencher: Bencher<'_, '_>, case: &Case) {
    case.bench(bencher, Rule::Threshold);
}

/// FLUX on 12 GiB with 28 passes: every copy and compute of the request.
#[divan::bench(name = "simulate flux, 28 passes, 12 GiB")]
fn simulate_flux(bencher: Bencher<'_, '_>) {
    let (machine, components) = (machine(12 * GIB), flux());
    let plan = plan(&machine, &components, &Policy::default()).expect("FLUX fits 12 GiB by streaming");
    bencher.bench(|| simulate(black_box(&machine), black_box(&components), black_box(&plan)));
}

static CASES: LazyLock<[Case; 8]> = LazyLock::new(|| {
    let few = |sizes: Sizes| components(3, 64, 200 * MB, sizes);
    let many = |sizes: Sizes| components(10, 200, 50 * MB, sizes);
    // 64 cards on which 4 to 20 GiB are free.
    let cards: Vec<u64> = (0..64).map(|card| 4 * GIB + card * GIB / 4).collect();
    [
        Case::new("3 x 64 equal (target 1 ms)", few(Sizes::Equal), vec![16 * GIB]),
        Case::new("3 x 64 different (target 1 ms)", few(Sizes::Different), vec![16 * GIB]),
        Case::new("10 x 200 equal (target 50 ms)", many(Sizes::Equal), vec![24 * GIB]),
        Case::new("10 x 200 different (target 50 ms)", many(Sizes::Different), vec![24 * GIB]),
        Case::new("flux on 12 GiB", flux(), vec![12 * GIB]),
        Case::new("flux on 24 GiB", flux(), vec![24 * GIB]),
        Case::new("64 cards, 3 x 64 equal (target 64 ms)", few(Sizes::Equal), cards.clone()),
        Case::new("64 cards, 3 x 64 different (target 64 ms)", few(Sizes::Different), cards),
    ]
});

/// Components, and the free memory of the cards on which they are planned one after the other.
struct Case {
    name: &'static str,
    components: Vec<Component>,
    machines: Vec<Machine>,
}

impl Case {
    fn new(name: &'static str, components: Vec<Component>, cards: Vec<u64>) -> Self {
        Self { name, components, machines: cards.into_iter().map(machine).collect() }
    }

    /// Counted in plans, so that plans per second stand beside the time.
    fn bench(&self, bencher: Bencher<'_, '_>, rule: Rule) {
        let policy = Policy { rule: Some(rule), ..Policy::default() };
        bencher.counter(ItemsCount::new(self.machines.len())).bench(|| {
            for machine in &self.machines {
                let plan = plan(black_box(machine), black_box(&self.components), black_box(&policy));
                black_box(plan).expect("every case fits by streaming");
            }
        });
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Clone, Copy)]
enum Sizes {
    Equal,
    /// No two groups of a component have the same size or compute time.
    Different,
}

/// `count` components of `groups` groups of about `bytes`; the first three have a phase each, the others share one by
/// two. The second runs 28 times.
fn components(count: u32, groups: u32, bytes: u64, sizes: Sizes) -> Vec<Component> {
    let component = |number: u32| {
        let group = |index: u32| {
            // Steps through all residues, far apart: from half to one and a half of the size.
            let step = |stride: u32| u64::from((index * stride + number) % 211) * bytes / 211;
            let (size, time) = match sizes {
                Sizes::Equal => (bytes, bytes),
                Sizes::Different => (bytes / 2 + step(83), bytes / 2 + step(47)),
            };
            // 40 GB/s of weights computed with: copying at 25 GB/s is slower.
            Group { compute_ns: Some(time / 40), ..Group::of_bytes(size) }
        };
        let stack = Stack { name: "blocks".into(), groups: (0..groups).map(group).collect() };
        let component = Component::blocks(format!("component_{number:02}"), 100 * MB, vec![stack]);
        let phase = if number < 3 { number } else { 3 + (number - 3) / 2 };
        active(component, phase, if number == 1 { 28 } else { 1 }, GIB)
    };
    (0..count).map(component).collect()
}

/// FLUX.1-dev with its encoders: 19 double and 38 single blocks, 0.55 s a pass, 28 passes.
fn flux() -> Vec<Component> {
    let stack = |name: &str, count: usize, bytes: u64, compute_us: u64| {
        let block = Group { compute_ns: Some(compute_us * 1000), ..Group::of_bytes(bytes) };
        Stack { name: name.into(), groups: vec![block; count] }
    };
    let double = stack("transformer_blocks", 19, 680 * MB, 15_800);
    let single = stack("single_transformer_blocks", 38, 283 * MB, 6_600);
    let t5 = stack("block", 24, 387 * MB, 900);
    vec![
        active(Component::whole("text_encoder", 246 * MB), 0, 1, GIB / 16),
        active(Component::blocks("text_encoder_2", 264 * MB, vec![t5]), 0, 1, GIB / 8),
        active(Component::blocks("transformer", 120 * MB, vec![double, single]), 1, 28, GIB),
        active(Component::whole("vae", 168 * MB), 2, 1, 2 * GIB),
    ]
}

fn active(component: Component, phase: u32, passes: u32, activation: u64) -> Component {
    let activation = Some(Activation { bytes: activation, basis: Basis::Declared });
    Component { phase: Some(phase), passes, activation, ..component }
}

fn machine(vram: u64) -> Machine {
    Machine {
        vram_free: Some(vram),
        vram_total: Some(vram),
        ram_available: 64 * GIB,
        links: Some(Links { h2d: 25_000 * MB, staging: Some(10_000 * MB), disk: None, copy_fixed_ns: 10_000 }),
        ..Machine::default()
    }
}
