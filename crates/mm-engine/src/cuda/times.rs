//! When the streams came to copies and compute: timed events around each, read once they are done, without waiting.

use super::driver::{Gpu, Lane, Stamp};
use crate::{
    EngineError, Result,
    device::{Stopwatch, Ticket},
    timeline::{Event, Kind, Label, Timeline},
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Spans of a stream that are not read yet.
const MOST_SPANS: usize = 4096;

/// Of a device; see [`Stopwatch`].
pub(super) struct Times {
    gpu: Arc<Gpu>,
    timeline: Arc<Timeline>,
    taken: AtomicBool,
    on: AtomicBool,
    failure: Mutex<Failure>,
    compute: Track,
    copies: Track,
}

enum Failure {
    None,
    /// The driver's words, for the reader.
    Untold(String),
    Told,
}

/// What is measured on one stream.
struct Track {
    lane: Lane,
    /// Held while an event is recorded, so that spans are numbered in the order of the stream.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pairs: Vec<Pair>,
    /// Indices of pairs.
    spare: Vec<usize>,
    ended: VecDeque<usize>,
    /// The pair whose begin others are told from, and when that was: the closer it lies, the more exact they are, as the driver
    /// tells what lies between two events in 32-bit floats.
    anchor: Option<(usize, u64)>,
    begun: u64,
    lost: u64,
    done: Vec<Event>,
    capacity: usize,
}

struct Pair {
    begin: Stamp,
    end: Stamp,
    /// The place of `begin` among all in the stream.
    number: u64,
    span: Option<Span>,
}

struct Span {
    kind: Kind,
    label: Label,
    bytes: u64,
    /// What was lost before it began.
    lost: u64,
}

impl Times {
    pub(super) fn new(gpu: &Arc<Gpu>, timeline: &Arc<Timeline>) -> Arc<Self> {
        let track = |lane| Track { lane, state: Mutex::default() };
        Arc::new(Self {
            gpu: gpu.clone(),
            timeline: timeline.clone(),
            taken: AtomicBool::new(false),
            on: AtomicBool::new(false),
            failure: Mutex::new(Failure::None),
            compute: track(Lane::Compute),
            copies: track(Lane::Copies),
        })
    }

    /// A copy of `bytes` is enqueued next.
    pub(super) fn begin_copy(&self, label: &Label, bytes: u64) -> Option<Ticket> {
        self.open(&self.copies, Kind::Copy, label, bytes)
    }

    /// The copy was enqueued; `counts`: nothing went wrong.
    pub(super) fn end_copy(&self, ticket: Ticket, counts: bool) {
        self.close(&self.copies, ticket, counts);
    }

    fn open(&self, track: &Track, kind: Kind, label: &Label, bytes: u64) -> Option<Ticket> {
        if !self.on.load(Relaxed) {
            return None;
        }
        let state = &mut *track.state.lock();
        let opened = self.try_open(track.lane, state, kind, label, bytes);
        state.lost += u64::from(!matches!(opened, Ok(Some(_))));
        self.checked(opened).flatten().map(Ticket)
    }

    fn try_open(&self, lane: Lane, state: &mut State, kind: Kind, label: &Label, bytes: u64) -> Result<Option<usize>> {
        if state.spare.is_empty() {
            self.collect(state)?;
        }
        let Some(at) = state.spare.pop() else { return Ok(None) };
        state.begun += 1;
        let (number, lost) = (state.begun, state.lost);
        let pair = &mut state.pairs[at];
        (pair.number, pair.span) = (number, Some(Span { kind, label: label.clone(), bytes, lost }));
        if let Err(error) = self.gpu.reach(lane, &pair.begin) {
            pair.span = None;
            state.spare.push(at);
            return Err(error);
        }
        Ok(Some(at))
    }

    fn close(&self, track: &Track, Ticket(at): Ticket, counts: bool) {
        let state = &mut *track.state.lock();
        let Some(pair) = state.pairs.get_mut(at) else { return };
        let Some(span) = &pair.span else { return };
        let is_whole = span.kind != Kind::Pass || span.lost == state.lost;
        let wanted = counts && is_whole && self.on.load(Relaxed);
        let ended = wanted.then(|| self.gpu.reach(track.lane, &pair.end));
        if matches!(ended, Some(Ok(()))) {
            state.ended.push_back(at);
        } else {
            pair.span = None;
            state.spare.push(at);
        }
        if let Some(ended) = ended {
            self.checked(ended);
        }
    }

    /// Turns spans that are done into events, as far as there is room for them.
    fn collect(&self, state: &mut State) -> Result<()> {
        if !state.ended.is_empty() {
            self.gpu.bind()?;
        }
        while let Some(at) = state.ended.front().copied().filter(|_| state.done.len() < state.capacity) {
            if !self.gpu.is_reached(&state.pairs[at].end)? {
                break;
            }
            let event = self.event(state, at)?;
            state.ended.pop_front();
            state.pairs[at].span = None;
            let Some(event) = event else {
                state.spare.push(at);
                continue;
            };
            // Copies never lie inside each other, and nothing of a pass before it: what comes next lies near.
            if matches!(event.kind, Kind::Copy | Kind::Pass) {
                state.spare.extend(state.anchor.replace((at, event.start_ns)).map(|(before, _)| before));
            } else {
                state.spare.push(at);
            }
            state.done.push(event);
        }
        Ok(())
    }

    fn event(&self, state: &State, at: usize) -> Result<Option<Event>> {
        let pair = &state.pairs[at];
        let (Some(span), Some((anchor, anchor_ns))) = (&pair.span, state.anchor) else { return Ok(None) };
        let anchor = &state.pairs[anchor];
        // Asked so that the later event is the second.
        let start_ns = if pair.number >= anchor.number {
            anchor_ns.saturating_add(self.gpu.between(&anchor.begin, &pair.begin)?)
        } else {
            anchor_ns.saturating_sub(self.gpu.between(&pair.begin, &anchor.begin)?)
        };
        let end_ns = start_ns.saturating_add(self.gpu.between(&pair.begin, &pair.end)?);
        let (kind, label, bytes) = (span.kind, Some(span.label.clone()), span.bytes);
        Ok(Some(Event { kind, lane: 0, label, start_ns, end_ns, bytes, in_use: None }))
    }

    /// An error ends the measuring.
    fn checked<T>(&self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.fail(&error)).ok()
    }

    fn fail(&self, error: &EngineError) {
        self.on.store(false, Relaxed);
        let mut failure = self.failure.lock();
        if matches!(*failure, Failure::None) {
            *failure = Failure::Untold(error.to_string());
        }
    }

    /// Makes room, and marks a first point to tell others from.
    fn prepare(&self, track: &Track, spans: usize) -> Result<()> {
        let state = &mut *track.state.lock();
        let spans = spans.clamp(1, MOST_SPANS);
        // One more: the anchor.
        while state.pairs.len() <= spans {
            let pair = Pair { begin: self.gpu.stamp()?, end: self.gpu.stamp()?, number: 0, span: None };
            state.spare.push(state.pairs.len());
            state.pairs.push(pair);
        }
        let pairs = state.pairs.len();
        state.spare.reserve(pairs - state.spare.len());
        state.ended.reserve(pairs - state.ended.len());
        state.capacity = pairs;
        state.done.reserve_exact(pairs.saturating_sub(state.done.len()));
        if state.anchor.is_none()
            && let Some(at) = state.spare.pop()
        {
            state.begun += 1;
            state.pairs[at].number = state.begun;
            state.anchor = Some((at, self.timeline.now()));
            self.gpu.reach(track.lane, &state.pairs[at].begin)?;
        }
        Ok(())
    }
}

