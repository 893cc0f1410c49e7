//! One manager's calibration: what it has seen, what its plans are made with, and when it is time to look again.

use super::{
    Calibration, Hysteresis,
    figures::{Figures, merged},
    observed::{Observed, Part},
    store::FigureStore,
};
use crate::{
    EngineError, Result,
    device::Stopwatch,
    timeline::{Event, Kind, Timeline},
};
use mm_cache::Key;
use mm_plan::Note;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Passes after which a component that has more in a request is measured: the first, which is told apart, and two more.
const ENOUGH: u64 = 3;

/// Passes after which nothing is learned any more.
const SETTLED: u64 = 16;

/// Notes kept; what is said beyond is not.
const NOTES: usize = 64;

/// Events between two readings: of a pass, and some more of others.
const LEAST_EVENTS: usize = 4096;
const MOST_EVENTS: usize = 1 << 18;

/// On a device's own clock.
const LEAST_SPANS: usize = 64;

/// A component, as the manager knows it.
pub(crate) struct Met {
    pub(crate) key: Key,
    /// Its groups in order, and last its rest.
    pub(crate) parts: Vec<Part>,
    /// Slabs of all parts.
    pub(crate) slabs: usize,
    /// Passes per request.
    pub(crate) passes: u32,
}

struct Known {
    met: Met,
    /// Measured after so many passes.
    enough: u64,
    /// Bytes moved in a request if all of it streamed: whose time weighs most.
    weight: u128,
}

struct Inner {
    observed: Observed,
    known: BTreeMap<Arc<str>, Known>,
    /// What plans are made with.
    in_use: Figures,
    /// Where the links in use were kept with the component that weighs most.
    links_weight: Option<u128>,
    ram_available: u64,
    /// Something was measured that nobody has looked at.
    due: bool,
    /// A plan was replaced because another was faster; that happens once.
    replaced: bool,
    notes: Vec<Note>,
    events: Vec<Event>,
}

/// Who tells times.
pub(crate) enum Timing {
    /// Nobody.
    Nobody,
    /// The host's clock: the timeline's events.
    Host,
    /// A clock of the device's own; the host's only for what readers do.
    Device(Arc<dyn Stopwatch>),
}

/// One manager's calibration. Its lock is taken after the manager's, never before.
pub(crate) struct Session {
    pub(crate) hysteresis: Hysteresis,
    store: Option<FigureStore>,
    timeline: Arc<Timeline>,
    timing: Timing,
    /// There is something left to learn.
    learning: AtomicBool,
    inner: Mutex<Inner>,
}

/// What a calibration has come to.
#[derive(Clone, Debug, Default)]
pub struct CalibrationReport {
    /// What was measured or, where nothing was yet, kept from before.
    pub figures: Figures,
    /// What was decided, and what went wrong with the figures that are kept.
    pub notes: Vec<Note>,
}

/// What there is to look at.
pub(crate) struct Due {
    pub(crate) figures: Figures,
    /// A plan may be replaced because another is faster.
    pub(crate) may_replace: bool,
}

impl Session {
    /// # Errors
    /// `Misuse`: another manager is calibrated over this timeline, or on this device.
    pub(crate) fn start(calibration: Calibration, timeline: &Arc<Timeline>, timing: Timing) -> Result<Self> {
        if !timeline.tap.claim() {
            let text = "another manager is calibrated over this timeline; give each manager a timeline of its own";
            return Err(EngineError::Misuse(text.to_owned()));
        }
        if let Timing::Device(stopwatch) = &timing {
            if !stopwatch.claim() {
                timeline.tap.release();
                let text = "another manager is calibrated on this device; only one can be";
                return Err(EngineError::Misuse(text.to_owned()));
            }
            timeline.tap.set_staging_alone(true);
        }
        let Calibration { machine, workload, folder, hysteresis } = calibration;
        let inner = Inner {
            observed: Observed::default(),
            known: BTreeMap::new(),
            in_use: Figures::default(),
            links_weight: None,
            ram_available: 0,
            due: false,
            replaced: false,
            notes: Vec::new(),
            events: Vec::new(),
        };
        let store = folder.map(|folder| FigureStore::new(folder, &machine, &workload));
        let learning = AtomicBool::new(false);
        Ok(Self { hysteresis, store, timeline: timeline.clone(), timing, learning, inner: Mutex::new(inner) })
    }

