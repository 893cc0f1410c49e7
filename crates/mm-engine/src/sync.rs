//! What modules and the host device are built on: locks, counters, channels and threads.
//!
//! They name these through `crate::sync` alone, so that a test crate that brings its own `sync` compiles the very same source
//! for a checker of schedules (`tests/module_schedules`).

pub(crate) use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
pub(crate) use parking_lot::Mutex;
pub(crate) use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    thread,
};
