//! What is ordered after what: vector clocks of streams, and of the host.

use std::collections::BTreeMap;

pub(crate) type Handle = u64;

/// Per stream, how much of its work lies before.
#[derive(Clone, Default)]
pub(crate) struct Clock(BTreeMap<Handle, u64>);

impl Clock {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn join(&mut self, other: &Self) {
        for (stream, time) in &other.0 {
            let mine = self.0.entry(*stream).or_default();
            *mine = (*time).max(*mine);
        }
    }

    pub(crate) fn tick(&mut self, stream: Handle) -> u64 {
        let time = self.0.entry(stream).or_default();
        *time += 1;
        *time
    }

    fn covers(&self, (stream, time): (Handle, u64)) -> bool {
        self.0.get(&stream).is_some_and(|seen| *seen >= time)
    }
}

/// Who wrote a piece of memory last, and who has read it since.
#[derive(Default)]
pub(crate) struct Uses {
    write: Option<(Handle, u64)>,
    reads: BTreeMap<Handle, u64>,
}

impl Uses {
    /// Whether all that is written (and, where `reads`, all that is read) lies before.
    pub(crate) fn lie_before(&self, clock: &Clock, reads: bool) -> bool {
        self.write.is_none_or(|write| clock.covers(write))
            && (!reads || self.reads.iter().all(|(stream, time)| clock.covers((*stream, *time))))
    }

    pub(crate) fn note(&mut self, stream: Handle, time: u64, writes: bool) {
        if writes {
            self.write = Some((stream, time));
            self.reads.clear();
        } else {
            self.reads.insert(stream, time);
        }
    }
}
