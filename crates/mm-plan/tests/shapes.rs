//! Known models on all sizes of machines: rule `Cost` is never slower than rule `Threshold`, and more memory or bandwidth
//! never makes a request slower nor a model unrunnable.

#[path = "effort/mod.rs"]
mod effort;
#[path = "shapes/mod.rs"]
mod shapes;

use effort::effort;
use mm_plan::{Component, ComponentPlan, Infeasible, Links, Machine, Note, Plan, Policy, Rule, plan};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const GB: u64 = 1_000_000_000;

/// Values of each resource, ascending.
struct Grid {
    vram: Vec<u64>,
    ram: Vec<u64>,
    h2d: Vec<u64>,
    staging: Vec<u64>,
}

impl Grid {
    /// What is asked for: 2 to 64 GiB in steps of 256 MiB, on hosts of 16 to 128 GiB.
    fn whole() -> Self {
        Self {
            vram: (8..=256).map(|quarter| quarter * 256 * MIB).collect(),
            ram: [16, 32, 64, 128].map(|gib| gib * GIB).into(),
            h2d: [12, 25, 50].map(|gb| gb * GB).into(),
            staging: [5, 10].map(|gb| gb * GB).into(),
        }
    }

    /// A little of it.
    fn coarse() -> Self {
        Self {
            vram: [16, 32, 33, 64].map(|quarter| quarter * 256 * MIB).into(),
            ram: [16, 128].map(|gib| gib * GIB).into(),
            h2d: [12, 50].map(|gb| gb * GB).into(),
            staging: [5, 10].map(|gb| gb * GB).into(),
        }
    }

    fn sizes(&self) -> [usize; 4] {
        [self.vram.len(), self.ram.len(), self.h2d.len(), self.staging.len()]
    }

    fn machine(&self, [vram, ram, h2d, staging]: [usize; 4]) -> Machine {
        let (ram, staging) = (self.ram[ram], Some(self.staging[staging]));
        let links = Links { h2d: self.h2d[h2d], staging, disk: Some(2 * GB), copy_fixed_ns: 10_000 };
        Machine {
            vram_free: Some(self.vram[vram]),
            vram_total: Some(self.vram[vram]),
            ram_available: ram,
            ram_total: ram,
            links: Some(links),
            ..Machine::default()
        }
    }
}

/// `None`: it does not fit.
fn planned(machine: &Machine, components: &[Component], rule: Rule) -> Option<Plan> {
    match plan(machine, components, &Policy { rule: Some(rule), ..Policy::default() }) {
        Ok(plan) => Some(plan),
        Err(Infeasible::BadInput { text }) => panic!("{text}"),
        Err(_) => None,
    }
}

fn request(plan: &Plan) -> u64 {
    plan.predicted.as_ref().unwrap().request_ns
}

/// What a plan is, for people who look at a failure.
fn outline(plan: &Plan) -> String {
    let of =
        |c: &ComponentPlan| format!("{} {}+{}x{} {}", c.name, c.resident_count(), c.streamed_count(), c.slots, c.keep);
    let components: Vec<String> = plan.components.iter().map(of).collect();
    let odd = |n: &&Note| matches!(n.code.as_str(), "search_incomplete" | "cost_threshold_stands");
    let odd: Vec<&str> = plan.notes.iter().filter(odd).map(|n| n.code.as_str()).collect();
    format!("{:?} {} {}", plan.proof, components.join(", "), odd.join(" "))
}

/// Plans on every point of the grid and compares each with its neighbours that have less of one thing. Returns what is
/// slower with more.
fn sweep(grid: &Grid, components: &[Component]) -> Option<String> {
    let sizes = grid.sizes();
    let index = |at: [usize; 4]| at.iter().zip(sizes).fold(0, |index, (at, size)| index * size + at);
    let mut found: Vec<Option<Plan>> = Vec::new();
    let (mut feasible, mut faster, mut slower) = (0, 0, Vec::new());
    for point in 0..sizes.iter().product() {
        let mut at = [0; 4];
        let mut rest = point;
        for axis in (0..4).rev() {
            (at[axis], rest) = (rest % sizes[axis], rest / sizes[axis]);
        }
        let machine = grid.machine(at);
        let now = planned(&machine, components, Rule::Cost);
        let threshold = planned(&machine, components, Rule::Threshold);
        assert!(now.is_some() || threshold.is_none(), "only threshold has a plan for {machine:?}");
        if let (Some(now), Some(threshold)) = (&now, &threshold) {
            let (now, threshold) = (request(now), request(threshold));
            assert!(now <= threshold, "{now} ns, threshold {threshold} ns on {machine:?}");
            (feasible, faster) = (feasible + 1, faster + usize::from(now < threshold));
        }
        for axis in (0..4).filter(|axis| at[*axis] > 0) {
            let mut less = at;
            less[axis] -= 1;
            if let Some(before) = &found[index(less)] {
                let now = now.as_ref().unwrap_or_else(|| panic!("infeasible on {machine:?}, but not with less"));
                if request(now) > request(before) {
                    let message = format!(
                        "{} ns, {} on {machine:?};\n{} ns, {} on {:?}",
                        request(now),
                        outline(now),
                        request(before),
                        outline(before),
                        grid.machine(less)
                    );
                    slower.push((request(now) as f64 / request(before) as f64, message));
                }
            }
        }
        found.push(now);
    }
    println!("{} points, {feasible} feasible, {faster} faster than threshold", found.len());
    assert!(feasible * 2 > found.len() && faster > 0);
    let (factor, message) = slower.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(format!("slower with more {} times, at the worst {factor:.4} times: {message}", slower.len()))
}

/// With everything measured, and with nothing.
fn both(components: Vec<Component>) {
    let grid = effort(Grid::coarse(), Grid::whole());
    let slower = [sweep(&grid, &components), sweep(&grid, &shapes::unmeasured(components))];
    let slower: Vec<String> = slower.into_iter().flatten().collect();
    assert!(slower.is_empty(), "{}", slower.join("\n"));
}

#[test]
fn z_image_turbo() {
    both(shapes::z_image_turbo());
}

#[test]
fn flux_dev() {
    both(shapes::flux_dev());
}

#[test]
fn sd35_large() {
    both(shapes::sd35_large());
}

#[test]
fn sdxl() {
    both(shapes::sdxl());
}

#[test]
fn wan_14b() {
    both(shapes::wan_14b());
}
