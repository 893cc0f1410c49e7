//! Calibration: what the first passes measure, and when a plan is redone with it.
//!
//! [`ModelManager::calibrate`](crate::ModelManager::calibrate) starts it. The passes that follow tell the rates of the links, what
//! computing each group takes and, where an adapter says so ([`Run::record_activation`](crate::Run::record_activation)), what
//! computing takes on top of the weights. Once the component that weighs most has been measured, and once all have, the plan is
//! held against the best one by these figures, and replaced between two passes where that gains enough ([`Hysteresis`]).
//! What was measured is kept for the next process.
//!
//! Plans that were given are never replaced, and a manager that nobody calibrates plans as ever.

// All but `session.rs` and `store.rs` is pure: no clock, no I/O. `observed.rs` takes in the engine's events, by `spans.rs` (what
// each lease took by itself), `samples.rs` (what is typical over passes) and `rates.rs` (how fast a lane is); `figures.rs` is
// what comes out, and `decide.rs` says whether it is worth another plan.
mod decide;
mod figures;
mod key;
mod observed;
#[cfg(test)]
mod observed_tests;
mod rates;
mod samples;
mod session;
mod spans;
mod store;
#[cfg(test)]
mod store_tests;

pub use decide::Hysteresis;
pub use figures::{ComponentFigures, Figures};
pub use session::CalibrationReport;

pub(crate) use decide::{Memory, Room};
pub(crate) use key::component_key;
pub(crate) use observed::Part;
pub(crate) use session::{Met, Session, Timing};

use std::path::PathBuf;

/// How a manager is calibrated.
#[derive(Clone, Debug)]
#[must_use = "give it to `ModelManager::calibrate`"]
pub struct Calibration {
    machine: String,
    workload: String,
    folder: Option<PathBuf>,
    hysteresis: Hysteresis,
}

impl Calibration {
    /// Of a machine, and the device in it, that goes by this fingerprint: whatever tells it from those with other rates.
    pub fn of(machine: impl Into<String>) -> Self {
        Self { machine: machine.into(), workload: String::new(), folder: None, hysteresis: Hysteresis::default() }
    }

    /// Of passes of this size, for which figures of others say nothing: `1024x1024, batch 2`.
    pub fn workload(mut self, workload: impl Into<String>) -> Self {
        self.workload = workload.into();
        self
    }

    /// Figures are kept in this folder, and taken from it; it need not exist. Without one they end with the manager.
    pub fn kept_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Plans are replaced by these bounds.
    pub const fn hysteresis(mut self, hysteresis: Hysteresis) -> Self {
        self.hysteresis = hysteresis;
        self
    }
}
