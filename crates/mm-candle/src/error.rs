//! What can go wrong, split by remedy.

/// What can go wrong in a managed candle model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, or a kernel, failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
