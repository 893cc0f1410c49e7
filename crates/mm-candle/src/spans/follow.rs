//! Opens and closes groups as spans are entered and left.
//!
//! Each thread has one group open: that of the innermost span it is in, else, on the thread of the run, that of the last one. So
//! what may be used when does not depend on the plan, and a span that is entered twice, inside others, or in another order
//! than last time is right as well.

use super::gate::Gate;
use crate::build::Link;
use mm_engine::{AnyDevice, EngineError, GroupLease};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    thread::{self, ThreadId},
};

/// Which group each thread has open.
pub(super) struct Follow {
    /// Per span.
    groups: Vec<Option<usize>>,
    gate: Arc<Gate>,
    link: Link,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The thread of the run, while there is one.
    run: Option<ThreadId>,
    threads: HashMap<ThreadId, Track>,
    open: HashMap<usize, Open>,
    /// What an enter could not say. Nothing is opened any more in this run.
    error: Option<EngineError>,
    failed: bool,
    /// Several threads were in spans at once.
    crowded: bool,
}

#[derive(Default)]
struct Track {
    /// The spans it is in, and their groups.
    spans: Vec<(u64, usize)>,
    group: Option<usize>,
}

struct Open {
    threads: usize,
    _lease: GroupLease<AnyDevice>,
}

/// What a run came to.
pub(super) struct Outcome {
    /// What went wrong where nobody could be told.
    pub(super) error: Option<EngineError>,
    pub(super) crowded: bool,
}

impl Follow {
    pub(super) fn new(groups: Vec<Option<usize>>, gate: Arc<Gate>, link: Link) -> Self {
        Self { groups, gate, link, state: Mutex::default() }
    }

    /// A run begins on this thread.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        *state = State { run: Some(thread::current().id()), ..State::default() };
    }

    /// The run ends: all is closed.
    pub(super) fn end(&self) -> Outcome {
        let mut state = self.state.lock();
        self.close_all(&mut state);
        let State { error, crowded, .. } = std::mem::take(&mut *state);
        Outcome { error, crowded }
    }

    /// A span is entered, by its number from 1.
    pub(super) fn enter(&self, span: u64) {
        let Some(group) = self.group(span) else { return };
        let mut state = self.state.lock();
        if state.run.is_none() {
            return;
        }
        let here = thread::current().id();
        state.crowded |= state.threads.iter().any(|(thread, track)| *thread != here && track.group.is_some());
        state.threads.entry(here).or_default().spans.push((span, group));
        self.turn(&mut state, here, Some(group));
    }

    /// A span is left.
    pub(super) fn exit(&self, span: u64) {
        if self.group(span).is_none() {
            return;
        }
        let mut state = self.state.lock();
        let here = thread::current().id();
        let is_run = state.run == Some(here);
        let Some(track) = state.threads.get_mut(&here) else { return };
        let Some(place) = track.spans.iter().rposition(|(id, _)| *id == span) else { return };
        track.spans.remove(place);
        match track.spans.last() {
            Some((_, outer)) => {
                let outer = *outer;
                self.turn(&mut state, here, Some(outer));
            }
            // What comes after it, up to the next, may still be its layer's.
            None if is_run => {}
            None => {
                self.turn(&mut state, here, None);
                state.threads.remove(&here);
            }
        }
    }

    fn group(&self, span: u64) -> Option<usize> {
        let index = usize::try_from(span).ok()?.checked_sub(1)?;
        self.groups.get(index).copied().flatten()
    }

    /// Closes what the thread has open, and opens this instead.
    fn turn(&self, state: &mut State, thread: ThreadId, group: Option<usize>) {
        if state.failed {
            return;
        }
        let Some(track) = state.threads.get_mut(&thread) else { return };
        if track.group == group {
            return;
        }
        let before = track.group.take();
        let turned = self.close(state, before).and_then(|()| self.open(state, group));
        match turned {
            Ok(()) => {
                if let Some(track) = state.threads.get_mut(&thread) {
                    track.group = group;
                }
            }
            Err(error) => {
                self.close_all(state);
                (state.error, state.failed) = (Some(error), true);
            }
        }
    }

    fn open(&self, state: &mut State, group: Option<usize>) -> Result<(), EngineError> {
        let Some(group) = group else { return Ok(()) };
        if let Some(open) = state.open.get_mut(&group) {
            open.threads += 1;
            return Ok(());
        }
        let early = || EngineError::Misuse("a model is run while it is built".to_owned());
        let lease = self.link.get().ok_or_else(early)?.lease(group)?;
        self.gate.open(group).map_err(EngineError::Internal)?;
        state.open.insert(group, Open { threads: 1, _lease: lease });
        Ok(())
    }

    fn close(&self, state: &mut State, group: Option<usize>) -> Result<(), EngineError> {
        let Some(group) = group else { return Ok(()) };
        let Some(open) = state.open.get_mut(&group) else { return Ok(()) };
        open.threads = open.threads.saturating_sub(1);
        if open.threads > 0 {
            return Ok(());
        }
        let closed = self.gate.close(group).map_err(EngineError::Internal);
        // The lease goes after the weights have left.
        state.open.remove(&group);
        closed
    }

    fn close_all(&self, state: &mut State) {
        state.threads.clear();
        for (group, open) in state.open.drain() {
            // Closing fails only where there is nothing to close.
            let _ = self.gate.close(group);
            drop(open);
        }
    }
}