    /// Whether a component of this name was met that is made of this.
    pub(crate) fn knows(&self, title: &str, key: Key) -> bool {
        self.inner.lock().known.get(title).is_some_and(|known| known.met.key == key)
    }

    /// A component is to be planned: what is kept of it counts until it is measured. `ram_available`: of the machine.
    pub(crate) fn meet(&self, title: &Arc<str>, met: Met, ram_available: u64) {
        let inner = &mut *self.inner.lock();
        inner.ram_available = ram_available;
        inner.observed.watch(title, met.parts.clone());
        inner.in_use.components.remove(&**title);
        let bytes: u128 = met.parts.iter().map(|part| u128::from(part.bytes)).sum();
        let weight = bytes * u128::from(met.passes.max(1));
        let enough = u64::from(met.passes).clamp(1, ENOUGH);
        if let Some(store) = &self.store {
            let (kept, note) = store.component(met.key, met.parts.len().saturating_sub(1));
            inner.say(note);
            let mut links = None;
            if let Some(kept) = kept {
                inner.in_use.components.insert(title.to_string(), kept.figures);
                links = kept.links.filter(|_| inner.links_weight.is_none_or(|heaviest| weight > heaviest));
            }
            if links.is_some() {
                (inner.in_use.links, inner.links_weight) = (links, Some(weight));
            } else if inner.in_use.links.is_none() {
                let (links, note) = store.links();
                inner.say(note);
                inner.in_use.links = links;
            }
        }
        inner.known.insert(title.clone(), Known { met, enough, weight });
        let slabs: usize = inner.known.values().map(|known| known.met.slabs + known.met.parts.len()).sum();
        let events = slabs.saturating_mul(4);
        self.timeline.tap.reserve(events.clamp(LEAST_EVENTS, MOST_EVENTS));
        if let Timing::Device(stopwatch) = &self.timing {
            // A pass or two that are under way, and what is copied for the next.
            stopwatch.start(events.max(LEAST_SPANS));
        }
        self.timeline.tap.set(!matches!(self.timing, Timing::Nobody));
        self.learning.store(true, Relaxed);
    }

    /// What plans are made with.
    pub(crate) fn in_use(&self) -> Figures {
        self.inner.lock().in_use.clone()
    }

    /// A pass ended.
    pub(crate) fn pass(&self, title: &str, start_ns: u64, end_ns: u64, complete: bool) {
        if !self.learning.load(Relaxed) {
            return;
        }
        let inner = &mut *self.inner.lock();
        if let Timing::Device(stopwatch) = &self.timing {
            return self.read(inner, &**stopwatch);
        }
        let missed = self.timeline.tap.read(&mut inner.events);
        inner.observed.read(&inner.events);
        inner.events.clear();
        if !complete || missed > 0 {
            return inner.observed.interrupted(title);
        }
        self.passed(inner, title, start_ns, end_ns);
    }

    /// Takes in what the device has come to by now. A pass counts once it has ended there, which is later than on the host.
    fn read(&self, inner: &mut Inner, stopwatch: &dyn Stopwatch) {
        let mut events = std::mem::take(&mut inner.events);
        // What is lost of staging is a smaller sample.
        self.timeline.tap.read(&mut events);
        if let Some(reason) = stopwatch.read(&mut events) {
            let text = format!("Times are not measured any more, as the device can't tell them: {reason}.");
            inner.say(Some(Note::new("times_lost", &[], text)));
        }
        let mut rest = &events[..];
        while let Some(at) = rest.iter().position(|event| event.kind == Kind::Pass) {
            inner.observed.read(&rest[..at]);
            let Event { label, start_ns, end_ns, .. } = &rest[at];
            if let Some(label) = label {
                self.passed(inner, &label.component, *start_ns, *end_ns);
            }
            rest = &rest[at + 1..];
        }
        inner.observed.read(rest);
        events.clear();
        inner.events = events;
    }