impl Stopwatch for Times {
    fn claim(&self) -> bool {
        !self.taken.swap(true, Relaxed)
    }

    fn release(&self) {
        self.stop();
        self.taken.store(false, Relaxed);
    }

    fn start(&self, spans: usize) {
        if matches!(*self.failure.lock(), Failure::None) {
            let prepared = self.prepare(&self.compute, spans).and_then(|()| self.prepare(&self.copies, spans));
            if self.checked(prepared).is_some() {
                self.on.store(true, Relaxed);
            }
        }
    }

    fn stop(&self) {
        self.on.store(false, Relaxed);
        for track in [&self.compute, &self.copies] {
            let state = &mut *track.state.lock();
            while let Some(at) = state.ended.pop_front() {
                state.pairs[at].span = None;
                state.spare.push(at);
            }
            state.done.clear();
        }
    }

    fn begin(&self, kind: Kind, label: Label) -> Option<Ticket> {
        self.open(&self.compute, kind, &label, 0)
    }

    fn end(&self, ticket: Ticket, counts: bool) {
        self.close(&self.compute, ticket, counts);
    }

    fn read(&self, into: &mut Vec<Event>) -> Option<String> {
        for track in [&self.copies, &self.compute] {
            if !self.on.load(Relaxed) {
                break;
            }
            let state = &mut *track.state.lock();
            let collected = self.collect(state);
            into.append(&mut state.done);
            self.checked(collected);
        }
        let failure = &mut *self.failure.lock();
        if matches!(failure, Failure::Untold(_))
            && let Failure::Untold(text) = std::mem::replace(failure, Failure::Told)
        {
            return Some(text);
        }
        None
    }
}
