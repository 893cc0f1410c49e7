//! What this machine has.

use std::fs;
use std::path::Path;

use mm_plan::{DeviceKind, Machine};
use serde::{Deserialize, Serialize};
use sysinfo::System;

use crate::cgroup;
use crate::gpu::{self, Gpu};

/// What this machine has, as this process may use it. Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReport {
    /// `linux`, `windows`, `macos`.
    pub os: String,
    /// Linux inside Windows, where page-locked memory is scarce and mappings of Windows files are slow.
    pub wsl: bool,
    /// RAM in all, or the control group's limit where that is lower.
    pub ram_total: u64,
    /// RAM that can be taken now without swapping and within the control group's limit.
    pub ram_available: u64,
    /// The control group's limit; `None`: none is set.
    pub ram_limit: Option<u64>,
    /// How much this process may page-lock (`RLIMIT_MEMLOCK`); `None`: no limit is known.
    pub page_lock_limit: Option<u64>,
    /// The GPUs that the driver reports, by index; empty without a driver.
    pub gpus: Vec<Gpu>,
}

/// Looks at this machine. Nothing in it is an error: what cannot be found out is absent from the report.
pub fn probe() -> MachineReport {
    // On a system that the library does not know, RAM stays zero: unknown.
    let ram = System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.available_memory())
    });
    MachineReport { gpus: gpu::gpus(), ..host(Path::new("/"), ram) }
}

impl MachineReport {
    /// The machine with one of its GPUs, for the planner: the one of that index, or the first. Without such a GPU it
    /// is a machine with no device. A GPU that computes in host memory offers what is available there.
    pub fn machine(&self, gpu: Option<usize>) -> Machine {
        let gpu = match gpu {
            Some(index) => self.gpus.iter().find(|gpu| gpu.index as usize == index),
            None => self.gpus.first(),
        };
        let (free, total) = match gpu {
            Some(gpu) if gpu.unified => (Some(self.ram_available), Some(self.ram_total)),
            Some(gpu) => (gpu.free, gpu.total),
            None => (None, None),
        };
        Machine { device: DeviceKind::Discrete, vram_free: free, vram_total: total, ..self.ram_only() }
    }

    /// The machine with host memory as its device, for the planner. A budget in bytes is all that device has, free
    /// and in total, so that what exceeds it never fits; without one it is the RAM, of which some is free now.
    pub fn host_machine(&self, budget: Option<u64>) -> Machine {
        Machine {
            device: DeviceKind::Host,
            vram_free: Some(budget.unwrap_or(self.ram_available)),
            vram_total: Some(budget.unwrap_or(self.ram_total)),
            ..self.ram_only()
        }
    }

    fn ram_only(&self) -> Machine {
        Machine {
            ram_available: self.ram_available,
            ram_total: self.ram_total,
            os: self.os.clone(),
            ..Machine::default()
        }
    }
}

/// All but the GPUs. `root` is `/`, or a folder laid out like it; `ram` what the system has in all and available, zero
/// where that is unknown.
fn host(root: &Path, (total, available): (u64, u64)) -> MachineReport {
    let limit = cgroup::limit(root);
    let (ram_total, ram_available) = match limit {
        Some(limit) if total == 0 => (limit.total, limit.available),
        Some(limit) => (limit.total.min(total), limit.available.min(available)),
        None => (total, available),
    };
    MachineReport {
        os: std::env::consts::OS.to_owned(),
        wsl: is_wsl(&read(root, "proc/sys/kernel/osrelease")),
        ram_total,
        ram_available,
        // Version 1 writes "no limit" as a number beyond any RAM.
        ram_limit: limit.map(|limit| limit.total).filter(|&limit| total == 0 || limit < total),
        page_lock_limit: page_lock_limit(&read(root, "proc/self/limits")),
        gpus: Vec::new(),
    }
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_default()
}

fn is_wsl(release: &str) -> bool {
    let release = release.to_lowercase();
    release.contains("microsoft") || release.contains("wsl")
}

/// The soft limit, which is the one that counts; `unlimited` is no number and no limit.
fn page_lock_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ram: (u64, u64), files: &[(&str, &str)]) -> MachineReport {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
            fs::write(path, text).expect("writes");
        }
        host(root.path(), ram)
    }

    fn limited(max: &'static str, current: &'static str) -> [(&'static str, &'static str); 3] {
        [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", max), ("sys/fs/cgroup/memory.current", current)]
    }

    #[test]
    fn ram_is_lowered_to_the_limit_and_never_raised() {
        let ram = |ram, max, current| {
            let report = report(ram, &limited(max, current));
            (report.ram_total, report.ram_available, report.ram_limit)
        };
        assert_eq!(ram((100, 80), "60", "10"), (60, 50, Some(60)));
        assert_eq!(ram((100, 20), "60", "10"), (60, 20, Some(60)));
        assert_eq!(ram((100, 80), "9223372036854771712", "10"), (100, 80, None));
        assert_eq!(ram((100, 80), "max", "10"), (100, 80, None));
        assert_eq!(ram((100, 80), "60", "70"), (60, 0, Some(60)));
        assert_eq!(ram((0, 0), "60", "10"), (60, 50, Some(60)), "all that is known");
        assert_eq!(ram((0, 0), "max", "10"), (0, 0, None));
    }

    #[test]
    fn page_lock_limits() {
        let table = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max locked memory         {soft:<20} 99                   bytes     \n"
            )
        };
        assert_eq!(page_lock_limit(&table("65536")), Some(65536));
        assert_eq!(page_lock_limit(&table("0")), Some(0));
        assert_eq!(page_lock_limit(&table("unlimited")), None);
        assert_eq!(page_lock_limit(""), None);
        assert_eq!(page_lock_limit("Max locked memory"), None);
        let text = table("4096");
        assert_eq!(report((1, 1), &[("proc/self/limits", &text)]).page_lock_limit, Some(4096));
    }

    #[test]
    fn wsl_is_recognized() {
        let wsl = |release: &str| report((1, 1), &[("proc/sys/kernel/osrelease", release)]).wsl;
        assert!(wsl("5.15.90.1-microsoft-standard-WSL2\n"));
        assert!(wsl("4.4.0-19041-Microsoft\n"));
        assert!(!wsl("6.1.0-13-amd64\n"));
        assert!(!report((1, 1), &[]).wsl);
    }
}
