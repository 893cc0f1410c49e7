//! A model that is reached only inside `run`.

use crate::{
    Error, Lora, Matched,
    build::Target,
    lora::state::Adapted,
    plain::PlainBackend,
    quantized::building,
    spans::{SpanCoverage, Spans},
};
use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use mm_cache::Weights;
use mm_engine::{AnyDevice, EngineError, ModelManager, Module, Registration, Share};
use parking_lot::{Mutex, ReentrantMutex};
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What to load and how it is used.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// Its files: safetensors, or GGUF, of which quantized weights need the layers of this crate ([`linear`](crate::linear)).
    pub files: Vec<PathBuf>,
    /// Compute dtype.
    pub dtype: DType,
    /// Components of one phase are active together; `None`: active alone.
    pub phase: Option<u32>,
    /// Forwards per request.
    pub passes: u32,
    /// The model only keeps its weights while it is built, as most do: then none are read before its first run.
    /// A model that computes with them there fails to build; one that copies them there (batch norms do) is
    /// refused by the kernels when it runs. `false` is right for any model.
    pub lazy: bool,
    /// All that decides what is built, but for the files, the dtype and the model's type: its configuration, as text. Loads that
    /// are alike in all of these are one component of their manager: loaded once, on the device once. `None`: it is
    /// not known what is built, so nobody shares it.
    pub config: Option<String>,
    /// Streams an unmodified model by the `tracing` spans that its layers enter, as many of candle-transformers do. What spans
    /// don't tell of stays on the device while the model runs; without any it is there as a whole. [`Component::spans`] and the
    /// component's notes say which. A model that uses a weight outside its spans is refused once, with [`Error::Spans`].
    pub spans: bool,
}

impl LoadSpec {
    /// A component of these files: computed in f32, active alone, one forward a request, not lazy, not shared,
    /// not by spans.
    pub fn new(name: impl Into<String>, files: impl Into<Vec<PathBuf>>) -> Self {
        let (name, files) = (name.into(), files.into());
        Self { name, files, dtype: DType::F32, phase: None, passes: 1, lazy: false, config: None, spans: false }
    }
}

/// A model and what it takes to run it, however many components share it.
pub(crate) struct Loaded<M> {
    pub(crate) device: Device,
    pub(crate) model: ReentrantMutex<RefCell<M>>,
    /// `None`: nobody manages it.
    pub(crate) module: Option<Arc<Module<AnyDevice>>>,
    /// `None`: it does not stream by spans.
    pub(crate) spans: Option<Spans>,
    /// Held, so that who opens the same bytes later finds them open.
    pub(crate) weights: Option<Arc<Weights>>,
    pub(crate) adapted: Mutex<Adapted>,
}

/// How a component hangs on its manager.
pub(crate) struct Managed {
    pub(crate) manager: Arc<ModelManager<AnyDevice>>,
    pub(crate) registration: Registration<AnyDevice>,
}

/// A model that is reached only inside [`Component::run`]. Dropping it unregisters it.
pub struct Component<M> {
    // The registration goes first: it takes the weights off the device.
    managed: Option<Managed>,
    loaded: Share<Loaded<M>, AnyDevice>,
}

impl<M> Component<M> {
    /// A model on the CPU that nobody manages.
    pub fn unmanaged(model: M) -> Self {
        Self::alone(model, None, Vec::new(), Device::Cpu)
    }

    fn alone(model: M, weights: Option<Arc<Weights>>, targets: Vec<Target>, device: Device) -> Self {
        let model = ReentrantMutex::new(RefCell::new(model));
        let adapted = Mutex::new(Adapted::new(targets, None));
        Self {
            managed: None,
            loaded: Share::alone(Loaded { device, model, module: None, spans: None, weights, adapted }),
        }
    }

