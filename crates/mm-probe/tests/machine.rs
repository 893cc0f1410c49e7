//! Any machine can be probed, and each report gives the planner a machine.

use mm_plan::DeviceKind;
use mm_probe::{Gpu, MachineReport, probe};

fn report() -> MachineReport {
    let gpu = |index, free| Gpu { index, free: Some(free), total: Some(100), ..Gpu::default() };
    MachineReport {
        os: "linux".into(),
        ram_total: 64,
        ram_available: 32,
        gpus: vec![gpu(0, 90), gpu(2, 80)],
        ..MachineReport::default()
    }
}

#[test]
fn this_machine_makes_sense() {
    let report = probe();
    assert_eq!(report.os, std::env::consts::OS);
    assert!(report.ram_available <= report.ram_total && report.ram_total > 0, "{report:?}");
    assert!(report.ram_limit.is_none_or(|limit| limit == report.ram_total), "{report:?}");
    for gpu in &report.gpus {
        assert!(gpu.free <= gpu.total, "{gpu:?}");
    }
    let machine = report.machine(None);
    assert_eq!(machine.vram_free.is_some(), report.gpus.first().is_some_and(|g| g.unified || g.free.is_some()));
    let json = serde_json::to_string(&report).expect("serializes");
    assert_eq!(serde_json::from_str::<MachineReport>(&json).expect("parses"), report);
}

#[test]
fn a_gpu_is_chosen_by_the_drivers_index() {
    let report = report();
    let free = |gpu| (report.machine(gpu).vram_free, report.machine(gpu).vram_total);
    assert_eq!(free(None), (Some(90), Some(100)));
    assert_eq!(free(Some(2)), (Some(80), Some(100)));
    assert_eq!(free(Some(1)), (None, None), "there is no GPU 1");
    let machine = report.machine(None);
    assert_eq!((machine.device, machine.ram_total, machine.ram_available), (DeviceKind::Discrete, 64, 32));
    assert_eq!((machine.os.as_str(), machine.links), ("linux", None));
}

#[test]
fn without_a_gpu_there_is_no_device() {
    let machine = MachineReport { gpus: vec![], ..report() }.machine(None);
    assert_eq!((machine.vram_free, machine.vram_total), (None, None));
}

#[test]
fn unified_memory_is_host_memory() {
    let gpu = Gpu { unified: true, ..Gpu::default() };
    let machine = MachineReport { gpus: vec![gpu], ..report() }.machine(None);
    assert_eq!((machine.vram_free, machine.vram_total), (Some(32), Some(64)));
}

#[test]
fn a_budget_is_all_that_a_host_device_has() {
    let host = |budget| {
        let machine = report().host_machine(budget);
        assert_eq!((machine.device, machine.ram_total, machine.ram_available), (DeviceKind::Host, 64, 32));
        (machine.vram_free, machine.vram_total)
    };
    assert_eq!(host(Some(10)), (Some(10), Some(10)));
    assert_eq!(host(Some(0)), (Some(0), Some(0)));
    assert_eq!(host(None), (Some(32), Some(64)));
}
