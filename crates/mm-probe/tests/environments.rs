//! The table of decisions: which strategy for which model on which machine (`environments.txt`, extended there alone).
//!
//! Nothing of it needs the machines: checkpoints are sparse files with real headers, and the planner is told the sizes.

use std::collections::BTreeMap;
use std::fmt::Write;

use mm_fixtures::{Fixture, Model, Options};
use mm_plan::{Component, DType, Group, Links, Machine, Plan, Policy, Rule, Stack, Strategy, plan};

const GIB: u64 = 1 << 30;

/// A pair that is checked.
struct Case<'a> {
    vram: u64,
    ram: u64,
    workload: &'a str,
    expected: &'a str,
}

fn cases(table: &str) -> Vec<Case<'_>> {
    let mut lines = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let head: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    assert_eq!(head[..2], ["vram", "ram"]);
    let mut cases = Vec::new();
    for line in lines {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells.len(), head.len(), "as many cells as workloads: {line}");
        let gib = |cell: &str| cell.parse::<u64>().expect("GiB") * GIB;
        for (workload, expected) in head.iter().zip(&cells).skip(2).filter(|(_, expected)| **expected != ".") {
            cases.push(Case { vram: gib(cells[0]), ram: gib(cells[1]), workload, expected });
        }
    }
    cases
}

/// diffusers-mm's profiles are sizes without files: the total, the transformer in 48 blocks, and the rest of the pipeline
/// in parts smaller than that.
fn profile(total_mib: u64, transformer_mib: u64) -> Vec<Component> {
    let mib = |mib: u64| mib << 20;
    let blocks = vec![Group::of_bytes(mib(transformer_mib) / 48); 48];
    let transformer =
        Component::blocks("transformer", 0, vec![Stack { name: "transformer_blocks".into(), groups: blocks }]);
    let others = mib(total_mib) - transformer.bytes();
    vec![transformer, Component::whole("text_encoder", others / 2), Component::whole("vae", others - others / 2)]
}

fn components(model: &str) -> Vec<Component> {
    match model {
        "ltx-2.3-int8" => profile(39_424, 18_980),
        "ltx-2.3-int4" => profile(26_726, 11_027),
        model => {
            let model: Model = model.parse().unwrap_or_else(|error| panic!("{error}"));
            let folder = tempfile::tempdir().expect("a folder");
            let fixture = Fixture::new(model, &Options::default()).expect("a fixture");
            fixture.write(folder.path()).expect("writes");
            mm_probe::inspect(folder.path(), Some(DType::Bf16)).expect("inspects").to_plan()
        }
    }
}

fn strategy(name: &str) -> Strategy {
    let all = [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];
    all.into_iter().find(|strategy| strategy.name() == name).unwrap_or_else(|| panic!("{name} is no strategy"))
}

fn cell(plan: &Plan) -> String {
    let name = match plan.strategy {
        Strategy::NoOffload => "all",
        Strategy::ModelOffload => "turns",
        Strategy::BlockPin => "pin",
        Strategy::GroupOffload => "group",
        Strategy::Auto => "undecided",
    };
    format!("{name}{}", if plan.low_cpu_mem { "" } else { "+copies" })
}

/// A plan fits, and where the link is known rule cost finds one that is not slower.
fn check_plan(machine: &Machine, components: &[Component], policy: &Policy, plan: &Plan) -> Result<(), String> {
    let free = machine.vram_free.unwrap_or(0);
    if plan.peak.device > free {
        return Err(format!("{} bytes on a device of {free}", plan.peak.device));
    }
    let links =
        Links { h2d: 25_000_000_000, staging: Some(10_000_000_000), disk: Some(3_000_000_000), copy_fixed_ns: 5000 };
    let linked = Machine { links: Some(links), ..machine.clone() };
    let predicted = |rule| {
        let plan = mm_plan::plan(&linked, components, &Policy { rule: Some(rule), ..policy.clone() });
        plan.map_err(|error| error.to_string())?.predicted.map(|times| times.request_ns).ok_or("no times".to_owned())
    };
    let (threshold, cost) = (predicted(Rule::Threshold)?, predicted(Rule::Cost)?);
    if cost > threshold { Err(format!("rule cost takes {cost} ns, threshold {threshold}")) } else { Ok(()) }
}

#[test]
fn the_table_of_decisions() {
    let cases = cases(include_str!("environments.txt"));
    let mut workloads: BTreeMap<&str, Vec<Component>> = BTreeMap::new();
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for Case { vram, ram, workload, expected } in &cases {
        let (model, asked) = workload.split_once('=').map_or((*workload, Strategy::Auto), |(m, s)| (m, strategy(s)));
        let components = workloads.entry(model).or_insert_with(|| components(model));
        let (vram_free, vram_total) = (Some(*vram), Some(*vram));
        let host = Machine { ram_available: *ram, ram_total: *ram, os: "linux".into(), ..Machine::default() };
        let machine = Machine { vram_free, vram_total, ..host };
        let policy = Policy { strategy: asked, ..Policy::default() };
        let place = format!("{workload} on {} GiB with {} GiB of RAM", vram / GIB, ram / GIB);
        match plan(&machine, components, &policy) {
            Err(error) => wrong.push(format!("{place}: {error}")),
            Ok(plan) => {
                let found = cell(&plan);
                let _ = writeln!(table, "{place}: {found}, {} MiB at most", plan.peak.device >> 20);
                if found != *expected {
                    wrong.push(format!("{place}: {found}, expected {expected}"));
                }
                wrong.extend(
                    check_plan(&machine, components, &policy, &plan).err().map(|why| format!("{place}: {why}")),
                );
            }
        }
    }
    println!("{table}{} pairs", cases.len());
    assert!(cases.len() >= 200, "the table has shrunk");
    assert!(wrong.is_empty(), "{} of {} pairs:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
