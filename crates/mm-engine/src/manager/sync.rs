//! What the gate is built on. A test crate that brings its own `sync` compiles the very same gate for a checker of
//! schedules (`tests/schedules.rs`).

pub(super) use parking_lot::{Mutex, MutexGuard};

/// Wakes who waits for a change of what a [`Mutex`] guards.
#[derive(Default)]
pub(super) struct Condvar(parking_lot::Condvar);

impl Condvar {
    pub(super) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(&mut guard);
        guard
    }

    pub(super) fn notify_all(&self) {
        self.0.notify_all();
    }
}
