//! A timeline that keeps nothing: when things happened is no matter of schedules.

use std::sync::Arc;

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Copy,
    Compute,
    Stall,
    Pass,
}

#[derive(Clone)]
pub(crate) struct Label {
    pub(crate) component: Arc<str>,
    pub(crate) group: Arc<str>,
}

/// Nobody makes one.
pub(crate) struct Event;

#[derive(Default)]
pub(crate) struct Timeline;

impl Timeline {
    pub(crate) fn now(&self) -> u64 {
        0
    }

    pub(crate) fn is_calibrated(&self) -> bool {
        false
    }

    pub(crate) fn span(&self, _: Kind, _: usize, _: &Label, _: u64, _: u64) {}

    pub(crate) fn allocated(&self, _: u64, _: u64) {}

    pub(crate) fn freed(&self, _: u64, _: u64) {}
}
