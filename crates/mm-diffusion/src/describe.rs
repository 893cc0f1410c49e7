//! What a pipeline's components are to the planner, without reading their weights.

use crate::{Error, Folder, LoadOptions, Loader, Pipeline};
use candle_core::Result;
use candle_nn::VarBuilder;
use mm_candle::{Component, LoadSpec};
use std::sync::Mutex;

/// Describes the components of the pipeline in `folder` exactly as a manager plans them when it is loaded with
/// `options`. Only headers are read.
///
/// # Errors
/// As [`Pipeline::load`].
pub fn describe(folder: &Folder, options: &LoadOptions) -> std::result::Result<Vec<mm_plan::Component>, Error> {
    let describing = Describing::default();
    Pipeline::load(folder, options, &describing)?;
    // Nothing panics while the lock is held.
    Ok(describing.0.into_inner().unwrap_or_default())
}

/// Loads nothing and remembers what was asked for.
#[derive(Default)]
struct Describing(Mutex<Vec<mm_plan::Component>>);

impl Loader for Describing {
    fn load<M: Send + 'static>(
        &self,
        spec: &LoadSpec,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, mm_candle::Error> {
        let (description, model) = mm_candle::describe(spec, build)?;
        if let Ok(mut all) = self.0.lock() {
            all.push(description);
        }
        Ok(Component::unmanaged(model))
    }
}
