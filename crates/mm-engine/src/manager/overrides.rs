//! Strategies that are in force while a guard lives.

use super::{ModelManager, registry::Registry};
use crate::{Device, EngineError, Result};
use mm_plan::{Policy, Strategy};
use std::{collections::BTreeMap, sync::Arc};

/// An override that is in force while its guard lives.
pub(super) struct Override {
    id: u64,
    /// None: all components.
    names: Vec<String>,
    strategy: Strategy,
}

impl<D: Device> ModelManager<D> {
    /// While the guard lives, the components named (all of them, if none is) use `strategy`; it is applied at the first
    /// run. Dropping the guard, also by error or panic, brings back what was. Of several that live the one made last
    /// wins, in whatever order they are dropped.
    ///
    /// # Errors
    /// `Misuse`: a name is not registered.
    pub fn use_components(self: &Arc<Self>, names: &[&str], strategy: Strategy) -> Result<StrategyOverride<D>> {
        let id = self.gate.update(|state| {
            if let Some(unknown) = names.iter().find(|name| state.registry.module(name).is_none()) {
                return Err(unknown_component(unknown, &state.registry));
            }
            let id = state.registry.serial();
            state.overrides.push(Override { id, names: names.iter().map(|n| (*n).to_owned()).collect(), strategy });
            state.changed();
            Ok(id)
        })?;
        Ok(StrategyOverride { manager: self.clone(), id })
    }
}

pub(super) fn unknown_component<D: Device>(name: &str, registry: &Registry<D>) -> EngineError {
    EngineError::Misuse(format!("no component {name:?} is registered; there are: {}", registry.names().join(", ")))
}

/// The policy under these overrides, with each component under the name that it is planned as.
pub(super) fn policy<D: Device>(policy: &Policy, overrides: &[Override], registry: &Registry<D>) -> Policy {
    let mut policy = policy.clone();
    policy.resident = planned_names(policy.resident, registry);
    policy.strategies = planned_names(policy.strategies, registry);
    for change in overrides {
        if change.names.is_empty() {
            policy.strategies.clear();
            policy.strategy = change.strategy;
        }
        let planned = change.names.iter().filter_map(|name| registry.planned_name(name));
        policy.strategies.extend(planned.map(|name| (name.to_owned(), change.strategy)));
    }
    policy
}

/// What is said about an alias is said about its component, unless that has its own say.
fn planned_names<D: Device, T>(said: BTreeMap<String, T>, registry: &Registry<D>) -> BTreeMap<String, T> {
    let (mut own, mut others) = (BTreeMap::new(), Vec::new());
    for (name, value) in said {
        match registry.planned_name(&name).filter(|planned| *planned != name) {
            Some(planned) => others.push((planned.to_owned(), value)),
            None => drop(own.insert(name, value)),
        }
    }
    for (name, value) in others {
        own.entry(name).or_insert(value);
    }
    own
}

/// A strategy in force while this lives; see [`ModelManager::use_components`].
pub struct StrategyOverride<D: Device> {
    manager: Arc<ModelManager<D>>,
    id: u64,
}

impl<D: Device> Drop for StrategyOverride<D> {
    fn drop(&mut self) {
        self.manager.gate.update(|state| {
            state.overrides.retain(|change| change.id != self.id);
            state.changed();
        });
    }
}
