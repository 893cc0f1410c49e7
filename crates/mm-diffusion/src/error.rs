//! What can go wrong, split by remedy.

use std::path::PathBuf;

/// Why a checkpoint could not be loaded or an image not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of the checkpoint is not there: check the path, or fetch the checkpoint again.
    #[error("{} is missing: {needed}", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// What it is needed for.
        needed: String,
    },
    /// A file is there but could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The files of a component's weights can't be told: fetch the checkpoint again, or choose a variant.
    #[error(transparent)]
    Weights(#[from] mm_probe::InspectError),
    /// A configuration file is broken: fetch it again.
    #[error("{} cannot be read as configuration: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// The checkpoint is of a kind that is not supported.
    #[error("{}: {key} = {found} is not supported; supported: {supported}", file.display())]
    Unsupported {
        /// The configuration file that says so.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would work.
        supported: String,
    },
    /// A value in a configuration file makes no sense: the file is damaged, or belongs to another checkpoint.
    #[error("{}: {key} = {found}: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer or its chat template can't be used.
    #[error("{}: {reason}", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The request can't be fulfilled: change it.
    #[error("{field} = {found}: {reason}")]
    Request {
        /// The field of the request.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would work.
        reason: String,
    },
    /// A component could not be loaded or run: a weight is missing or of another shape, or memory is short.
    #[error("{component}: {source}")]
    Component {
        /// The component.
        component: &'static str,
        /// What its loader or run said.
        source: mm_candle::Error,
    },
    /// A computation between the components failed.
    #[error("computing outside the components: {0}")]
    Compute(#[from] candle_core::Error),
    /// A trace could not be written.
    #[error("{} could not be written: {reason}", file.display())]
    Save {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Error {
    pub(crate) fn request(field: &'static str, found: impl ToString, reason: impl Into<String>) -> Self {
        Self::Request { field, found: found.to_string(), reason: reason.into() }
    }
}
