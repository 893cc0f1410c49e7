//! What is known of a component, asked by name whatever stands before the names.

use std::collections::HashMap;

use serde_json::Value;

/// A component's tensors with their shapes, its configuration and its class, where it has them.
pub(crate) struct Facts<'a> {
    shapes: HashMap<&'a str, &'a [usize]>,
    config: Option<&'a Value>,
    class: Option<&'a str>,
}

impl<'a> Facts<'a> {
    pub(crate) fn new(
        tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
        config: Option<&'a Value>,
        class: Option<&'a str>,
    ) -> Self {
        Self { shapes: tensors.collect(), config, class }
    }

    /// A whole number of the configuration, greater than zero.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.config?.get(key)?.as_u64().filter(|&number| number > 0).map(|number| number as f64)
    }

    /// A value of the configuration.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.config?.get(key)
    }

    pub(super) fn class_has(&self, part: &str) -> bool {
        self.class.is_some_and(|class| class.contains(part))
    }

    /// The tensors among which one is called `name`: all that begin with what stands before it, the least of it where
    /// several do.
    pub(super) fn around(&self, name: &str) -> Option<Names<'_>> {
        let prefix = |full: &&'a str| {
            let prefix = full.strip_suffix(name)?;
            (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
        };
        let prefix = self.shapes.keys().filter_map(prefix).min_by_key(|prefix| (prefix.len(), *prefix))?;
        Some(Names { facts: self, prefix })
    }
}

/// The tensors behind one prefix.
#[derive(Clone, Copy)]
pub(super) struct Names<'f> {
    facts: &'f Facts<'f>,
    prefix: &'f str,
}

impl<'f> Names<'f> {
    pub(super) fn shape(&self, name: &str) -> Option<&'f [usize]> {
        self.facts.shapes.get(format!("{}{name}", self.prefix).as_str()).copied()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Size of one side of a tensor; `None` where it has no such side or it is zero.
    pub(super) fn side(&self, name: &str, side: usize) -> Option<f64> {
        self.shape(name)?.get(side).filter(|&&size| size > 0).map(|&size| size as f64)
    }

    /// The same of the first of several names that is there.
    pub(super) fn side_of(&self, names: &[&str], side: usize) -> Option<f64> {
        names.iter().find_map(|name| self.side(name, side))
    }
}
