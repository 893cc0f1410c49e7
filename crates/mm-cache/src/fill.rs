//! One load in progress: who runs it, who waits for it, and how it is handed on when it fails.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use parking_lot::{Condvar, Mutex};

/// A loaded value of any type.
pub(crate) type Value = Arc<dyn Any + Send + Sync>;

/// A load that threads gather at. It is run by one of them at a time.
pub(crate) struct Fill {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stage: Stage,
    waiting: usize,
}

enum Stage {
    /// This thread runs its factory.
    Running(ThreadId),
    /// The last factory failed; the next thread to look runs its own.
    Open,
    /// Loaded. The value is kept here too, for a waiter that wakes after the entry was evicted.
    Done(Value, &'static str),
    /// Failed with nobody waiting, and gone from the map: look again there.
    Abandoned,
}

/// What came of joining a load.
pub(crate) enum Joined {
    /// It was loaded meanwhile: the value and the name of its type.
    Loaded(Value, &'static str),
    /// The caller is to run its factory now.
    Turn,
    /// The load is no longer in the map.
    Abandoned,
    /// Waiting would never end: the load waits, directly or through others, for this thread.
    Cycle,
}

/// Which thread waits for which load, to refuse a wait that would close a cycle.
#[derive(Default)]
pub(crate) struct Waits(Mutex<HashMap<ThreadId, Arc<Fill>>>);

impl Fill {
    /// A load that the calling thread runs.
    pub(crate) fn started() -> Arc<Self> {
        let stage = Stage::Running(thread::current().id());
        Arc::new(Self { state: Mutex::new(State { stage, waiting: 0 }), changed: Condvar::new() })
    }

    /// Waits for the load, or takes it over. `on_wait` is called once, before the first wait.
    pub(crate) fn join(self: &Arc<Self>, waits: &Waits, on_wait: impl FnOnce()) -> Joined {
        if let Some(joined) = self.state.lock().settle() {
            return joined;
        }
        if !waits.enter(self) {
            return Joined::Cycle;
        }
        on_wait();
        let mut state = self.state.lock();
        let joined = loop {
            if let Some(joined) = state.settle() {
                break joined;
            }
            state.waiting += 1;
            self.changed.wait(&mut state);
            state.waiting -= 1;
        };
        drop(state);
        waits.leave();
        joined
    }

    /// Publishes the value to everyone who waits.
    pub(crate) fn finish(&self, value: Value, type_name: &'static str) {
        self.state.lock().stage = Stage::Done(value, type_name);
        self.changed.notify_all();
    }

    /// Hands the load on to exactly one waiter. False: nobody waits, and the load is abandoned.
    pub(crate) fn hand_on(&self) -> bool {
        let mut state = self.state.lock();
        if state.waiting == 0 {
            state.stage = Stage::Abandoned;
            return false;
        }
        state.stage = Stage::Open;
        // One is enough: whoever takes the load over, this waiter or a newcomer, ends it and wakes the next.
        self.changed.notify_one();
        true
    }

    fn runner(&self) -> Option<ThreadId> {
        match self.state.lock().stage {
            Stage::Running(thread) => Some(thread),
            _ => None,
        }
    }
}

impl State {
    /// What the caller can do without waiting.
    fn settle(&mut self) -> Option<Joined> {
        match &self.stage {
            Stage::Running(_) => None,
            Stage::Done(value, type_name) => Some(Joined::Loaded(value.clone(), type_name)),
            Stage::Abandoned => Some(Joined::Abandoned),
            Stage::Open => {
                self.stage = Stage::Running(thread::current().id());
                Some(Joined::Turn)
            }
        }
    }
}

impl Waits {
    /// Notes that this thread is about to wait for `fill`. False, and not noted, where that would close a cycle.
    ///
    /// A cycle always closes with a wait, never with a thread taking a load over, as that thread waits for nothing
    /// then. So checking here, under one lock for all threads, misses none.
    fn enter(&self, fill: &Arc<Fill>) -> bool {
        let me = thread::current().id();
        let mut waits = self.0.lock();
        let mut runner = fill.runner();
        while let Some(thread) = runner {
            if thread == me {
                return false;
            }
            // A thread that has just taken over the load it waited for is still noted as waiting for it: no wait.
            runner = waits.get(&thread).and_then(|next| next.runner()).filter(|&next| next != thread);
        }
        waits.insert(me, fill.clone());
        true
    }

    fn leave(&self) {
        self.0.lock().remove(&thread::current().id());
    }
}
