//! What is loaded once for all who are alike, and forgotten with the last of them.

use super::ModelManager;
use crate::{Device, EngineError};
use mm_cache::{Ask, Key, LoadError, LoadParams, TensorSlice, Weights};
use std::{any::TypeId, ops::Deref, sync::Arc};

/// A share of something that an adapter built over weights. With its last share the manager forgets it.
pub struct Share<T, D: Device> {
    value: Arc<T>,
    // Dropped after the value, so that the last share leaves it idle.
    _forget: Option<Forget<D>>,
}

struct Forget<D: Device> {
    manager: Arc<ModelManager<D>>,
    key: Key,
}

impl<D: Device> Drop for Forget<D> {
    fn drop(&mut self) {
        self.manager.cache().remove_idle(&self.key);
    }
}

impl<T, D: Device> Share<T, D> {
    /// The only share of a value that no manager knows.
    pub fn alone(value: T) -> Self {
        Self { value: Arc::new(value), _forget: None }
    }

    /// Whether both are shares of one value.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value)
    }
}

impl<T, D: Device> Deref for Share<T, D> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<D: Device> ModelManager<D> {
    /// What `build` makes over `weights`; where the same weights (by whatever paths), `params` and `T` were built over before and
    /// somebody still has a share, that. However many threads ask at once, one builds. Without `params` it is not known what
    /// is built, so it is not shared.
    ///
    /// # Errors
    /// What `build` says; `Misuse`: it asks for what it is to build.
    pub fn share<T: Send + Sync + 'static, E: From<EngineError>>(
        self: &Arc<Self>,
        name: &str,
        weights: &Weights,
        params: Option<&LoadParams<'_>>,
        build: impl FnOnce() -> Result<T, E>,
    ) -> Result<Share<T, D>, E> {
        let Some(params) = params else { return build().map(Share::alone) };
        // By its id, as two types may have one name.
        let config = [format!("{:?}\n", TypeId::of::<T>()).as_bytes(), params.config].concat();
        let key = weights.key(&LoadParams { config: &config, ..*params });
        let bytes: u64 = weights.tensors().map(TensorSlice::byte_len).fold(0, u64::saturating_add);
        let loaded = self.cache().get_or_load(Ask::new(key).named(name), |_| bytes, build);
        let value = loaded.map_err(|error| match error {
            LoadError::Factory(error) => error,
            LoadError::Lookup(error) => EngineError::Misuse(error.to_string()).into(),
            _ => EngineError::Internal("a load failed in a way that this version does not know".into()).into(),
        })?;
        Ok(Share { value, _forget: Some(Forget { manager: self.clone(), key }) })
    }
}
