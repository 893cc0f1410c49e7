//! The process's anonymous memory, watched while a pipeline runs.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(4);

/// Watches until it is stopped.
pub(crate) struct Watch {
    stop: Sender<()>,
    watcher: JoinHandle<Option<Peaks>>,
}

/// The highest values seen, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peaks {
    /// Anonymous memory.
    pub(crate) anonymous: u64,
    /// Anonymous memory above what there was at the start, less what the engine held at that time.
    pub(crate) activation: u64,
}

impl Watch {
    /// Starts watching; `engine` tells the bytes the engine holds, which are anonymous too.
    pub(crate) fn start(engine: impl Fn() -> u64 + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let baseline = anonymous().map(|bytes| bytes.saturating_sub(engine()));
        let watcher = std::thread::spawn(move || {
            let baseline = baseline?;
            let mut peaks = Peaks::default();
            loop {
                let stopped = stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout);
                // Asked before and after: engine memory that comes or goes meanwhile is no activation.
                let (before, now, after) = (engine(), anonymous()?, engine());
                peaks.see(now, baseline, before.max(after));
                if stopped {
                    return Some(peaks);
                }
            }
        });
        Self { stop, watcher }
    }

    /// What was seen; `None` where the system does not tell.
    pub(crate) fn stop(self) -> Option<Peaks> {
        drop(self.stop);
        self.watcher.join().ok().flatten()
    }
}

impl Peaks {
    fn see(&mut self, anonymous: u64, baseline: u64, engine: u64) {
        self.anonymous = self.anonymous.max(anonymous);
        self.activation = self.activation.max(anonymous.saturating_sub(baseline).saturating_sub(engine));
    }
}

fn anonymous() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let figure = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = figure.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_in_bytes() {
        assert_eq!(parse("VmRSS:\t 9 kB\nRssAnon:\t     123 kB\n"), Some(123 << 10));
        for bad in ["", "RssAnon:\t", "RssAnon: x kB", "RssAnon: 1 MB", "RssAnon: 18446744073709551615 kB"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn engine_memory_is_no_activation() {
        let mut peaks = Peaks::default();
        for (anonymous, engine) in [(10, 0), (50, 30), (40, 5), (90, 90)] {
            peaks.see(anonymous, 10, engine);
        }
        assert_eq!(peaks, Peaks { anonymous: 90, activation: 25 });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_is_seen() {
        let watch = Watch::start(|| 0);
        let bytes = vec![1u8; 64 << 20];
        let seen = watch.stop();
        assert_eq!(bytes[bytes.len() - 1], 1);
        assert!(seen.is_some_and(|peaks| peaks.anonymous >= 32 << 20), "{seen:?}");
    }
}
