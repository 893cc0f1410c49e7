//! Homes: the variables of a component, whose memory the engine gives and takes.
//!
//! A variable keeps its shape and kind; what changes is the storage under it. Every layer that holds the variable sees
//! the change, as they hold the same tensor.

use crate::memory::{self, TorchMemory, Variable};
use mm_engine::{EngineError, Homes, Place, Result};
use parking_lot::Mutex;
use std::sync::Arc;

/// One slab's variables, and the memory they view while it is there.
pub(crate) struct Home {
    pub(crate) variables: Vec<Variable>,
    memory: Option<TorchMemory>,
}

impl Home {
    pub(crate) const fn new(variables: Vec<Variable>) -> Self {
        Self { variables, memory: None }
    }
}

/// All homes of a component.
pub(crate) struct Parts {
    pub(crate) rest: Vec<Home>,
    pub(crate) groups: Vec<Vec<Home>>,
}

/// The homes as the engine reaches them. tch's tensors may change threads, but not be used by two at once.
#[derive(Clone)]
pub(crate) struct TchHomes(Arc<Mutex<Parts>>);

impl TchHomes {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Mutex::new(parts)))
    }

    /// Refuses training: gradients would be of memory that has left.
    pub(crate) fn check_frozen(&self, name: &str) -> Result<()> {
        let parts = self.0.lock();
        let mut variables = parts.rest.iter().chain(parts.groups.iter().flatten()).flat_map(|home| &home.variables);
        match variables.any(|v| v.tensor.requires_grad()) {
            false => Ok(()),
            true => Err(EngineError::Misuse(format!(
                "{name}: training a managed model is not supported, and one of its weights requires grad; load it into a \
                 VarStore of your own to train it"
            ))),
        }
    }
}

fn home(parts: &mut Parts, place: Place, slab: usize) -> std::result::Result<&mut Home, String> {
    let homes = match place {
        Place::Rest => Some(&mut parts.rest),
        Place::Group(group) => parts.groups.get_mut(group),
    };
    homes.and_then(|homes| homes.get_mut(slab)).ok_or_else(|| format!("no home for slab {slab} of {place:?}"))
}

impl Homes<TorchMemory> for TchHomes {
    fn put(&self, place: Place, slab: usize, buffer: TorchMemory) -> std::result::Result<(), (TorchMemory, String)> {
        let mut parts = self.0.lock();
        let home = match home(&mut parts, place, slab) {
            Ok(home) if home.memory.is_none() => home,
            Ok(_) => return Err((buffer, format!("the home of slab {slab} of {place:?} is occupied"))),
            Err(reason) => return Err((buffer, reason)),
        };
        match memory::put(&home.variables, &buffer) {
            Ok(()) => {
                home.memory = Some(buffer);
                Ok(())
            }
            Err(reason) => Err((buffer, reason)),
        }
    }

    fn take(&self, place: Place, slab: usize) -> std::result::Result<TorchMemory, String> {
        let mut parts = self.0.lock();
        let home = home(&mut parts, place, slab)?;
        let memory = home.memory.as_ref().ok_or_else(|| format!("the home of slab {slab} of {place:?} is empty"))?;
        memory::take(memory)?;
        home.memory.take().ok_or_else(|| format!("the home of slab {slab} of {place:?} is empty"))
    }
}
