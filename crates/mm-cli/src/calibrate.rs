//! Runs that measure, for themselves and for those after them.

use crate::exit::Failure;
use mm_candle::Manager;
use mm_diffusion::Request;
use mm_engine::Calibration;
use mm_plan::{Machine, Note};

/// Measures from now on. Figures are kept for this user, for this machine, and for images of this size.
pub(crate) fn start(manager: &Manager, machine: &Machine, request: &Request) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let fingerprint = format!(
        "{} {}, {cores} cores, {} bytes of RAM; {:?}",
        machine.os,
        std::env::consts::ARCH,
        machine.ram_total,
        machine.device
    );
    let calibration = Calibration::of(fingerprint).workload(format!("{}x{}", request.width, request.height));
    let calibration = match mm_cache::user_folder() {
        Some(folder) => calibration.kept_in(folder.join("figures")),
        None => calibration,
    };
    Ok(manager.calibrate(calibration)?)
}

/// What came of it, beside what plans say.
pub(crate) fn notes(manager: &Manager) -> Vec<Note> {
    let said = manager.plan().map_or_else(Vec::new, |plan| plan.notes.clone());
    let notes = manager.calibration().map_or_else(Vec::new, |report| report.notes);
    notes.into_iter().filter(|note| !said.contains(note)).collect()
}
