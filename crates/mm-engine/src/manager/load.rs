//! Loading things once, however many ask.

use super::{ModelManager, Registration};
use crate::{Device, EngineError, Module, Result};
use mm_cache::{Ask, LoadError, Lookup, Weight, component_hash};
use std::sync::Arc;

impl<D: Device> ModelManager<D> {
    /// Loads a thing once for everyone who asks for `identifier`, however many threads ask at once; see
    /// [`mm_cache::LoadCache::load_component`].
    ///
    /// # Errors
    /// The factory's error, or a broken rule of the cache.
    pub fn load_component<T: Send + Sync + 'static, E, W: Into<Weight>>(
        &self,
        name: &str,
        identifier: &str,
        weigh: impl FnOnce(&T) -> W,
        factory: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, LoadError<E>> {
        self.cache.load_component(name, identifier, weigh, factory)
    }

    /// Registers the module that `identifier` stands for under `name`; where there is none, what `factory` makes. Who asks under
    /// another name gets an alias of it. When nobody holds the module any more it is forgotten, and the next load runs its
    /// factory.
    ///
    /// # Errors
    /// The factory's, [`ModelManager::register`]'s; `Misuse` where the identifier stands for something else, or the factory asks for
    /// it itself.
    pub fn load_module(
        self: &Arc<Self>,
        name: &str,
        identifier: &str,
        factory: impl FnOnce() -> Result<Arc<Module<D>>>,
    ) -> Result<Registration<D>> {
        let key = component_hash(identifier);
        let refused = |error| EngineError::Misuse(format!("{name}: {error}"));
        let found = self.cache.lookup::<Module<D>>(Ask::new(key).named(name)).map_err(refused)?;
        let module = match found {
            Lookup::Hit(module) => module,
            Lookup::Miss(guard) => {
                let module = factory()?;
                guard.fill(module.clone(), module.description().bytes())
            }
        };
        let registration = self.register(name, &module)?;
        self.gate.update(|state| {
            let entry = state.registry.id_of(&module).and_then(|id| state.registry.entry_mut(id));
            if let Some(entry) = entry.filter(|entry| !entry.keys.contains(&key)) {
                entry.keys.push(key);
            }
        });
        Ok(registration)
    }
}
