//! The process's own memory and processor time, as Linux counts them.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// A field of `/proc/self/status`, bytes; `None` where there is no such thing.
pub fn field(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Processor time of all threads so far, seconds to a hundredth; `None` where the system does not tell.
pub fn processor_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // After the program's name, which may hold anything; in ticks, of which Linux shows a hundred a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?) as f64 / 100.0)
}

/// The most anonymous memory seen while this lives, looked at a hundred times a second.
pub struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start() -> Self {
        let (peak, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let thread = thread::spawn({
            let (peak, stop) = (peak.clone(), stop.clone());
            move || {
                while !stop.load(Relaxed) {
                    peak.fetch_max(field("RssAnon").unwrap_or(0), Relaxed);
                    thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Self { peak, stop, thread }
    }

    /// Bytes; `None` where the system does not tell.
    pub fn stop(self) -> Option<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().ok()?;
        Some(self.peak.load(Relaxed)).filter(|peak| *peak > 0)
    }
}
