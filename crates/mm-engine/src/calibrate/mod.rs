//! Calibration: what the first passes measure, and when a plan is redone with it.
//!
//! All but the store is pure: no clock, no I/O. `observed.rs` takes in the engine's events, by `spans.rs` (what each lease
//! took by itself), `samples.rs` (what is typical over passes) and `rates.rs` (how fast a lane is); `figures.rs` is what comes
//! out, and `decide.rs` says whether it is worth another plan.

mod decide;
mod figures;
mod key;
mod observed;
#[cfg(test)]
mod observed_tests;
mod rates;
mod samples;
mod spans;
mod store;
#[cfg(test)]
mod store_tests;

pub use decide::Hysteresis;
pub use figures::{ComponentFigures, Figures};