    pub(crate) const fn managed(loaded: Share<Loaded<M>, AnyDevice>, managed: Managed) -> Self {
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

    /// Where its model computes, and takes its inputs.
    pub fn device(&self) -> &Device {
        &self.loaded.device
    }

    /// Its weights; `None`: it was not loaded from files.
    pub fn weights(&self) -> Option<&Arc<Weights>> {
        self.loaded.weights.as_ref()
    }

    /// How much of it streams by its spans; `None`: that was not asked for.
    pub fn spans(&self) -> Option<SpanCoverage> {
        self.loaded.spans.as_ref().map(Spans::coverage)
    }

    /// One pass: puts the component on the device as the plan says and calls `f` with the model. One
    /// run at a time; other threads wait.
    ///
    /// Where `f` runs out of memory something leaves the device, and the error is told: run it again. Where that may be done for
    /// you, use [`Component::run_again`].
    ///
    /// # Errors
    /// The engine's: no plan fits, weights can't be read, a run inside its own run. Else what `f` says.
    pub fn run<T>(&self, f: impl FnOnce(&mut M) -> Result<T>) -> std::result::Result<T, Error> {
        let managed = self.managed.as_ref().zip(self.loaded.module.as_ref());
        let run = managed.map(|(managed, module)| managed.manager.begin(module)).transpose()?;
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
    pub fn run_again<T>(&self, mut f: impl FnMut(&mut M) -> Result<T>) -> std::result::Result<T, Error> {
        match self.managed.as_ref().zip(self.loaded.module.as_ref()) {
            Some((managed, module)) => {
                let mut run = || managed.manager.run(module, || self.call(&mut f), Error::shortage);
                match run() {
                    Err(Error::Spans { .. }) => run(),
                    answer => answer,
                }
            }
            None => self.call(f),
        }
    }

    /// Adds a LoRA to its weights, at this scale, beside those that it has; where it has this one already (known by its file) the scale
    /// changes. At scale zero it adds nothing, and takes no memory.
    ///
    /// A run under way goes on as it is, the next one has the LoRA. Under a manager the factors stream, or stay, with the weights that
    /// they change, and count as a part of them, so the next run may be planned anew; a component that others share changes for all of them.
    /// What a layer made of its weights while it was built (a transposed copy, say) stays as it is.
    ///
    /// # Errors
    /// `Lora`: it is for another model, or its sizes are. `Misuse`: the model was not loaded from files, or nobody manages it and this is
    /// inside its own run. Then nothing changed.
    pub fn apply_lora(&self, lora: &Lora, scale: f64) -> std::result::Result<Matched, Error> {
        let mut adapted = self.loaded.adapted.lock();
        let (next, matched) = adapted.with(lora, scale)?;
        self.adapt(&mut adapted, next)?;
        Ok(matched)
    }

    /// What [`Component::apply_lora`] would do, without doing it.
    ///
    /// # Errors
    /// As there.
    pub fn match_lora(&self, lora: &Lora) -> std::result::Result<Matched, Error> {
        self.loaded.adapted.lock().with(lora, 1.0).map(|(_, matched)| matched)
    }

    /// Takes the LoRA of this file away; `false`: it is not there. With the last one the weights are to the bit what they were: they are
    /// copied anew, nothing is subtracted.
    ///
    /// # Errors
    /// `Misuse`: nobody manages it, and this is inside its own run. Else the weights can't be read.
    pub fn remove_lora(&self, file: impl AsRef<Path>) -> std::result::Result<bool, Error> {
        let mut adapted = self.loaded.adapted.lock();
        match adapted.without(file.as_ref()) {
            Some(next) => self.adapt(&mut adapted, next).map(|()| true),
            None => Ok(false),
        }
    }

    /// The files of the LoRAs that it has, each with its scale, in the order in which they came.
    pub fn loras(&self) -> Vec<(PathBuf, f64)> {
        self.loaded.adapted.lock().active().into_iter().map(|(lora, scale)| (lora.file().to_owned(), scale)).collect()
    }

    fn adapt(&self, adapted: &mut Adapted, next: Vec<(Lora, f64)>) -> std::result::Result<(), Error> {
        let managed = self.managed.as_ref().zip(self.loaded.module.as_ref());
        match (managed, adapted.spec(&self.loaded.device, &next)?, self.loaded.weights.as_ref()) {
            (Some((managed, module)), Some(spec), _) => managed.manager.replace(module, spec)?,
            (_, _, Some(weights)) => {
                let model = self.loaded.model.lock();
                let _idle = model.try_borrow_mut().map_err(|_| inside())?;
                adapted.change(weights, &next)?;
            }
            _ => {}
        }
        adapted.commit(next);
        Ok(())
    }

    fn call<T>(&self, f: impl FnOnce(&mut M) -> Result<T>) -> std::result::Result<T, Error> {
        let model = self.loaded.model.lock();
        let mut model = model.try_borrow_mut().map_err(|_| inside())?;
        let Some(pass) = self.loaded.spans.as_ref().map(Spans::pass).transpose()?.flatten() else {
            return Ok(f(&mut model)?);
        };
        let answer = f(&mut model);
        pass.end(answer, self.managed.as_ref().map(|m| (&m.manager, m.registration.name())))
    }
}

fn inside() -> EngineError {
    EngineError::Misuse("a component is run, or changed, inside its own run(..)".to_owned())
}

/// Loads a component whole, outside any manager, on the CPU: what a managed one is compared with.
///
/// # Errors
/// The files can't be used, or `build` fails.
pub fn load_unmanaged<M>(
    spec: &LoadSpec,
    build: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> std::result::Result<Component<M>, Error> {
    load_unmanaged_on(&Device::Cpu, spec, build)
}

/// As [`load_unmanaged`], on another device.
///
/// # Errors
/// As there; the device has no room.
pub fn load_unmanaged_on<M>(
    device: &Device,
    spec: &LoadSpec,
    build: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> std::result::Result<Component<M>, Error> {
    let weights = Weights::open(&spec.files)?;
    let backend = PlainBackend::new(weights.clone());
    let vb = VarBuilder::from_backend(Box::new(backend.clone()), spec.dtype, device.clone());
    let model = building(&weights, || build(vb))?;
    Ok(Component::alone(model, Some(weights), backend.take_given(), device.clone()))
}
