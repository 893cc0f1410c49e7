//! What a component is made of changes, and the component stays.

use super::{ModelManager, overrides::unknown_component};
use crate::{Device, EngineError, Module, ModuleSpec, Result};
use std::sync::Arc;

impl<D: Device> ModelManager<D> {
    /// From its next run on a registered component is made of this: it is planned, loaded and streamed by these slabs and homes. Its
    /// names, registrations, overrides and statistics stay, and so does its run, if one is under way, with what it has.
    ///
    /// Homes are given what the plan in force was made for, so those of before may be asked until that run has ended.
    ///
    /// # Errors
    /// `Misuse`: it is not registered here, or `spec` has other stacks, or another number of groups, than it was built with.
    pub fn replace(&self, module: &Arc<Module<D>>, spec: ModuleSpec<D::Buffer>) -> Result<()> {
        self.gate.update(|state| {
            if state.registry.id_of(module).is_none() {
                return Err(unknown_component(&module.title(), &state.registry));
            }
            module.set_layout(spec)?;
            state.changed();
            Ok::<_, EngineError>(())
        })
    }
}
