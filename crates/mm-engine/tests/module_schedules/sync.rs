//! What `src/sync.rs` brings, for a checker of schedules: each lock, wait and counter is a point at which another thread may go
//! on.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

pub(crate) use shuttle::sync::{
    MutexGuard,
    atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

pub(crate) mod thread {
    pub(crate) use shuttle::thread::Builder;
    use std::{io, num::NonZero};

    pub(crate) fn available_parallelism() -> io::Result<NonZero<usize>> {
        NonZero::new(2).ok_or(io::ErrorKind::Other.into())
    }
}

#[derive(Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel of many senders and many receivers; what it is asked for here never has to wait for room.
struct Channel<T> {
    state: Mutex<State<T>>,
    changed: shuttle::sync::Condvar,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

pub(crate) struct Sender<T>(Arc<Channel<T>>);

pub(crate) struct Receiver<T>(Arc<Channel<T>>);

/// Nobody is left to receive it.
pub(crate) struct Unsent<T>(T);

impl<T> Unsent<T> {
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { queue: VecDeque::new(), senders: 1, receivers: 1 });
    let channel = Arc::new(Channel { state, changed: shuttle::sync::Condvar::new() });
    (Sender(channel.clone()), Receiver(channel))
}

/// `room` is never used up: each is sent one thing.
pub(crate) fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    assert!(room > 0);
    unbounded()
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, value: T) -> Result<(), Unsent<T>> {
        let mut state = self.0.state.lock();
        if state.receivers == 0 {
            return Err(Unsent(value));
        }
        state.queue.push_back(value);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> Receiver<T> {
    /// `Err`: nothing is left, and nobody to send more.
    pub(crate) fn recv(&self) -> Result<T, ()> {
        let mut state = self.0.state.lock();
        loop {
            if let Some(value) = state.queue.pop_front() {
                return Ok(value);
            }
            if state.senders == 0 {
                return Err(());
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.state.lock().queue.is_empty()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().receivers += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.receivers -= 1;
        let left = if state.receivers == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
        // What nobody receives is dropped, with no lock held: it may hold ends of other channels.
        drop(state);
        drop(left);
    }
}

impl<T> Iterator for Receiver<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.recv().ok()
    }
}
