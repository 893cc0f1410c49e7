//! Runs a process up to the n-th system call that may write, and kills it there.

use std::fs;
use std::process::Child;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

#[derive(Debug)]
pub(crate) enum End {
    /// After that many stops, at entries and exits, of calls that may write.
    Exited { stops: usize, code: i32 },
    /// At the stop that was asked for.
    Killed,
}

/// Traces all threads of `child`, which waits to be told to `go`.
pub(crate) fn trace(child: &mut Child, kill_at: Option<usize>, go: impl FnOnce(&mut Child)) -> nix::Result<End> {
    let process = Pid::from_raw(child.id() as i32);
    for thread in threads(process) {
        ptrace::seize(
            thread,
            Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL,
        )?;
        ptrace::interrupt(thread)?;
    }
    go(child);
    let mut stops = 0;
    loop {
        // Those of this thread alone: another one traces too.
        let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))? {
            WaitStatus::PtraceSyscall(thread) => {
                if may_write(thread) {
                    if kill_at == Some(stops) {
                        kill(process, Signal::SIGKILL)?;
                    }
                    stops += 1;
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(thread, code) if thread == process => return Ok(End::Exited { stops, code }),
            WaitStatus::Signaled(thread, ..) if thread == process => return Ok(End::Killed),
            _ => continue,
        };
        match ptrace::syscall(thread, signal) {
            // Killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
}

fn threads(process: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("lists threads");
    let names = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok()?.parse().ok());
    names.map(Pid::from_raw).collect()
}

/// Whether the call at which the thread stops may change a file. One that is gone makes none.
fn may_write(thread: Pid) -> bool {
    let Ok(registers) = ptrace::getregs(thread) else { return false };
    #[cfg(target_arch = "x86_64")]
    let (call, arguments) = (registers.orig_rax as i64, [registers.rdi, registers.rsi, registers.rdx]);
    #[cfg(target_arch = "aarch64")]
    let (call, arguments) = (registers.regs[8] as i64, [registers.regs[0], registers.regs[1], registers.regs[2]]);
    let creates = |flags: u64| flags as i32 & libc::O_CREAT != 0;
    #[cfg(target_arch = "x86_64")]
    match call {
        libc::SYS_unlink | libc::SYS_rename | libc::SYS_mkdir => return true,
        libc::SYS_open => return creates(arguments[1]),
        _ => {}
    }
    match call {
        libc::SYS_pwrite64
        | libc::SYS_writev
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_unlinkat
        | libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_mkdirat
        | libc::SYS_utimensat => true,
        libc::SYS_openat => creates(arguments[2]),
        // Not what it prints. At the exit of a call aarch64 has its result in place of this.
        libc::SYS_write => arguments[0] > 2,
        _ => false,
    }
}
