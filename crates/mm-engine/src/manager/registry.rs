//! Who is registered, under which names, how often, by which source.
//!
//! A module is known by its identity, whatever it is called. Planned it is under the oldest of its names; the others
//! are aliases. A name belongs to one module: another one that takes it displaces the first, which stays as long as it has
//! another name.

use super::admission::Id;
use crate::{Device, Module};
use mm_cache::Key;
use mm_plan::Component;
use std::{collections::BTreeMap, sync::Arc};

/// One registration.
pub(super) type Holder = u64;

/// A module, however many names it has.
pub(super) struct Entry<D: Device> {
    pub(super) module: Arc<Module<D>>,
    /// Under which it lies in the cache.
    pub(super) keys: Vec<Key>,
}

impl<D: Device> Clone for Entry<D> {
    fn clone(&self) -> Self {
        Self { module: self.module.clone(), keys: self.keys.clone() }
    }
}

#[derive(Clone)]
struct Name {
    id: Id,
    /// When this module got this name.
    since: u64,
    holders: Vec<Holder>,
}

/// Whatever lists its components, and what was registered for it.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) serial: u64,
    pub(super) handles: usize,
    pub(super) holders: Vec<(String, Holder)>,
}

/// Cloned to try changes out: what is tried is either put in place whole, or dropped.
pub(super) struct Registry<D: Device> {
    names: BTreeMap<String, Name>,
    entries: BTreeMap<Id, Entry<D>>,
    /// Nobody holds them any more; they go when their run ends.
    leaving: BTreeMap<Id, Entry<D>>,
    /// By address. Whoever registered one keeps it alive.
    pub(super) sources: BTreeMap<usize, Source>,
    next: u64,
}

impl<D: Device> Default for Registry<D> {
    fn default() -> Self {
        let (names, entries, leaving, sources) = Default::default();
        Self { names, entries, leaving, sources, next: 0 }
    }
}

impl<D: Device> Clone for Registry<D> {
    fn clone(&self) -> Self {
        Self {
            names: self.names.clone(),
            entries: self.entries.clone(),
            leaving: self.leaving.clone(),
            sources: self.sources.clone(),
            next: self.next,
        }
    }
}

/// What a registration that ended leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Removed {
    /// There was no such registration, or it counts for nothing any more.
    Stale,
    /// Others hold the module.
    Held,
    /// Nobody holds it.
    Orphan(Id),
}

impl<D: Device> Registry<D> {
    /// One registration more; and the module that it displaced, where nobody holds that one any more.
    pub(super) fn add(&mut self, name: &str, module: &Arc<Module<D>>) -> (Holder, Option<Id>) {
        let id = self.id_of(module).unwrap_or_else(|| {
            let left = self.leaving.iter().find(|(_, e)| Arc::ptr_eq(&e.module, module)).map(|(id, _)| *id);
            let entry = left.and_then(|id| self.leaving.remove(&id).map(|entry| (id, entry)));
            let (id, entry) =
                entry.unwrap_or_else(|| (self.serial(), Entry { module: module.clone(), keys: Vec::new() }));
            self.entries.insert(id, entry);
            id
        });
        let displaced = self.names.get(name).map(|n| n.id).filter(|other| *other != id);
        if displaced.is_some() {
            self.names.remove(name);
        }
        let (since, holder) = (self.serial(), self.serial());
        let named = self.names.entry(name.to_owned()).or_insert(Name { id, since, holders: Vec::new() });
        named.holders.push(holder);
        (holder, displaced.filter(|id| self.is_orphan(*id)))
    }

    /// One registration less.
    pub(super) fn remove(&mut self, name: &str, holder: Holder) -> Removed {
        let Some(named) = self.names.get_mut(name) else { return Removed::Stale };
        let Some(at) = named.holders.iter().position(|h| *h == holder) else { return Removed::Stale };
        named.holders.remove(at);
        let (id, last) = (named.id, named.holders.is_empty());
        if last {
            self.names.remove(name);
        }
        if self.is_orphan(id) { Removed::Orphan(id) } else { Removed::Held }
    }

