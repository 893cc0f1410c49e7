//! A state behind a lock, and waiting until it lets somebody through. Every change wakes who waits: no wake-up can be
//! forgotten.

use super::sync::{Condvar, Mutex, MutexGuard};

pub(super) struct Gate<T> {
    state: Mutex<T>,
    changed: Condvar,
}

/// A state that those who wait for it stand in line for.
pub(super) trait Line {
    /// Tells threads apart.
    type Who;

    /// Gets in line; returns the place.
    fn join(&mut self, who: Self::Who) -> u64;

    /// Gets out of line, if not served and out of it already.
    fn leave(&mut self, ticket: u64);
}

/// Wakes who waits, also after a panic.
struct Wake<'a>(&'a Condvar);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.notify_all();
    }
}

impl<T> Gate<T> {
    pub(super) fn new(state: T) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::default() }
    }

    pub(super) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock())
    }

    pub(super) fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        // Dropped after the lock is released.
        let _wake = Wake(&self.changed);
        change(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock()
    }
}

impl<T: Line> Gate<T> {
    /// Gets in line and calls `step` with the place in it, whenever something changed, until it has an answer or an error. Out
    /// of line again is who has either before anybody else looks, as others reckon with those who wait.
    pub(super) fn queue<R, E>(
        &self,
        who: T::Who,
        mut step: impl FnMut(&mut T, u64) -> Result<Option<R>, E>,
    ) -> Result<R, E> {
        let _wake = Wake(&self.changed);
        let mut place = Place { gate: self, ticket: None };
        let mut state = self.lock();
        let ticket = state.join(who);
        place.ticket = Some(ticket);
        loop {
            match step(&mut state, ticket) {
                Ok(None) => state = self.changed.wait(state),
                Ok(Some(answer)) => {
                    place.give_up(&mut state);
                    return Ok(answer);
                }
                Err(error) => {
                    place.give_up(&mut state);
                    return Err(error);
                }
            }
        }
    }
}

/// A place in line, given up also by a panic.
struct Place<'a, T: Line> {
    gate: &'a Gate<T>,
    ticket: Option<u64>,
}

impl<T: Line> Place<'_, T> {
    fn give_up(&mut self, state: &mut T) {
        if let Some(ticket) = self.ticket.take() {
            state.leave(ticket);
        }
    }
}

impl<T: Line> Drop for Place<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.update(|state| state.leave(ticket));
        }
    }
}
