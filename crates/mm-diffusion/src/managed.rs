//! Loading under a manager: what stays on the device and what streams follows its plan.

use crate::Loader;
use candle_core::Result;
use candle_nn::VarBuilder;
use mm_candle::{Component, Error, LoadSpec, Manager};

impl Loader for Manager {
    fn load<M: Send + 'static>(
        &self,
        spec: &LoadSpec,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
    ) -> std::result::Result<Component<M>, Error> {
        Self::load(self, spec, build)
    }
}
