//! Registering one component, and taking that back.

use super::{
    ModelManager, State,
    admission::Id,
    registry::{Entry, Holder, Removed},
    release::Released,
};
use crate::{Device, EngineError, Module, Result};
use std::sync::{Arc, Weak};

impl<D: Device> ModelManager<D> {
    /// Registers a component under a name, until the handle is dropped. It is planned with the others at the next run.
    ///
    /// The same module may be registered any number of times, under one name or several: it is on the device once, and
    /// leaves it when nobody holds it any more. A module that has the name already loses it, and with its last
    /// name leaves the manager; its handles count for nothing from then on.
    ///
    /// # Errors
    /// `Misuse`: the module is on another device, or with another manager.
    pub fn register(self: &Arc<Self>, name: &str, module: &Arc<Module<D>>) -> Result<Registration<D>> {
        let holder = self.enlist(name, module, true)?;
        Ok(Registration { manager: Arc::downgrade(self), name: name.to_owned(), holder })
    }

    /// As [`ModelManager::register`], but takes no name over: for components that nobody meant to replace, such as those of a second
    /// pipeline.
    ///
    /// # Errors
    /// `Misuse`: another module has the name; or as there.
    pub fn register_new(self: &Arc<Self>, name: &str, module: &Arc<Module<D>>) -> Result<Registration<D>> {
        let holder = self.enlist(name, module, false)?;
        Ok(Registration { manager: Arc::downgrade(self), name: name.to_owned(), holder })
    }

    /// As [`ModelManager::register`], until [`ModelManager::unregister_component`].
    ///
    /// # Errors
    /// As there.
    pub fn register_component(&self, name: &str, module: &Arc<Module<D>>) -> Result<()> {
        self.enlist(name, module, true).map(drop)
    }

    /// Takes the last registration under this name back, whoever made it; `false`: there is none. The component leaves the
    /// device when nobody holds it any more and its run, if one is under way, has ended.
    pub fn unregister_component(&self, name: &str) -> bool {
        let (there, gone) = self.gate.update(|state| {
            let holder = state.registry.last_holder(name);
            (holder.is_some(), holder.and_then(|holder| state.unregister(name, holder).1))
        });
        self.forget(gone);
        there
    }

    /// The counterpart of [`ModelManager::load_module`]: as [`ModelManager::unregister_component`], which forgets what was cached too.
    pub fn unload_component(&self, name: &str) -> bool {
        self.unregister_component(name)
    }

    /// How many registrations this module has, under all its names.
    pub fn registrations(&self, module: &Arc<Module<D>>) -> usize {
        self.gate.read(|state| state.registry.id_of(module).map_or(0, |id| state.registry.registrations(id)))
    }

    fn enlist(&self, name: &str, module: &Arc<Module<D>>, takes_over: bool) -> Result<Holder> {
        let (holder, gone) = self.gate.update(|state| {
            if !takes_over && state.registry.module(name).is_some_and(|other| !Arc::ptr_eq(other, module)) {
                return Err(EngineError::Misuse(format!(
                    "another component is registered as {name:?}; drop its registration or choose another name"
                )));
            }
            self.claim(name, module)?;
            let (holder, orphan) = state.registry.add(name, module);
            state.changed();
            Ok::<_, EngineError>((holder, orphan.and_then(|id| state.retire(id))))
        })?;
        self.forget(gone);
        Ok(holder)
    }

    /// This manager can have the module, and has it from now on.
    pub(super) fn claim(&self, name: &str, module: &Arc<Module<D>>) -> Result<()> {
        if !Arc::ptr_eq(&module.device, &self.device) {
            return Err(EngineError::Misuse(format!(
                "{name} was built for another device than its manager's; build it on this one"
            )));
        }
        if !module.claim(self.id) {
            return Err(EngineError::Misuse(format!(
                "{name} is registered with another manager; drop that registration, or share that manager"
            )));
        }
        module.set_host_memory(self.host_memory);
        Ok(())
    }

    pub(super) fn unregister(&self, name: &str, holder: Holder) {
        let (_, gone) = self.gate.update(|state| state.unregister(name, holder));
        self.forget(gone);
    }

    /// What nobody holds any more is dropped here, with no lock held: what it holds may take it.
    pub(super) fn forget(&self, gone: impl IntoIterator<Item = Entry<D>>) {
        for entry in gone {
            for key in &entry.keys {
                let same = |cached: Arc<Module<D>>| Arc::ptr_eq(&cached, &entry.module);
                if self.cache.get::<Module<D>>(key).is_ok_and(|cached| cached.is_some_and(same)) {
                    self.cache.remove(key);
                }
            }
        }
    }
}

impl<D: Device> State<D> {
    /// Ends a registration: whether there was one, and the module, if nobody holds it any more.
    pub(super) fn unregister(&mut self, name: &str, holder: Holder) -> (bool, Option<Entry<D>>) {
        let removed = self.registry.remove(name, holder);
        if removed == Removed::Stale {
            return (false, None);
        }
        let gone = if let Removed::Orphan(id) = removed { self.retire(id) } else { None };
        self.changed();
        (true, gone)
    }

    /// Nobody holds it any more. It leaves the device now, or when its run ends.
    pub(super) fn retire(&mut self, id: Id) -> Option<Entry<D>> {
        let runs = self.admission.runner(id).is_some();
        let entry = self.registry.orphan(id, runs)?;
        self.survival.forget(id);
        if !runs {
            // An error has nobody to hear it here; the device's account shows what stayed.
            let _ = self.take_off(id, &entry.module);
            entry.module.disown();
        }
        Some(entry)
    }

    /// Takes an idle component off the device.
    pub(super) fn take_off(&mut self, id: Id, module: &Module<D>) -> Result<Released> {
        self.admission.dropped(id);
        self.applied.remove(&id);
        let before = module.device.unfreed();
        let bytes = module.unload()?;
        if bytes == 0 {
            return Ok(Released::default());
        }
        let kept = module.device.unfreed().saturating_sub(before);
        let pooled = module.device.trim();
        let free = module.device.driver_memory().map(|memory| memory.free);
        Ok(Released { bytes: bytes.saturating_sub(kept), kept, pooled, free })
    }
}

/// A registration; dropping it takes it back.
pub struct Registration<D: Device> {
    manager: Weak<ModelManager<D>>,
    name: String,
    holder: Holder,
}

impl<D: Device> Registration<D> {
    /// The name registered.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<D: Device> Drop for Registration<D> {
    fn drop(&mut self) {
        if let Some(manager) = self.manager.upgrade() {
            manager.unregister(&self.name, self.holder);
        }
    }
}
