//! The components of a pipeline, loaded alike.

use crate::{Error, Folder, LoadOptions, Loader};
use candle_core::DType;
use candle_nn::VarBuilder;
use mm_candle::{Component, LoadSpec};
use mm_probe::Library;
use std::fmt::Debug;

/// What loading the components has in common.
pub(crate) struct Load<'a, L> {
    pub(crate) folder: &'a Folder,
    pub(crate) loader: &'a L,
    pub(crate) options: &'a LoadOptions,
}

/// A component of the pipeline, and its part in a request.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) library: Library,
    pub(crate) phase: u32,
    pub(crate) passes: u32,
    /// Where it isn't the pipeline's.
    pub(crate) dtype: Option<DType>,
}

impl<L: Loader> Load<'_, L> {
    pub(crate) fn component<C: Debug, M: Send + 'static>(
        &self,
        Part { name, library, phase, passes, dtype }: Part,
        config: &C,
        build: impl Fn(&C, VarBuilder<'_>) -> candle_core::Result<M>,
    ) -> Result<Component<M>, Error> {
        let files = self.folder.weights(name, library)?;
        let full_name = self.options.name.as_ref().map_or_else(|| name.to_owned(), |of| format!("{of}.{name}"));
        let spec = LoadSpec {
            dtype: dtype.unwrap_or(self.options.dtype),
            // Phases are numbers of the whole manager: another pipeline's transformer is not active beside this one's.
            phase: self.options.name.is_none().then_some(phase),
            passes,
            lazy: true,
            // As parsed: what a configuration file says beside that decides nothing here.
            config: Some(format!("{config:?}")),
            ..LoadSpec::new(full_name, files)
        };
        self.loader.load(&spec, |vb| build(config, vb)).map_err(in_component(name))
    }
}

/// The dtypes that pipelines are computed in.
pub(crate) fn check_dtype(options: &LoadOptions) -> Result<(), Error> {
    match options.dtype {
        DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        other => Err(Error::request("dtype", other.as_str(), "expected f32, bf16 or f16")),
    }
}

pub(crate) fn in_component(component: &'static str) -> impl Fn(mm_candle::Error) -> Error {
    move |source| Error::Component { component, source }
}
