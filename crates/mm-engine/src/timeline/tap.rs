//! Events for somebody who reads along, besides the log: bounded, and nothing is allocated when one comes in.

use super::{Event, Kind};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    /// How many `events` may hold; it has the room.
    capacity: usize,
    missed: u64,
}

/// Where events of copies and compute are left for one reader.
#[derive(Default)]
pub(crate) struct Tap {
    on: AtomicBool,
    taken: AtomicBool,
    /// The device tells of copies and compute by a clock of its own: what the host says of them is none of the reader's.
    staging_alone: AtomicBool,
    seen: Mutex<Seen>,
}

impl Tap {
    /// Takes the tap, which has one reader; `false`: somebody else has it.
    pub(crate) fn claim(&self) -> bool {
        !self.taken.swap(true, Relaxed)
    }

    /// Gives the tap back, and what it holds up.
    pub(crate) fn release(&self) {
        self.set(false);
        self.set_staging_alone(false);
        *self.seen.lock() = Seen::default();
        self.taken.store(false, Relaxed);
    }

    pub(crate) fn set(&self, on: bool) {
        self.on.store(on, Relaxed);
    }

    /// Whether only staging is seen.
    pub(crate) fn set_staging_alone(&self, alone: bool) {
        self.staging_alone.store(alone, Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Makes room for that many events between two readings.
    pub(crate) fn reserve(&self, capacity: usize) {
        let mut seen = self.seen.lock();
        if capacity > seen.capacity {
            let more = capacity.saturating_sub(seen.events.len());
            seen.events.reserve_exact(more);
            seen.capacity = capacity;
        }
    }

    /// Moves what came in since the last reading to the end of `into`; how many events found no room.
    pub(crate) fn read(&self, into: &mut Vec<Event>) -> u64 {
        let mut seen = self.seen.lock();
        into.append(&mut seen.events);
        std::mem::take(&mut seen.missed)
    }

    pub(super) fn see(&self, event: &Event) {
        if !self.is_on() || !matches!(event.kind, Kind::Copy | Kind::Stage | Kind::Compute | Kind::Stall) {
            return;
        }
        if event.kind != Kind::Stage && self.staging_alone.load(Relaxed) {
            return;
        }
        let mut seen = self.seen.lock();
        if seen.events.len() < seen.capacity {
            seen.events.push(event.clone());
        } else {
            seen.missed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Label, Timeline};

    fn log(timeline: &Timeline, kind: Kind, count: usize) {
        let label = Label { component: "a".into(), group: "b".into() };
        (0..count).for_each(|_| timeline.span(kind, 0, &label, 0, 1));
    }

    #[test]
    fn it_sees_what_it_is_for_also_while_nothing_is_recorded() {
        let timeline = Timeline::new(10);
        let (tap, mut events) = (&timeline.tap, Vec::new());
        log(&timeline, Kind::Copy, 3);
        assert!(tap.claim() && !tap.claim());
        tap.reserve(4);
        log(&timeline, Kind::Copy, 3);
        assert_eq!((tap.read(&mut events), events.len()), (0, 0), "it is off");
        tap.set(true);
        timeline.set_recording(false);
        log(&timeline, Kind::Copy, 2);
        log(&timeline, Kind::Pass, 2);
        timeline.allocated(1, 1);
        assert_eq!((tap.read(&mut events), events.len()), (0, 2));
        assert_eq!(timeline.events().len(), 6, "the log doesn't record");
        log(&timeline, Kind::Compute, 7);
        assert_eq!((tap.read(&mut events), events.len()), (3, 6), "no room for three");
        assert_eq!((tap.read(&mut events), events.len()), (0, 6));
        tap.release();
        log(&timeline, Kind::Compute, 1);
        assert_eq!((tap.read(&mut events), events.len()), (0, 6));
        assert!(tap.claim());
    }

    #[test]
    fn nothing_is_allocated_when_an_event_comes_in() {
        let timeline = Timeline::new(1);
        timeline.tap.reserve(1000);
        timeline.tap.set(true);
        let room = || timeline.tap.seen.lock().events.capacity();
        let before = room();
        for _ in 0..3 {
            log(&timeline, Kind::Stall, 2000);
            timeline.tap.read(&mut Vec::new());
            assert_eq!(room(), before);
        }
    }
}
