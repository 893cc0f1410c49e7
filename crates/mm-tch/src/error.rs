//! What can go wrong, split by remedy.

use mm_engine::EngineError;
use std::path::PathBuf;
use tch::TchError;

/// What can go wrong with a managed tch model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused: see its variants for what to do.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The weight files can't be used.
    #[error(transparent)]
    Weights(#[from] mm_cache::WeightsError),
    /// A variable of the model and the files don't go together: change the one or the other.
    #[error("variable {variable}: {reason}")]
    Variable {
        /// The variable's name in its `VarStore` or script.
        variable: String,
        /// What is wrong, with the file where there is one.
        reason: String,
    },
    /// A TorchScript file can't be managed.
    #[error("{}: {reason}", file.display())]
    Script {
        /// The file.
        file: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A library of libtorch is there and can't be loaded.
    #[error("{}: {reason}", file.display())]
    Library {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The model could not be built, or a kernel failed.
    #[error(transparent)]
    Tch(#[from] TchError),
}

impl Error {
    /// Whether device memory ran out, and how many bytes were asked for that were not there; zero: not known.
    pub fn shortage(&self) -> Option<u64> {
        match self {
            Self::Engine(error) => error.shortage(),
            // libtorch's own words: "CUDA out of memory. Tried to allocate ..".
            Self::Tch(TchError::Torch(text)) => text.contains("out of memory").then_some(0),
            _ => None,
        }
    }
}

/// Result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;
