//! Registering all components of something at once.

use super::{ModelManager, State, admission::Id, registry::Source};
use crate::{Device, EngineError, Module, Result};
use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
};

/// Anything that lists its components.
pub trait Pipeline<D: Device>: Send + Sync + 'static {
    /// Its components, each under its name. One may have several names.
    fn components(&self) -> Vec<(String, Arc<Module<D>>)>;
}

impl<D: Device> Pipeline<D> for Vec<(String, Arc<Module<D>>)> {
    fn components(&self) -> Vec<(String, Arc<Module<D>>)> {
        self.clone()
    }
}

impl<D: Device> Pipeline<D> for BTreeMap<String, Arc<Module<D>>> {
    fn components(&self) -> Vec<(String, Arc<Module<D>>)> {
        self.iter().map(|(name, module)| (name.clone(), module.clone())).collect()
    }
}

impl<D: Device> Pipeline<D> for HashMap<String, Arc<Module<D>>> {
    fn components(&self) -> Vec<(String, Arc<Module<D>>)> {
        self.iter().map(|(name, module)| (name.clone(), module.clone())).collect()
    }
}

impl<D: Device> ModelManager<D> {
    /// Registers all components of `source`, or none, until the handle is dropped; the last one, where this very source is
    /// registered more than once, which counts once.
    ///
    /// # Errors
    /// `Misuse`: it has no components, lists a name twice, or has a module that [`ModelManager::register`] refuses.
    pub fn register_components<P: Pipeline<D>>(self: &Arc<Self>, source: &Arc<P>) -> Result<SourceRegistration<D>> {
        self.register_source(source, |_, _| Ok(()))
    }

    /// Takes all registrations of a source back, and returns its names. Names that another module took meanwhile are
    /// not its own any more. Its handles count for nothing from then on.
    pub fn unregister_components<P: Pipeline<D>>(&self, source: &Arc<P>) -> Vec<String> {
        self.end_source(address(source), |_| true)
    }

    /// The counterpart of loading: as [`ModelManager::unregister_components`].
    pub fn unload_components<P: Pipeline<D>>(&self, source: &Arc<P>) -> Vec<String> {
        self.unregister_components(source)
    }

    /// `accept` looks at the state as it would be, and may still refuse.
    pub(super) fn register_source<P: Pipeline<D>>(
        self: &Arc<Self>,
        source: &Arc<P>,
        accept: impl FnOnce(&State<D>, &super::registry::Registry<D>) -> Result<()>,
    ) -> Result<SourceRegistration<D>> {
        let components = source.components();
        let names: Vec<String> = components.iter().map(|(name, _)| name.clone()).collect();
        check(&components)?;
        let key = address(source);
        let (serial, names, gone) = self.gate.update(|state| {
            if let Some(known) = state.registry.sources.get_mut(&key) {
                known.handles += 1;
                let names = known.holders.iter().map(|(name, _)| name.clone()).collect();
                return Ok((known.serial, names, Vec::new()));
            }
            let mut claimed = Vec::new();
            let mut trial = state.registry.clone();
            let outcome = components.iter().try_for_each(|(name, module)| {
                let ours = trial.id_of(module).is_some();
                self.claim(name, module)?;
                if !ours {
                    claimed.push(module);
                }
                Ok(())
            });
            let mut holders = Vec::new();
            let mut orphans: Vec<Id> = Vec::new();
            for (name, module) in &components {
                let (holder, orphan) = trial.add(name, module);
                holders.push((name.clone(), holder));
                orphans.extend(orphan);
            }
            let serial = trial.serial();
            trial.sources.insert(key, Source { serial, handles: 1, holders });
            if let Err(error) = outcome.and_then(|()| accept(state, &trial)) {
                claimed.into_iter().for_each(|module| module.disown());
                return Err(error);
            }
            state.registry = trial;
            let gone: Vec<_> = orphans.into_iter().filter_map(|id| state.retire(id)).collect();
            state.changed();
            Ok((serial, names, gone))
        })?;
        self.forget(gone);
        Ok(SourceRegistration { manager: Arc::downgrade(self), names, key, serial, _source: source.clone() })
    }

    fn end_source(&self, key: usize, ends: impl FnOnce(&mut Source) -> bool) -> Vec<String> {
        let (names, gone) = self.gate.update(|state| {
            let known = state.registry.sources.get_mut(&key);
            if !known.is_some_and(ends) {
                return Default::default();
            }
            let source = state.registry.sources.remove(&key);
            let (mut names, mut gone) = (Vec::new(), Vec::new());
            for (name, holder) in source.into_iter().flat_map(|source| source.holders) {
                let (there, entry) = state.unregister(&name, holder);
                if there {
                    names.push(name);
                }
                gone.extend(entry);
            }
            (names, gone)
        });
        self.forget(gone);
        names
    }
}

fn address<P>(source: &Arc<P>) -> usize {
    Arc::as_ptr(source).addr()
}

fn check<D: Device>(components: &[(String, Arc<Module<D>>)]) -> Result<()> {
    if components.is_empty() {
        let text = "it has no components to manage; list at least one in Pipeline::components";
        return Err(EngineError::Misuse(text.to_owned()));
    }
    let mut names: Vec<&String> = components.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(EngineError::Misuse(format!("it lists {:?} twice; give each component its own name", pair[0])))
        }
        None => Ok(()),
    }
}

/// The registrations of one source; dropping the last handle of the source takes them back.
pub struct SourceRegistration<D: Device> {
    manager: Weak<ModelManager<D>>,
    names: Vec<String>,
    key: usize,
    serial: u64,
    /// Its address is its identity, so it must live.
    _source: Arc<dyn Any + Send + Sync>,
}

impl<D: Device> SourceRegistration<D> {
    /// The names registered, as the source listed them.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl<D: Device> Drop for SourceRegistration<D> {
    fn drop(&mut self) {
        if let Some(manager) = self.manager.upgrade() {
            let last = |source: &mut Source| {
                let ours = source.serial == self.serial;
                source.handles -= usize::from(ours);
                ours && source.handles == 0
            };
            manager.end_source(self.key, last);
        }
    }
}
