//! A model that is reached only inside `run`.

use crate::{Error, Result, build::CpuDevice, home::TchHomes, kind::kind_of};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{EngineError, ModelManager, Module, Registration, Share, dtype_of};
use parking_lot::ReentrantMutex;
use std::{cell::RefCell, path::PathBuf, sync::Arc};
use tch::{
    Device, Kind, Tensor,
    nn::{self, VarStore},
};

/// What to load and how it is used.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// Its safetensors files.
    pub files: Vec<PathBuf>,
    /// What floating-point variables are computed in; others keep the kind they are built in.
    pub kind: Kind,
    /// Components of one phase are active together; `None`: active alone.
    pub phase: Option<u32>,
    /// Forwards per request.
    pub passes: u32,
    /// All that decides what is built, but for the files, the kind and the model's type: its configuration, as text. Loads that
    /// are alike in all of these are one component of their manager: loaded once, on the device once. `None`: it is
    /// not known what is built, so nobody shares it.
    pub config: Option<String>,
}

impl LoadSpec {
    /// A component of these safetensors files: computed in f32, active alone, one forward a request, not shared.
    pub fn new(name: impl Into<String>, files: impl Into<Vec<PathBuf>>) -> Self {
        let (name, files) = (name.into(), files.into());
        Self { name, files, kind: Kind::Float, phase: None, passes: 1, config: None }
    }
}

/// A model and what it takes to run it, however many components share it.
pub(crate) struct Loaded<M> {
    pub(crate) model: ReentrantMutex<RefCell<M>>,
    /// `None`: nobody manages it.
    pub(crate) managed: Option<(Arc<Module<CpuDevice>>, TchHomes)>,
    /// Held, so that who opens the same bytes later finds them open.
    pub(crate) weights: Option<Arc<Weights>>,
}

/// How a component hangs on its manager.
pub(crate) struct Managed {
    pub(crate) manager: Arc<ModelManager<CpuDevice>>,
    pub(crate) registration: Registration<CpuDevice>,
}

/// By whom it is managed, and what.
type Placed<'a> = (&'a Managed, &'a Arc<Module<CpuDevice>>);

/// A model that is reached only inside [`Component::run`]. Dropping it unregisters it.
pub struct Component<M> {
    // The registration goes first: it takes the weights off the device.
    managed: Option<Managed>,
    loaded: Share<Loaded<M>, CpuDevice>,
}

impl<M: Send> Component<M> {
    /// A model that nobody manages.
    pub fn unmanaged(model: M) -> Self {
        Self::alone(model, None)
    }

    fn alone(model: M, weights: Option<Arc<Weights>>) -> Self {
        let model = ReentrantMutex::new(RefCell::new(model));
        Self { managed: None, loaded: Share::alone(Loaded { model, managed: None, weights }) }
    }

    pub(crate) const fn managed(loaded: Share<Loaded<M>, CpuDevice>, managed: Managed) -> Self {
        Self { managed: Some(managed), loaded }
    }

    /// The name it is registered under; `None`: nobody manages it.
    pub fn name(&self) -> Option<&str> {
        self.managed.as_ref().map(|m| m.registration.name())
    }

    /// Whether the other is this very model: loaded once, and on the device once.
    pub fn is_same(&self, other: &Self) -> bool {
        self.loaded.is_same(&other.loaded)
    }

    /// Its weights; `None`: it was not loaded from files.
    pub fn weights(&self) -> Option<&Arc<Weights>> {
        self.loaded.weights.as_ref()
    }

