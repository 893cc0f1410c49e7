//! What can go wrong, split by remedy.

use mm_plan::Infeasible;
use std::{ops::Range, path::PathBuf};

/// What can go wrong while running a plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// There is no plan: give a larger budget, free memory, or choose another strategy.
    #[error(transparent)]
    Infeasible(#[from] Infeasible),
    /// The device refused an allocation: its budget is spent.
    #[error("{need} bytes asked of the device, {in_use} of its {budget} bytes are in use")]
    OverBudget {
        /// Bytes asked for.
        need: u64,
        /// Bytes in use.
        in_use: u64,
        /// The device's budget.
        budget: u64,
    },
    /// The budget allows it, but others use the device's memory: wait, or give a smaller budget.
    #[error(
        "{need} bytes asked of the device, {free} of it are free: other programs, or other parts of this one, use the rest"
    )]
    NotNow {
        /// Bytes asked for.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// Memory ran out in a copy or while computing: run again (what could be given up has been), wait, or give a smaller budget.
    #[error(
        "out of device memory: {reason}; run it again with fewer other programs, a smaller budget or smaller inputs"
    )]
    OutOfMemory {
        /// Who said so, and what.
        reason: String,
    },
    /// Host memory may not be page-locked: raise the limit, or plan for less of it.
    #[error(
        "{need} more bytes of host memory can't be page-locked{}; raise the limit, or page-lock less",
        limit.map_or(", the system refuses".to_owned(), |limit| format!(", {limit} may be in all"))
    )]
    PageLock {
        /// Bytes asked for.
        need: u64,
        /// The limit given; `None`: the system refused.
        limit: Option<u64>,
    },
    /// The host has no memory for a copy of weights: free some, or keep groups in their files.
    #[error(
        "the host has no {need} bytes of memory for a copy of weights; free some, or keep the groups in their files"
    )]
    HostMemory {
        /// Bytes asked for.
        need: u64,
    },
    /// There is no CUDA driver to load: install NVIDIA's, or compute on the CPU.
    #[error("there is no usable CUDA driver on this machine: {reason}; install NVIDIA's driver, or compute on the CPU")]
    NoDriver {
        /// What is missing.
        reason: String,
    },
    /// The device no longer answers: build a new one.
    #[error("the device is lost: {reason}")]
    DeviceLost {
        /// What it said last.
        reason: String,
    },
    /// Weights could not be read: check the file.
    #[error("{}: tensor {tensor:?} (bytes {}..{}): {reason}", file.display(), range.start, range.end)]
    Source {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it lies in the file.
        range: Range<u64>,
        /// What is wrong with it.
        reason: String,
    },
    /// The plan given is not a plan for these components: make a new one.
    #[error("the plan does not fit what is registered: {reason}")]
    PlanMismatch {
        /// Where it differs.
        reason: String,
    },
    /// The caller broke a rule: change the call.
    #[error("misuse: {0}")]
    Misuse(String),
    /// A tensor library refused a swap, or an invariant of ours broke. A bug: please report it.
    #[error("internal error (this is a bug, please report it): {0}")]
    Internal(String),
}

impl EngineError {
    /// Whether device memory ran out, and how many bytes were asked for that were not there; zero: not known.
    pub const fn shortage(&self) -> Option<u64> {
        match self {
            Self::NotNow { need, free } => Some(need.saturating_sub(*free)),
            Self::OverBudget { need, in_use, budget } => Some(need.saturating_sub(budget.saturating_sub(*in_use))),
            Self::OutOfMemory { .. } => Some(0),
            _ => None,
        }
    }
}

/// Result of engine calls.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
