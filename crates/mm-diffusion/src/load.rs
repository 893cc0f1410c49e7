//! Who loads the components: nobody's manager, or one.

use candle_core::{DType, Result};
use candle_nn::VarBuilder;
use mm_candle::{Component, Error, LoadSpec, load_unmanaged};

/// Loads components; a pipeline is loaded the same way whoever manages its memory.
pub trait Loader {
    /// Loads one component from its files. `build` may be called more than once.
    ///
    /// # Errors
    /// The files can't be used, or `build` fails.
    fn load<M: Send + 'static>(
        &self,
        spec: &LoadSpec,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, Error>;
}

/// Loads every component whole, with no manager.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmanaged;

impl Loader for Unmanaged {
    fn load<M: Send + 'static>(
        &self,
        spec: &LoadSpec,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, Error> {
        load_unmanaged(spec, build)
    }
}

/// How a pipeline is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Compute dtype: `F32`, `BF16` or `F16`. A VAE is computed in f32 always.
    pub dtype: DType,
    /// What requests will look like; planning weighs the components by it.
    pub passes: Passes,
    /// What tells this pipeline's components from those of others with the same manager: they are called
    /// `NAME.transformer`, and each is active alone but for those shared with a pipeline without a name. `None`: plainly `transformer`.
    pub name: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, passes: Passes::default(), name: None }
    }
}

/// Forwards of each component per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// Of the text encoder: one prompt, or two with guidance. FLUX.1 always encodes one.
    pub encode: u32,
    /// Of the transformer: one per step. Guidance makes the pass a batch of two, not two passes.
    pub denoise: u32,
    /// Of the VAE's decoder.
    pub decode: u32,
}

impl Default for Passes {
    fn default() -> Self {
        Self { encode: 1, denoise: 8, decode: 1 }
    }
}
