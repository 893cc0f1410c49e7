//! What was seen so far: events of the engine, sorted by what they tell, and the figures that follow.

use super::{
    figures::{ComponentFigures, Figures},
    rates::{LaneLog, Moved},
    samples::Samples,
    spans::{Held, own_times},
};
use crate::timeline::{Event, Kind};
use mm_plan::Links;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A place of a component as its events name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: Arc<str>,
    /// Bytes on the device.
    pub(crate) bytes: u64,
    /// Bytes in the stored form.
    pub(crate) stored: u64,
}

/// One component.
struct Seen {
    /// Its groups in order, and last the rest.
    parts: Vec<Part>,
    places: HashMap<Arc<str>, usize>,
    /// Bytes copied, and bytes staged, of each part.
    moved: [Vec<u64>; 2],
    /// Of the pass under way.
    held: Vec<Held>,
    compute: Vec<Samples>,
    passes: u64,
    activation: Option<u64>,
}

/// A lane's copies: those that were each part's first, which may find its file unread and memory untouched, and later ones.
#[derive(Default)]
struct Lane {
    first: LaneLog,
    later: LaneLog,
}

impl Lane {
    fn usual(&self) -> &LaneLog {
        if self.later.is_empty() { &self.first } else { &self.later }
    }
}

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Observed {
    components: BTreeMap<Arc<str>, Seen>,
    link: Lane,
    staging: Lane,
}

impl Observed {
    /// Looks at a component from now on: its groups, and last its rest. One of that name that was another is forgotten.
    pub(crate) fn watch(&mut self, component: &Arc<str>, parts: Vec<Part>) {
        if self.components.get(component).is_some_and(|seen| seen.parts == parts) {
            return;
        }
        let seen = Seen {
            places: parts.iter().enumerate().map(|(place, part)| (part.name.clone(), place)).collect(),
            moved: [vec![0; parts.len()], vec![0; parts.len()]],
            held: Vec::new(),
            compute: vec![Samples::default(); parts.len()],
            passes: 0,
            activation: None,
            parts,
        };
        self.components.insert(component.clone(), seen);
    }

    /// Takes in what happened since the last call, in the order in which it was logged.
    pub(crate) fn read(&mut self, events: &[Event]) {
        let mut copies: [Vec<Moved>; 4] = Default::default();
        for event in events {
            let Some(label) = &event.label else { continue };
            let Some(seen) = self.components.get_mut(&label.component) else { continue };
            match event.kind {
                Kind::Copy | Kind::Stage => {
                    let lane = usize::from(event.kind == Kind::Stage);
                    if let Some((is_first, copy)) = seen.moved(lane, event) {
                        copies[2 * lane + usize::from(is_first)].push(copy);
                    }
                }
                Kind::Compute => seen.hold(seen.places.get(&label.group).copied(), event),
                Kind::Stall => seen.hold(None, event),
                Kind::Wait | Kind::Pass | Kind::Allocate | Kind::Free => {}
            }
        }
        let lanes = [&mut self.link.later, &mut self.link.first, &mut self.staging.later, &mut self.staging.first];
        lanes.into_iter().zip(&mut copies).for_each(|(log, copies)| log.add(copies));
    }

    /// A pass of the component ran to its end; its events have been read. `timed`: a lease lasts as long as what is computed in it.
    pub(crate) fn pass(&mut self, component: &str, start_ns: u64, end_ns: u64, timed: bool) {
        let Some(seen) = self.components.get_mut(component) else { return };
        // A pass that took no time has no clock.
        if !timed || end_ns <= start_ns {
            seen.held.clear();
            seen.passes += u64::from(!timed);
            return;
        }
        let mut held = std::mem::take(&mut seen.held);
        held.retain(|held| held.start_ns >= start_ns);
        // What nothing else took is the rest's.
        held.push(Held { group: seen.parts.len().checked_sub(1), start_ns, end_ns });
        let mut times = vec![0; seen.parts.len()];
        own_times(&mut held, &mut times);
        seen.compute.iter_mut().zip(times).for_each(|(samples, ns)| samples.add(ns));
        seen.passes += 1;
        held.clear();
        seen.held = held;
    }

    /// A pass of the component was interrupted, or not all that happened in it is known.
    pub(crate) fn interrupted(&mut self, component: &str) {
        if let Some(seen) = self.components.get_mut(component) {
            seen.held.clear();
        }
    }

    /// Computing the component took that many bytes on top of its weights.
    pub(crate) fn activation(&mut self, component: &str, bytes: u64) {
        if let Some(seen) = self.components.get_mut(component) {
            seen.activation = seen.activation.max(Some(bytes));
        }
    }

    /// Complete passes of the component that were seen.
    pub(crate) fn passes(&self, component: &str) -> u64 {
        self.components.get(component).map_or(0, |seen| seen.passes)
    }

    /// Whether the links' figures come from more than first copies.
    pub(crate) fn has_usual_links(&self) -> bool {
        !self.link.later.is_empty() || !self.staging.later.is_empty()
    }

    /// The figures so far. `from_disk`: the files don't fit in memory, so that each copy reads them anew.
    pub(crate) fn figures(&self, from_disk: bool) -> Figures {
        let components = self.components.iter().filter_map(|(name, seen)| Some((name.to_string(), seen.figures()?)));
        Figures { links: self.links(from_disk), components: components.collect() }
    }

    fn links(&self, from_disk: bool) -> Option<Links> {
        let link = self.link.usual().speed();
        let staging = self.staging.usual().speed().map(|speed| speed.rate);
        // What reads the files: the staging lane where there is one.
        let reads = if staging.is_some() { &self.staging } else { &self.link };
        let usual = reads.usual().stored_rate();
        // In memory they are read once: only if that was much slower was it the disk.
        let first = || reads.first.stored_rate().filter(|first| usual.is_some_and(|usual| *first < usual / 2));
        let disk = if from_disk { usual } else { first() };
        (link.is_some() || staging.is_some()).then(|| Links {
            h2d: link.map_or(0, |speed| speed.rate),
            staging,
            disk,
            copy_fixed_ns: link.map_or(0, |speed| speed.fixed_ns),
        })
    }
}

impl Seen {
    /// Whether a copy was its part's first, and what it moved.
    fn moved(&mut self, lane: usize, event: &Event) -> Option<(bool, Moved)> {
        let label = event.label.as_ref()?;
        let place = *self.places.get(&label.group)?;
        let Part { bytes, stored, .. } = &self.parts[place];
        let so_far = &mut self.moved[lane][place];
        let is_first = *so_far < *bytes;
        *so_far = so_far.saturating_add(event.bytes);
        let share = u128::from(event.bytes) * u128::from(*stored) / u128::from(*bytes).max(1);
        let stored = u64::try_from(share).unwrap_or(u64::MAX);
        Some((is_first, Moved { start_ns: event.start_ns, end_ns: event.end_ns, bytes: event.bytes, stored }))
    }

    fn hold(&mut self, group: Option<usize>, event: &Event) {
        self.held.push(Held { group, start_ns: event.start_ns, end_ns: event.end_ns });
    }

    fn figures(&self) -> Option<ComponentFigures> {
        let mut compute_ns: Vec<Option<u64>> = self.compute.iter().map(Samples::typical).collect();
        let rest_ns = compute_ns.pop().flatten();
        (self.passes > 0 || self.activation.is_some()).then_some(ComponentFigures {
            compute_ns,
            rest_ns,
            activation: self.activation,
            passes: self.passes,
        })
    }
}