    /// One pass: puts the component on the device as the plan says and calls `f` with the model, without gradients. One
    /// run at a time; other threads wait.
    ///
    /// What `f` returns must not be a view of a weight: that refuses once the weight has left.
    ///
    /// Where `f` runs out of memory something leaves the device, and the error is told: run it again. Where that may be done for
    /// you, use [`Component::run_again`].
    ///
    /// # Errors
    /// The engine's: no plan fits, weights can't be read, a run inside its own run; `Misuse` where a weight was told to
    /// require grad. Else what `f` says.
    pub fn run<T>(&self, f: impl FnOnce(&mut M) -> Result<T>) -> Result<T> {
        let run = self.placed()?.map(|(managed, module)| managed.manager.begin(module)).transpose()?;
        match (self.call(f), run) {
            (Ok(answer), Some(run)) => run.complete().map(|()| answer).map_err(Error::from),
            (Err(error), Some(run)) => {
                if let Some(short) = error.shortage() {
                    // Whoever runs it again finds more room, if there is any.
                    let _ = run.out_of_memory(short);
                }
                Err(error)
            }
            (answer, None) => answer,
        }
    }

    /// As [`Component::run`]; where memory runs out something leaves the device and `f` is called again, a few times at the most. `f`
    /// starts over then: what it keeps in the model, a KV cache say, is its own to clear first.
    ///
    /// # Errors
    /// As [`Component::run`].
    pub fn run_again<T>(&self, mut f: impl FnMut(&mut M) -> Result<T>) -> Result<T> {
        match self.placed()? {
            Some((managed, module)) => managed.manager.run(module, || self.call(&mut f), Error::shortage),
            None => self.call(f),
        }
    }

    /// Where it is managed, by whom, and what; its weights are frozen.
    fn placed(&self) -> Result<Option<Placed<'_>>> {
        let Some((module, homes)) = &self.loaded.managed else { return Ok(None) };
        homes.check_frozen(self.name().unwrap_or_default())?;
        Ok(self.managed.as_ref().map(|managed| (managed, module)))
    }

    fn call<T>(&self, f: impl FnOnce(&mut M) -> Result<T>) -> Result<T> {
        let model = self.loaded.model.lock();
        let mut model = model
            .try_borrow_mut()
            .map_err(|_| EngineError::Misuse("a component is run inside its own run(..)".to_owned()))?;
        let _no_grad = tch::no_grad_guard();
        f(&mut model)
    }
}

/// Loads a component whole, outside any manager: what a managed one is compared with.
///
/// # Errors
/// The files can't be used, or `build` fails.
pub fn load_unmanaged<M: Send>(spec: &LoadSpec, build: impl Fn(&nn::Path<'_>) -> Result<M>) -> Result<Component<M>> {
    let weights = Weights::open(&spec.files)?;
    let mut store = VarStore::new(Device::Cpu);
    store.set_kind(spec.kind);
    let model = build(&store.root())?;
    store.freeze();
    for (name, mut variable) in store.variables() {
        let fail = |reason: String| Error::Variable { variable: name.clone(), reason };
        let source = weights.get(&name).ok_or_else(|| fail("there is no tensor of this name in the files".into()))?;
        let stored = read(source)?;
        if stored.size() != variable.size() {
            let (file, asked) = (source.file().display(), variable.size());
            return Err(fail(format!("{file}: the model asks for shape {asked:?}, stored is {:?}", stored.size())));
        }
        tch::no_grad(|| variable.f_copy_(&stored))?;
    }
    store.set_kind(spec.kind);
    Ok(Component::alone(model, Some(weights)))
}

/// A stored tensor as it is stored.
fn read(source: &TensorSlice) -> Result<Tensor> {
    let fail = |reason: String| Error::Variable { variable: source.name().to_owned(), reason };
    let kind = dtype_of(source.dtype()).and_then(kind_of).ok_or_else(|| fail("its dtype is not known".into()))?;
    let length = usize::try_from(source.byte_len()).map_err(|e| fail(e.to_string()))?;
    let mut bytes = vec![0; length];
    source.read_into(0, &mut bytes)?;
    let shape: Vec<i64> = source.shape().iter().map(|d| *d as i64).collect();
    Ok(Tensor::f_from_data_size(&bytes, &shape, kind)?)
}