    /// A pass ran to its end, and its events have been read.
    fn passed(&self, inner: &mut Inner, title: &str, start_ns: u64, end_ns: u64) {
        let before = inner.observed.passes(title);
        inner.observed.pass(title, start_ns, end_ns, !matches!(self.timing, Timing::Nobody));
        let passes = inner.observed.passes(title);
        let Some(enough) = inner.known.get(title).map(|known| known.enough).filter(|_| passes > before) else { return };
        if passes == enough {
            inner.due |= inner.is_time(title);
        }
        if passes == enough || passes == SETTLED {
            self.keep(inner, title);
        }
        if inner.known.keys().all(|title| inner.observed.passes(title) >= SETTLED) {
            self.timeline.tap.set(false);
            if let Timing::Device(stopwatch) = &self.timing {
                stopwatch.stop();
            }
            self.learning.store(false, Relaxed);
        }
    }

    /// Computing the component took that many bytes on top of its weights.
    pub(crate) fn activation(&self, title: &str, bytes: u64) {
        let inner = &mut *self.inner.lock();
        let activation = |figures: &Figures| figures.components.get(title).and_then(|figures| figures.activation);
        let known = activation(&inner.in_use).max(activation(&inner.observed.figures(false)));
        inner.observed.activation(title, bytes);
        inner.due |= known < Some(bytes);
    }

    /// What was measured since the last look, if it is time for one.
    pub(crate) fn due(&self) -> Option<Due> {
        let inner = &mut *self.inner.lock();
        self.look(inner);
        if !std::mem::take(&mut inner.due) {
            return None;
        }
        inner.in_use = inner.figures();
        Some(Due { figures: inner.in_use.clone(), may_replace: !inner.replaced })
    }

    /// What came of a look.
    pub(crate) fn decided(&self, replaced: bool, note: Note) {
        let inner = &mut *self.inner.lock();
        inner.replaced |= replaced;
        inner.say(Some(note));
    }

    pub(crate) fn report(&self) -> CalibrationReport {
        let inner = &mut *self.inner.lock();
        self.look(inner);
        CalibrationReport { figures: inner.figures(), notes: inner.notes.clone() }
    }

    /// The device may have come further since the last pass ended.
    fn look(&self, inner: &mut Inner) {
        if let Timing::Device(stopwatch) = &self.timing
            && self.learning.load(Relaxed)
        {
            self.read(inner, &**stopwatch);
        }
    }

    fn keep(&self, inner: &mut Inner, title: &str) {
        let figures = inner.figures();
        if let (Some(store), Some(known), Some(component)) =
            (&self.store, inner.known.get(title), figures.components.get(title))
        {
            let note = store.keep(known.met.key, component, figures.links);
            inner.say(note);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.timeline.tap.release();
        if let Timing::Device(stopwatch) = &self.timing {
            stopwatch.release();
        }
    }
}

impl Inner {
    /// Whether a component that has just been measured makes a look worth it: it weighs most, or all are measured now.
    fn is_time(&self, title: &str) -> bool {
        let heaviest =
            self.known.iter().max_by_key(|(_, known)| known.weight).is_some_and(|(name, _)| **name == *title);
        heaviest || self.known.iter().all(|(name, known)| self.observed.passes(name) >= known.enough)
    }

    /// What was measured; where that is not enough, what was kept.
    fn figures(&self) -> Figures {
        let stored = self.known.values().flat_map(|known| &known.met.parts).map(|part| u128::from(part.stored));
        let from_disk = self.ram_available > 0 && stored.sum::<u128>() > u128::from(self.ram_available);
        let Figures { links, components } = self.observed.figures(from_disk);
        let mut figures = self.in_use.clone();
        if self.observed.has_usual_links() || figures.links.is_none() {
            figures.links = links.map_or(figures.links, |links| merged(figures.links, links).or(Some(links)));
        }
        for (name, measured) in components {
            let enough = self.known.get(&*name).is_some_and(|known| measured.passes >= known.enough);
            match figures.components.get_mut(&name) {
                Some(kept) if !enough => kept.activation = kept.activation.max(measured.activation),
                Some(kept) => {
                    let activation = measured.activation.or(kept.activation);
                    *kept = measured;
                    kept.activation = activation;
                }
                None => {
                    figures.components.insert(name, measured);
                }
            }
        }
        figures
    }

