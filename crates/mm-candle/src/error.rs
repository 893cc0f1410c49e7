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
    /// Its spans don't tell when its weights are used. It does not stream by them any more: run it again.
    #[error("{name}: {reason}; from now on it is on the device as a whole: run it again")]
    Spans {
        /// The component.
        name: String,
        /// What was found.
        reason: String,
    },
    /// A LoRA can't be used: see its variants for what to do.
    #[error(transparent)]
    Lora(#[from] crate::LoraError),
    /// The model could not be built, or a kernel failed.
    #[error(transparent)]
    Candle(candle_core::Error),
}

impl Error {
    /// Whether device memory ran out, and how many bytes were asked for that were not there; zero: not known.
    pub fn shortage(&self) -> Option<u64> {
        match self {
            Self::Engine(error) => error.shortage(),
            Self::Candle(error) => is_out_of_memory(error).then_some(0),
            Self::Weights(_) | Self::Lora(_) | Self::Spans { .. } => None,
        }
    }
}

/// candle has no error of its own for this: it is known by the words of the driver, or of cuBLAS.
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::Cuda(error) => {
            let text = error.to_string();
            ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|code| text.contains(code))
        }
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::Context { inner, .. }
        | candle_core::Error::WithPath { inner, .. } => is_out_of_memory(inner),
        _ => false,
    }
}

/// What candle said while it did something for the engine.
pub(crate) fn for_engine(error: candle_core::Error) -> EngineError {
    match Error::from(error) {
        Error::Engine(engine) => engine,
        error if error.shortage().is_some() => EngineError::OutOfMemory { reason: error.to_string() },
        error => EngineError::Internal(error.to_string()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Error as Candle;

    #[test]
    fn memory_that_ran_out_is_known_by_the_words_of_the_driver() {
        let cuda = |text: &str| Candle::Cuda(text.to_owned().into());
        let spent = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        assert_eq!(Error::from(cuda(spent)).shortage(), Some(0));
        assert_eq!(Error::from(cuda(spent).context("in a block")).shortage(), Some(0));
        assert_eq!(Error::from(cuda(spent).bt()).shortage(), Some(0));
        let lost = r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")"#;
        assert_eq!(Error::from(cuda(lost)).shortage(), None);
        assert_eq!(Error::from(Candle::Msg(spent.to_owned())).shortage(), None);
        let engine = EngineError::NotNow { need: 10, free: 4 };
        assert_eq!(Error::from(through_candle(engine)).shortage(), Some(6));
    }
}
