//! `mm probe`: what this machine has.

use crate::args::ProbeArgs;
use crate::exit::Failure;
use crate::size::show;
use crate::table::{Table, print};
use mm_probe::{Gpu, MachineReport};
use serde_json::json;

pub(crate) fn run(args: &ProbeArgs) -> Result<(), Failure> {
    let report = mm_probe::probe();
    if args.json {
        // `machine` is what a spec takes; what else was found stands beside it.
        return print(json!({"schema": 1, "machine": report.machine(None), "report": report}));
    }
    print(table(&report))
}

fn table(report: &MachineReport) -> String {
    let mut host = Table::new(&["", ""]);
    let mut row = |name: &str, value: String| host.row([name.to_owned(), value]);
    row("system", if report.wsl { format!("{} (WSL)", report.os) } else { report.os.clone() });
    row("RAM", format!("{} available of {}", show(report.ram_available), show(report.ram_total)));
    if let Some(limit) = report.ram_limit {
        row("RAM limit", format!("{} by the control group", show(limit)));
    }
    row(
        "page-locking",
        report.page_lock_limit.map_or("no limit known".into(), |limit| format!("{} at most", show(limit))),
    );
    if report.gpus.is_empty() {
        row("GPU", "none that the NVIDIA driver reports".into());
        return host.to_string();
    }
    let mut gpus = Table::new(&[">GPU", "name", ">free", ">total", ">in use", "PCIe", "driver"]);
    for gpu in &report.gpus {
        gpus.row(gpu_row(gpu));
    }
    format!("{host}\n{gpus}")
}

fn gpu_row(gpu: &Gpu) -> [String; 7] {
    let bytes = |bytes: Option<u64>| bytes.map_or("?".to_owned(), show);
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
    let pcie = match (gpu.pcie_generation, gpu.pcie_width) {
        (Some(generation), Some(width)) => format!("{generation} ×{width}"),
        _ => "?".to_owned(),
    };
    let total = if gpu.unified { "host memory".to_owned() } else { bytes(gpu.total) };
    [gpu.index.to_string(), text(&gpu.name), bytes(gpu.free), total, bytes(gpu.used), pcie, text(&gpu.driver)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_figures_is_shown_as_unknown() {
        let known = Gpu { name: Some("card".into()), free: Some(1 << 30), total: Some(2 << 30), ..Gpu::default() };
        let report =
            MachineReport { gpus: vec![known, Gpu { index: 1, ..Gpu::default() }], ..MachineReport::default() };
        let text = table(&report);
        assert!(text.contains("1.00 GiB") && text.contains("2.00 GiB") && text.contains("card"), "{text}");
        assert!(text.lines().last().is_some_and(|line| line.trim().starts_with("1  ?")), "{text}");
    }
}
