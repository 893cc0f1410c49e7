//! Limits on a child's memory that the system enforces.

use anyhow::{Context, Result, ensure};
use std::{
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// How a child is limited. Nothing else about it changes.
pub(crate) enum Limit {
    /// Not at all.
    None,
    /// A memory cgroup: anonymous memory and cached file pages together.
    Cgroup(Cgroup),
    /// `RLIMIT_DATA`: anonymous memory that is asked for, touched or not.
    Data(u64),
}

/// A cgroup of ours, below the one we run in; removed when dropped.
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: u32,
    bytes: u64,
}

impl Limit {
    /// A memory cgroup of `bytes`.
    ///
    /// # Errors
    /// There is no memory controller, or we may not make a group in it.
    pub(crate) fn cgroup(bytes: u64) -> Result<Self> {
        let ours = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let v1 = ours.lines().find_map(|line| line.split_once(":memory:")).map(|(_, path)| (1, "memory", path));
        let v2 = ours.lines().find_map(|line| line.strip_prefix("0::")).map(|path| (2, "", path));
        let (version, controller, path) = v1.or(v2).context("no memory cgroup")?;
        let parent = Path::new("/sys/fs/cgroup").join(controller).join(path.trim_start_matches('/'));
        let folder = parent.join(format!("mm-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let group = Cgroup { folder, version, bytes };
        group.set(if version == 1 { "memory.limit_in_bytes" } else { "memory.max" }, bytes)?;
        // No way out into swap, where there is any.
        let swap = if version == 1 { ("memory.memsw.limit_in_bytes", bytes) } else { ("memory.swap.max", 0) };
        let _ = group.set(swap.0, swap.1);
        Ok(Self::Cgroup(group))
    }

    /// Runs a program to its end under the limit.
    pub(crate) fn run(&self, program: &Path, args: &[OsString]) -> Result<Output> {
        let mut shell = Command::new("sh");
        let command = match self {
            Self::None => Command::new(program).args(args).output(),
            Self::Data(bytes) => {
                shell.args(["-c", "ulimit -d \"$0\" && exec \"$@\"", &(bytes / 1024).to_string()]);
                shell.arg(program).args(args).output()
            }
            Self::Cgroup(group) => {
                shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.folder.join("cgroup.procs"));
                shell.arg(program).args(args).output()
            }
        };
        command.with_context(|| program.display().to_string())
    }

    /// The most that was charged, bytes; `None` where the limit does not count.
    pub(crate) fn peak(&self) -> Option<u64> {
        let Self::Cgroup(group) = self else { return None };
        let file = if group.version == 1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(group.folder.join(file)).ok()?.trim().parse().ok()
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no limit"),
            Self::Cgroup(group) => {
                write!(f, "memory cgroup v{} of {} MiB, file pages included", group.version, group.bytes >> 20)
            }
            Self::Data(bytes) => write!(f, "data limit of {} MiB (ulimit -d)", bytes >> 20),
        }
    }
}

impl Cgroup {
    fn set(&self, file: &str, bytes: u64) -> Result<()> {
        let file = self.folder.join(file);
        fs::write(&file, bytes.to_string()).with_context(|| file.display().to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is empty: its processes were waited for. One that stays costs nothing.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Drops a file's pages from the system's cache, so that they are charged to whoever reads them next.
pub(crate) fn forget(file: &Path) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", file.display())).args(["iflag=nocache", "count=0", "status=none"]);
    let status = dd.status().with_context(|| format!("{dd:?}"))?;
    ensure!(status.success(), "{dd:?} failed");
    Ok(())
}
