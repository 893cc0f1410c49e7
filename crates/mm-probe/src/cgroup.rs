//! The memory limit that a container or service manager sets, which kills long before the host's RAM is gone.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// What the control groups leave to this process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The lowest limit of this process's group and the groups around it.
    pub(crate) total: u64,
    /// What may still be taken before the first of these limits is met.
    pub(crate) available: u64,
}

/// Where one version of control groups keeps its figures.
struct Version {
    /// Mount points, the usual one first.
    mounts: &'static [&'static str],
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: cached file pages that the kernel gives up before it kills. Weights mapped once are counted
    /// here, so leaving them in would call a machine full that is not.
    reclaimable: &'static str,
}

const V2: Version = Version {
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
};

const V1: Version = Version {
    mounts: &["sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// The limit that holds for this process; `None` where none is set. `root` is `/`, or a folder laid out like it.
pub(crate) fn limit(root: &Path) -> Option<Limit> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut lowest: Option<Limit> = None;
    for (version, group) in groups.lines().filter_map(membership) {
        for mount in version.mounts.iter().map(|mount| root.join(mount)) {
            for folder in enclosing(&mount, group) {
                let Some(level) = level(&folder, version) else { continue };
                let so_far = lowest.unwrap_or(level);
                lowest = Some(Limit {
                    total: so_far.total.min(level.total),
                    available: so_far.available.min(level.available),
                });
            }
        }
    }
    lowest
}

/// A line of `/proc/self/cgroup`: `0::/path`, or `4:memory,cpu:/path` for version 1.
fn membership(line: &str) -> Option<(&'static Version, &str)> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    if id == "0" && controllers.is_empty() {
        Some((&V2, group))
    } else {
        controllers.split(',').any(|controller| controller == "memory").then_some((&V1, group))
    }
}

/// The group's folder and those around it, up to the mount. A path that is not there is skipped by its reader: in a
/// container the group's path is often the host's, while the mount itself is the container's own group.
fn enclosing(mount: &Path, group: &str) -> Vec<PathBuf> {
    let parts = Path::new(group).components().filter(|part| !matches!(part, Component::RootDir));
    let parts: Vec<Component> = parts.collect();
    let mut folders = vec![mount.to_owned()];
    // Outside this process's namespace the path climbs (`/../..`), to where nothing can be read.
    if parts.iter().all(|part| matches!(part, Component::Normal(_))) {
        for part in parts {
            folders.push(folders[folders.len() - 1].join(part));
        }
    }
    folders
}

fn level(folder: &Path, version: &Version) -> Option<Limit> {
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    // No number is `max`: no limit here.
    let total = number(version.limit)?;
    let used = number(version.usage).unwrap_or(0).saturating_sub(reclaimable(folder, version.reclaimable));
    Some(Limit { total, available: total.saturating_sub(used) })
}

fn reclaimable(folder: &Path, key: &str) -> u64 {
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, bytes)| bytes.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