    /// The registration under this name that was made last.
    pub(super) fn last_holder(&self, name: &str) -> Option<Holder> {
        self.names.get(name).and_then(|named| named.holders.last().copied())
    }

    /// The module's names are nobody's.
    pub(super) fn strike(&mut self, id: Id) {
        self.names.retain(|_, named| named.id != id);
    }

    /// Takes an orphan out; `stays`: its run isn't over.
    pub(super) fn orphan(&mut self, id: Id, stays: bool) -> Option<Entry<D>> {
        let entry = self.entries.remove(&id)?;
        if stays {
            self.leaving.insert(id, entry.clone());
        }
        Some(entry)
    }

    /// Its run ended; the module, if nobody holds it any more.
    pub(super) fn left(&mut self, id: Id) -> Option<Entry<D>> {
        self.leaving.remove(&id)
    }

    pub(super) fn id_of(&self, module: &Arc<Module<D>>) -> Option<Id> {
        self.entries.iter().find(|(_, e)| Arc::ptr_eq(&e.module, module)).map(|(id, _)| *id)
    }

    pub(super) fn id(&self, name: &str) -> Option<Id> {
        self.names.get(name).map(|named| named.id)
    }

    pub(super) fn entry(&self, id: Id) -> Option<&Entry<D>> {
        self.entries.get(&id)
    }

    /// What errors call it, also while it is leaving.
    pub(super) fn title(&self, id: Id) -> Option<Arc<str>> {
        self.entries.get(&id).or_else(|| self.leaving.get(&id)).map(|entry| entry.module.title())
    }

    pub(super) fn entry_mut(&mut self, id: Id) -> Option<&mut Entry<D>> {
        self.entries.get_mut(&id)
    }

    pub(super) fn module(&self, name: &str) -> Option<&Arc<Module<D>>> {
        self.id(name).and_then(|id| self.entries.get(&id)).map(|entry| &entry.module)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Id, &Entry<D>)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// A module's names, the one that it is planned under first.
    pub(super) fn names_of(&self, id: Id) -> Vec<&str> {
        let mut names: Vec<(u64, &str)> =
            self.names.iter().filter(|(_, named)| named.id == id).map(|(name, named)| (named.since, &**name)).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// The name under which a module is planned, given any of its names.
    pub(super) fn planned_name(&self, name: &str) -> Option<&str> {
        self.id(name).and_then(|id| self.names_of(id).into_iter().next())
    }

    /// How many registrations a module has, under all its names.
    pub(super) fn registrations(&self, id: Id) -> usize {
        self.names.values().filter(|named| named.id == id).map(|named| named.holders.len()).sum()
    }

    /// What the planner is told: each module under one of its names, the others as aliases.
    pub(super) fn descriptions(&self) -> Vec<Component> {
        let mut components = Vec::new();
        for (id, entry) in self.entries() {
            let description = entry.module.described();
            let names = self.names_of(id);
            let Some((name, aliases)) = names.split_first() else { continue };
            components.extend(aliases.iter().map(|alias| Component {
                phase: description.phase,
                same_as: Some((*name).to_owned()),
                ..Component::whole(*alias, 0)
            }));
            components.push(Component { name: (*name).to_owned(), ..description });
        }
        components
    }

    /// Errors and the timeline call each module what it is planned as.
    pub(super) fn retitle(&self) {
        for (id, entry) in self.entries() {
            if let Some(name) = self.names_of(id).first() {
                entry.module.set_title(name);
            }
        }
    }

    /// Forgets everything, and returns it. Registrations made so far count for nothing.
    pub(super) fn clear(&mut self) -> Vec<Entry<D>> {
        let old = std::mem::replace(self, Self { next: self.next, ..Self::default() });
        old.entries.into_values().chain(old.leaving.into_values()).collect()
    }

    /// A number that was never used.
    pub(super) const fn serial(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn is_orphan(&self, id: Id) -> bool {
        !self.names.values().any(|named| named.id == id)
    }
}
