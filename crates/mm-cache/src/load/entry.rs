//! One key's load: who runs it, who waits for it, how it is handed on when it fails, and the value once it is there.

use std::any::Any;
use std::sync::Arc;

use super::ask::Wait;
use super::waits::Waits;
use crate::digest::Key;
use crate::sync::{Condvar, Mutex, MutexGuard, ThreadId, now, this_thread};

/// A loaded value of any type.
pub(super) type Value = Arc<dyn Any + Send + Sync>;

/// What threads that ask for one key meet at. It lives from the first miss until its value is evicted or removed.
///
/// Aligned, so that two of them never lie in one cache line (nor in two that are fetched together): cores that ask for
/// different keys would take it from each other.
#[repr(align(128))]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) name: Option<Arc<str>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stage: Stage,
    /// Threads in [`Entry::wait`], those that were woken and have not looked yet included.
    waiting: Vec<ThreadId>,
    /// In the directory. What is not is gone for newcomers, and still there for those who wait.
    attached: bool,
    pinned: bool,
    hits: u64,
}

enum Stage {
    /// This thread loads.
    Running(ThreadId),
    /// The last load failed; the next thread to look loads.
    Open,
    Ready(Ready),
    /// Failed with nobody waiting, evicted or removed: look again in the directory.
    Gone,
}

/// A loaded value and what it takes to judge it.
#[derive(Clone)]
pub(super) struct Ready {
    pub(super) value: Value,
    pub(super) type_name: &'static str,
    pub(super) bytes: u64,
    /// Nanoseconds that loading it again would take.
    pub(super) reload: u64,
    pub(super) used: u64,
}

/// What came of joining a load.
pub(super) enum Joined {
    Value(Ready),
    /// The caller is to load now.
    Turn,
    Gone,
    /// Waiting would never end: the load waits, directly or through others, for this thread.
    Cycle,
    TimedOut,
    Cancelled,
}

/// What leaves the directory: what it weighed, and how often it was asked for.
#[derive(Default)]
pub(super) struct Left {
    /// To be dropped with no lock held. `None`: it was loading, or those who wait for it have it.
    pub(super) value: Option<Value>,
    /// It was loaded; its bytes.
    pub(super) bytes: Option<u64>,
    pub(super) hits: u64,
}

impl Entry {
    /// A load that the calling thread runs.
    pub(super) fn running(key: Key, name: Option<Arc<str>>) -> Arc<Self> {
        Self::at(key, name, Stage::Running(this_thread()))
    }

    pub(super) fn ready(key: Key, name: Option<Arc<str>>, ready: Ready) -> Arc<Self> {
        Self::at(key, name, Stage::Ready(ready))
    }

    fn at(key: Key, name: Option<Arc<str>>, stage: Stage) -> Arc<Self> {
        let state = State { stage, waiting: Vec::new(), attached: true, pinned: false, hits: 0 };
        Arc::new(Self { key, name, state: Mutex::new(state), changed: Condvar::default() })
    }

    /// The value, if it is there; counts as a use.
    pub(super) fn hit(&self) -> Option<Ready> {
        let mut state = self.state.lock();
        let State { stage: Stage::Ready(ready), attached: true, hits, .. } = &mut *state else { return None };
        *hits += 1;
        ready.used = now();
        Some(ready.clone())
    }

    /// Waits for the load, or takes it over. `on_wait` is called before the first wait of this call.
    pub(super) fn join(self: &Arc<Self>, wait: &mut Wait<'_>, waits: &Waits, on_wait: impl FnOnce()) -> Joined {
        if let Some(joined) = self.settle(&mut self.state.lock(), wait, false) {
            return joined;
        }
        if waits.enter(self).is_none() {
            return Joined::Cycle;
        }
        // Not noted as waiting yet: whoever is told may use the cache, and wait for something else.
        wait.tell(on_wait);
        wait.listen(self);
        let joined = self.wait(wait, waits);
        wait.leave(self);
        joined
    }

    fn wait(self: &Arc<Self>, wait: &Wait<'_>, waits: &Waits) -> Joined {
        let me = this_thread();
        let Some(mut noted) = waits.enter(self) else { return Joined::Cycle };
        let mut state = self.state.lock();
        if let Some(joined) = self.settle(&mut state, wait, false) {
            return joined;
        }
        noted.insert(me, self.clone());
        state.waiting.push(me);
        drop(noted);
        let joined = loop {
            state = self.changed.wait(state, wait.left());
            state.waiting.retain(|&thread| thread != me);
            // First what there is: a thread that was woken to load must not leave with nobody loading.
            if let Some(joined) = self.settle(&mut state, wait, true) {
                break joined;
            }
            state.waiting.push(me);
        };
        // The last who waited for a value that is kept nowhere else.
        if !state.attached && state.waiting.is_empty() && matches!(state.stage, Stage::Ready(_)) {
            state.stage = Stage::Gone;
        }
        drop(state);
        waits.leave();
        joined
    }

