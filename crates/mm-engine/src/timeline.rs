//! What happened when: copies, computes, waits, allocations and passes, cheap enough to leave on.
//!
//! Exported as Chrome trace JSON, which Perfetto opens.

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::VecDeque, io, path::Path, sync::Arc, time::Instant};

/// How many events are kept unless told otherwise; older ones are dropped and counted.
pub const DEFAULT_EVENTS: usize = 200_000;

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A slab copied to the device.
    Copy,
    /// A group leased: its compute is running.
    Compute,
    /// Compute stood still until a copy had ended.
    Stall,
    /// One forward of a component.
    Pass,
    /// Device memory allocated.
    Allocate,
    /// Device memory given back.
    Free,
}

impl Kind {
    /// Category in the exported trace.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Compute => "compute",
            Self::Stall => "stall",
            Self::Pass => "pass",
            Self::Allocate => "allocate",
            Self::Free => "free",
        }
    }
}

/// Which weights an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The component's name.
    pub component: Arc<str>,
    /// The group's name: `layers.3`; `rest`; empty for the whole component.
    pub group: Arc<str>,
}

/// One event; times in nanoseconds since the timeline began.
#[derive(Clone, Debug)]
pub struct Event {
    /// What it is.
    pub kind: Kind,
    /// Which thread of its kind it ran on.
    pub lane: usize,
    /// Which weights; `None` for allocations.
    pub label: Option<Label>,
    /// When it began.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// Bytes moved, allocated or freed.
    pub bytes: u64,
    /// Engine bytes on the device afterwards; allocations and frees only.
    pub in_use: Option<u64>,
}

#[derive(Default)]
struct Log {
    events: VecDeque<Event>,
    dropped: u64,
}

/// A bounded log of events.
pub struct Timeline {
    origin: Instant,
    capacity: usize,
    log: Mutex<Log>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new(DEFAULT_EVENTS)
    }
}

impl Timeline {
    /// A timeline that keeps the last `capacity` events.
    pub fn new(capacity: usize) -> Self {
        Self { origin: Instant::now(), capacity: capacity.max(1), log: Mutex::default() }
    }

    /// Nanoseconds since the timeline began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The events kept, oldest first by the time they were logged (an event is logged when it ends).
    pub fn events(&self) -> Vec<Event> {
        self.log.lock().events.iter().cloned().collect()
    }

    pub(crate) fn span(&self, kind: Kind, lane: usize, label: &Label, start_ns: u64, bytes: u64) {
        let end_ns = self.now();
        self.push(Event { kind, lane, label: Some(label.clone()), start_ns, end_ns, bytes, in_use: None });
    }

    pub(crate) fn allocated(&self, bytes: u64, in_use: u64) {
        self.memory(Kind::Allocate, bytes, in_use);
    }

    pub(crate) fn freed(&self, bytes: u64, in_use: u64) {
        self.memory(Kind::Free, bytes, in_use);
    }

    fn memory(&self, kind: Kind, bytes: u64, in_use: u64) {
        let now = self.now();
        let in_use = Some(in_use);
        self.push(Event { kind, lane: 0, label: None, start_ns: now, end_ns: now, bytes, in_use });
    }

    fn push(&self, event: Event) {
        let mut log = self.log.lock();
        if log.events.len() == self.capacity {
            log.events.pop_front();
            log.dropped += 1;
        }
        log.events.push_back(event);
    }

    /// The timeline as Chrome trace JSON. Times are microseconds there, as that format wants;
    /// `otherData` holds `schema`, the `budget` and `plan` bytes given, and how many events were dropped.
    pub fn to_chrome_trace(&self, budget: u64, planned: u64) -> Value {
        let micros = |ns: u64| ns as f64 / 1000.0;
        let mut trace: Vec<Value> = ["pass", "compute", "stall", "copy"]
            .iter()
            .enumerate()
            .map(|(row, name)| {
                json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": row * 100, "args": {"name": name}})
            })
            .collect();
        for event in self.events() {
            let row = match event.kind {
                Kind::Pass => 0,
                Kind::Compute => 100,
                Kind::Stall => 200,
                Kind::Copy => 300 + event.lane,
                Kind::Allocate | Kind::Free => {
                    trace.push(json!({
                        "ph": "C", "name": "engine bytes", "cat": event.kind.name(), "pid": 1, "ts": micros(event.start_ns),
                        "args": {"bytes": event.in_use},
                    }));
                    continue;
                }
            };
            let (component, group) = event.label.as_ref().map_or(("", ""), |l| (&*l.component, &*l.group));
            let name = if group.is_empty() { component.to_owned() } else { format!("{component}.{group}") };
            trace.push(json!({
                "ph": "X", "name": name, "cat": event.kind.name(), "pid": 1, "tid": row,
                "ts": micros(event.start_ns), "dur": micros(event.end_ns - event.start_ns),
                "args": {"component": component, "group": group, "bytes": event.bytes},
            }));
        }
        let dropped = self.log.lock().dropped;
        json!({
            "traceEvents": trace,
            "displayTimeUnit": "ms",
            "otherData": {"schema": 1, "budget": budget, "planned": planned, "dropped_events": dropped},
        })
    }

    /// Writes [`Timeline::to_chrome_trace`] to a file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path, budget: u64, planned: u64) -> io::Result<()> {
        std::fs::write(path, self.to_chrome_trace(budget, planned).to_string())
    }
}
