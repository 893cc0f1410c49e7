//! What can go wrong, split by remedy.

use mm_engine::EngineError;

/// What can go wrong with a managed candle model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused: see its variants for what to do.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The weight files can't be used.
    #[error(transparent)]
    Weights(#[from] mm_cache::WeightsError),
    /// The model could not be built, or a kernel failed.
    #[error(transparent)]
    Candle(candle_core::Error),
}

/// An engine error on its way through candle. candle's own wrapper can't be opened again; an
/// [`std::io::Error`] can.
pub(crate) fn through_candle(error: EngineError) -> candle_core::Error {
    std::io::Error::other(error).into()
}

impl From<candle_core::Error> for Error {
    /// An engine error that came through candle is an engine error again.
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::Io(io) => match io.downcast::<EngineError>() {
                Ok(engine) => Self::Engine(engine),
                Err(io) => Self::Candle(candle_core::Error::Io(io)),
            },
            candle_core::Error::WithBacktrace { inner, backtrace } => match Self::from(*inner) {
                Self::Candle(inner) => {
                    Self::Candle(candle_core::Error::WithBacktrace { inner: Box::new(inner), backtrace })
                }
                engine => engine,
            },
            other => Self::Candle(other),
        }
    }
}