    /// What the caller can do without waiting; `waited`: it has, and so belongs to this load even if the directory has
    /// forgotten it.
    fn settle(&self, state: &mut MutexGuard<'_, State>, wait: &Wait<'_>, waited: bool) -> Option<Joined> {
        if !state.attached && !waited {
            return Some(Joined::Gone);
        }
        match &mut state.stage {
            Stage::Ready(ready) => {
                ready.used = now();
                let ready = ready.clone();
                state.hits += u64::from(!wait.told);
                Some(Joined::Value(ready))
            }
            Stage::Gone => Some(Joined::Gone),
            Stage::Open if wait.is_cancelled() => {
                self.pass_on(state);
                Some(Joined::Cancelled)
            }
            Stage::Open => {
                state.stage = Stage::Running(this_thread());
                Some(Joined::Turn)
            }
            Stage::Running(_) if wait.is_cancelled() => Some(Joined::Cancelled),
            Stage::Running(_) if wait.is_over() => Some(Joined::TimedOut),
            Stage::Running(_) => None,
        }
    }

    /// Keeps the value and gives it to everyone who waits. True: it is in the directory.
    pub(super) fn finish(&self, ready: Ready) -> bool {
        let mut state = self.state.lock();
        let kept = state.attached;
        if kept || !state.waiting.is_empty() {
            state.stage = Stage::Ready(ready);
        } else {
            state.stage = Stage::Gone;
        }
        drop(state);
        self.changed.notify_all();
        kept
    }

    /// Hands the load on to exactly one waiter. False: nobody waits, and the load is gone.
    pub(super) fn hand_on(&self) -> bool {
        self.pass_on(&mut self.state.lock())
    }

    fn pass_on(&self, state: &mut MutexGuard<'_, State>) -> bool {
        if state.waiting.is_empty() {
            (state.stage, state.attached) = (Stage::Gone, false);
            return false;
        }
        state.stage = Stage::Open;
        // One is enough: whoever takes the load over, this waiter or a newcomer, ends it and wakes the next.
        self.changed.notify_one();
        true
    }

    /// Everyone who waits looks again.
    pub(super) fn nudge(&self) {
        // Whoever is between looking and waiting holds this lock.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Forgotten by the directory.
    pub(super) fn detach(&self) -> Left {
        let mut state = self.state.lock();
        if !state.attached {
            return Left::default();
        }
        state.attached = false;
        state.leave()
    }

    /// What `judge` says of it, unless somebody holds it, waits for it, or it is pinned.
    pub(super) fn idle<T>(&self, judge: impl FnOnce(&Ready) -> T) -> Option<T> {
        let state = self.state.lock();
        // Lent, not cloned: a clone would be a share of the value, and could be the last to be dropped.
        state.idle().map(judge)
    }

    /// Takes the value out if it is idle and `still` agrees.
    pub(super) fn evict(&self, still: impl FnOnce(&Ready) -> bool) -> Option<Left> {
        let mut state = self.state.lock();
        // Asked under the lock that everyone who takes a share of the value holds.
        state.idle().filter(|ready| still(ready))?;
        state.attached = false;
        Some(state.leave())
    }

    /// Whether it is loaded, and how often it was asked for.
    pub(super) fn census(&self) -> (bool, u64) {
        let state = self.state.lock();
        (state.attached && matches!(state.stage, Stage::Ready(_)), state.hits)
    }

    /// Failed with nobody waiting, or left.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state.lock().stage, Stage::Gone)
    }

    /// False: nothing is loaded here.
    pub(super) fn pin(&self, pinned: bool) -> bool {
        let mut state = self.state.lock();
        let here = state.attached && matches!(state.stage, Stage::Ready(_));
        state.pinned = pinned && here;
        here
    }

    pub(super) fn runner(&self) -> Option<ThreadId> {
        self.state.lock().runner()
    }

    /// Who has to end for `thread`'s wait here to end. `None`: it does not wait here, or nobody loads.
    pub(super) fn runner_awaited_by(&self, thread: ThreadId) -> Option<ThreadId> {
        let state = self.state.lock();
        state.runner().filter(|_| state.waiting.contains(&thread))
    }
}

impl State {
    fn runner(&self) -> Option<ThreadId> {
        match self.stage {
            Stage::Running(thread) => Some(thread),
            _ => None,
        }
    }

    fn idle(&self) -> Option<&Ready> {
        match &self.stage {
            Stage::Ready(ready)
                if self.attached && !self.pinned && self.waiting.is_empty() && Arc::strong_count(&ready.value) == 1 =>
            {
                Some(ready)
            }
            _ => None,
        }
    }

    fn leave(&mut self) -> Left {
        let hits = std::mem::take(&mut self.hits);
        let bytes = match &self.stage {
            Stage::Ready(ready) => Some(ready.bytes),
            _ => None,
        };
        let value = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Ready(ready) if self.waiting.is_empty() => Some(ready.value),
            stage => {
                self.stage = stage;
                None
            }
        };
        Left { value, bytes, hits }
    }
}
