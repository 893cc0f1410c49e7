//! What happened when: copies, computes, waits, allocations and passes, cheap enough to leave on.
//!
//! Exported as Chrome trace JSON, which Perfetto opens, and as a page for people.

mod chrome;
mod page;
mod summary;
mod tap;
mod trace;

pub use summary::{ComponentWork, PeakBytes, Summary, Work};
pub use trace::{Form, Trace, TraceError};

pub(crate) use tap::Tap;

use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

/// How many events are kept unless told otherwise; older ones are dropped and counted.
pub const DEFAULT_EVENTS: usize = 200_000;

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A slab copied to the device.
    Copy,
    /// A group leased: its compute is running.
    Compute,
    /// A slab gathered in page-locked memory on its way to the device; by devices that do so.
    Stage,
    /// Compute stood still until a copy had ended.
    Stall,
    /// A pass could not begin yet: another thread ran what was in the way, or the component was being put on the device.
    Wait,
    /// One forward of a component.
    Pass,
    /// Device memory allocated.
    Allocate,
    /// Device memory given back.
    Free,
}

impl Kind {
    const ALL: [Self; 8] =
        [Self::Copy, Self::Compute, Self::Stage, Self::Stall, Self::Wait, Self::Pass, Self::Allocate, Self::Free];

    /// Category in the exported trace.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Compute => "compute",
            Self::Stage => "stage",
            Self::Stall => "stall",
            Self::Wait => "wait",
            Self::Pass => "pass",
            Self::Allocate => "allocate",
            Self::Free => "free",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
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

/// A bounded log of events. Logging one takes some ten nanoseconds beside reading the clock.
pub struct Timeline {
    clock: Clock,
    capacity: usize,
    recording: AtomicBool,
    log: Mutex<Log>,
    pub(crate) tap: Tap,
}

enum Clock {
    Since(Instant),
    /// One that a simulation moves.
    Told(Box<dyn Fn() -> u64 + Send + Sync>),
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new(DEFAULT_EVENTS)
    }
}

impl Timeline {
    /// A timeline that keeps the last `capacity` events, and is recording.
    pub fn new(capacity: usize) -> Self {
        Self::on(Clock::Since(Instant::now()), capacity)
    }

    /// A timeline whose time is what `clock` says, in nanoseconds, never less than before: that of a simulation.
    pub fn with_clock(capacity: usize, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self::on(Clock::Told(Box::new(clock)), capacity)
    }

    fn on(clock: Clock, capacity: usize) -> Self {
        let mut log = Log::default();
        // So that a growing log never moves while a pass waits for it. Memory that is not written to yet takes address
        // space only; where there is none, or the capacity is meant as "all", the log grows as it must.
        let _ = log.events.try_reserve(if capacity > DEFAULT_EVENTS { 0 } else { capacity });
        let (capacity, recording) = (capacity.max(1), AtomicBool::new(true));
        Self { clock, capacity, recording, log: Mutex::new(log), tap: Tap::default() }
    }

    /// Stops recording, or goes on; what was recorded stays. While it is off nothing is logged, memory neither.
    pub fn set_recording(&self, on: bool) {
        self.recording.store(on, Relaxed);
    }

    /// Whether events are logged.
    pub fn is_recording(&self) -> bool {
        self.recording.load(Relaxed)
    }

    /// Nanoseconds since the timeline began.
    pub fn now(&self) -> u64 {
        match &self.clock {
            Clock::Since(origin) => u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Clock::Told(clock) => clock(),
        }
    }

    /// The events kept, oldest first by the time they were logged (an event is logged when it ends).
    pub fn events(&self) -> Vec<Event> {
        self.log.lock().events.iter().cloned().collect()
    }

    /// Logs something that began at `start_ns` and ends now. Devices log their copies so, each with its lane and bytes.
    pub fn span(&self, kind: Kind, lane: usize, label: &Label, start_ns: u64, bytes: u64) {
        if self.is_heard() {
            // A clock read on another thread may be a little ahead.
            let end_ns = self.now().max(start_ns);
            self.push(Event { kind, lane, label: Some(label.clone()), start_ns, end_ns, bytes, in_use: None });
        }
    }

    /// Logs something whose times the caller knows: of a device with a clock of its own, in nanoseconds of this timeline.
    pub fn log(&self, event: Event) {
        if self.is_heard() {
            self.push(event);
        }
    }

    /// Logs that `bytes` of device memory were allocated just now; `in_use` is what is allocated in all since.
    pub fn allocated(&self, bytes: u64, in_use: u64) {
        self.memory(Kind::Allocate, bytes, in_use);
    }

    /// Logs that `bytes` of device memory were given back just now; `in_use` is what is still allocated.
    pub fn freed(&self, bytes: u64, in_use: u64) {
        self.memory(Kind::Free, bytes, in_use);
    }

    fn memory(&self, kind: Kind, bytes: u64, in_use: u64) {
        if self.is_recording() {
            let (now, in_use) = (self.now(), Some(in_use));
            self.push(Event { kind, lane: 0, label: None, start_ns: now, end_ns: now, bytes, in_use });
        }
    }

    /// Whether somebody reads along besides the log.
    pub(crate) fn is_calibrated(&self) -> bool {
        self.tap.is_on()
    }

    fn is_heard(&self) -> bool {
        self.is_recording() || self.tap.is_on()
    }

    fn push(&self, event: Event) {
        self.tap.see(&event);
        if !self.is_recording() {
            return;
        }
        let mut log = self.log.lock();
        if log.events.len() == self.capacity {
            log.events.pop_front();
            log.dropped += 1;
        }
        log.events.push_back(event);
    }

    /// What was recorded, against the device's `budget` and the `planned` peak, both in bytes; zero: there is none.
    pub fn trace(&self, budget: u64, planned: u64) -> Trace {
        let (events, dropped) = {
            let log = self.log.lock();
            (log.events.iter().cloned().collect::<Vec<_>>(), log.dropped)
        };
        Trace::of(&events, budget, planned, dropped)
    }

    /// The timeline as Chrome trace JSON; see [`Trace::to_json`].
    pub fn to_chrome_trace(&self, budget: u64, planned: u64) -> Value {
        self.trace(budget, planned).to_json()
    }

    /// Writes the timeline to a file: as a page where its name ends in `.html`, else as Chrome trace JSON.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path, budget: u64, planned: u64) -> io::Result<()> {
        let form = Form::of(path).unwrap_or(Form::Chrome);
        std::fs::write(path, self.trace(budget, planned).render(form))
    }
}