    fn say(&mut self, note: Option<Note>) {
        if self.notes.len() < NOTES {
            self.notes.extend(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Kind, Label};

    fn met(passes: u32) -> Met {
        let part = |name: &str| Part { name: name.into(), bytes: 256, stored: 256 };
        Met { key: mm_cache::component_hash("a"), parts: vec![part("layers.0"), part("rest")], slabs: 2, passes }
    }

    fn session(timed: bool) -> (Arc<Timeline>, Session) {
        let timeline = Arc::new(Timeline::new(10));
        let timing = if timed { Timing::Host } else { Timing::Nobody };
        let session = Session::start(Calibration::of("test"), &timeline, timing).unwrap();
        session.meet(&"big".into(), met(20), 0);
        session.meet(&"small".into(), met(1), 0);
        (timeline, session)
    }

    fn passes(session: &Session, title: &str, count: u64) {
        (0..count).for_each(|i| session.pass(title, i * 10, i * 10 + 10, true));
    }

    #[test]
    fn it_is_time_when_what_weighs_most_is_measured_and_when_all_is() {
        let (_timeline, session) = session(true);
        passes(&session, "big", 2);
        assert!(session.due().is_none());
        passes(&session, "big", 1);
        assert!(session.due().is_some_and(|due| due.may_replace));
        assert!(session.due().is_none(), "looked at");
        passes(&session, "big", 5);
        assert!(session.due().is_none());
        passes(&session, "small", 1);
        assert!(session.due().is_some_and(|due| due.may_replace), "nothing was replaced yet");
    }

    #[test]
    fn a_plan_is_replaced_once_for_its_time() {
        let (_timeline, session) = session(true);
        passes(&session, "big", 3);
        assert!(session.due().is_some_and(|due| due.may_replace));
        session.decided(true, Note::new("calibrated", &[], ""));
        passes(&session, "small", 1);
        assert!(session.due().is_some_and(|due| !due.may_replace));
        session.activation("big", 7);
        assert!(session.due().is_some_and(|due| !due.may_replace), "memory is looked at all the same");
        session.activation("big", 7);
        session.activation("big", 6);
        assert!(session.due().is_none(), "it was known");
    }

    #[test]
    fn a_pass_of_which_not_all_is_known_does_not_count() {
        let (timeline, session) = session(true);
        let label = Label { component: "big".into(), group: "layers.0".into() };
        (0..=LEAST_EVENTS).for_each(|_| timeline.span(Kind::Compute, 0, &label, 0, 0));
        passes(&session, "big", 1);
        assert_eq!(session.report().figures, Figures::default());
        passes(&session, "big", 1);
        assert_eq!(session.report().figures.components["big"].passes, 1);
    }

    #[test]
    fn when_all_is_settled_nobody_listens() {
        let (timeline, session) = session(true);
        passes(&session, "big", SETTLED);
        assert!(timeline.tap.is_on());
        passes(&session, "small", SETTLED + 5);
        assert!(!timeline.tap.is_on());
        assert_eq!(session.report().figures.components["small"].passes, SETTLED);
        session.meet(&"new".into(), met(1), 0);
        assert!(timeline.tap.is_on());
    }

    #[test]
    fn a_device_that_tells_no_times_is_measured_in_memory_alone() {
        let (timeline, session) = session(false);
        assert!(!timeline.tap.is_on());
        session.activation("big", 9);
        passes(&session, "big", 3);
        let figures = session.due().unwrap().figures;
        assert_eq!((figures.links, figures.components["big"].activation), (None, Some(9)));
        assert_eq!(figures.components["big"].compute_ns, [None]);
    }
}
