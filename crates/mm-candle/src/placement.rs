//! Weights that come and go by hand, for who loads and schedules models alone.

use crate::home::{refusing_on, swap};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::{Init, var_builder::SimpleBackend};
use parking_lot::Mutex;
use std::sync::Arc;

/// A `VarBuilder` backend over another one, whose weights can leave the device and come back while the model stays.
///
/// What it hands out is a copy of what the other one answers, so what that one keeps stays as it is. A model that holds such
/// weights computes as ever while they are there; while they are not, every kernel refuses them.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Module, VarBuilder, linear};
/// use mm_candle::Placement;
///
/// let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// // Any backend: safetensors files, a map of tensors, another wrapper.
/// let stored = std::collections::HashMap::from([
///     ("encoder.weight".to_owned(), ones(&[2, 3])?), ("encoder.bias".to_owned(), ones(&[2])?),
///     ("decoder.weight".to_owned(), ones(&[3, 2])?), ("decoder.bias".to_owned(), ones(&[3])?),
/// ]);
/// let weights = Placement::over(stored);
/// let vb = VarBuilder::from_backend(weights.backend(), DType::F32, Device::Cpu);
/// let (encoder, decoder) = (linear(3, 2, vb.pp("encoder"))?, linear(2, 3, vb.pp("decoder"))?);
///
/// assert_eq!(weights.evict("decoder")?, 9 * 4); // bytes that it had
/// let code = encoder.forward(&ones(&[1, 3])?)?;
/// assert!(decoder.forward(&code).is_err());
/// weights.evict("encoder")?;
/// weights.restore("decoder")?; // asks the backend again
/// assert_eq!(decoder.forward(&code)?.to_vec2::<f32>()?, [[9.0, 9.0, 9.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Placement(Arc<Shared>);

struct Shared {
    inner: Box<dyn SimpleBackend>,
    given: Mutex<Vec<Weight>>,
}

/// A weight that was handed out, and how it was asked for.
struct Weight {
    name: String,
    hint: Option<(Shape, Init)>,
    tensor: Tensor,
    is_there: bool,
}

impl Placement {
    /// Over this backend, which is asked again whenever weights come back.
    pub fn over(inner: impl SimpleBackend + 'static) -> Self {
        Self(Arc::new(Shared { inner: Box::new(inner), given: Mutex::default() }))
    }

    /// What a `VarBuilder` is made of. All that are made of it count as one.
    pub fn backend(&self) -> Box<dyn SimpleBackend> {
        Box::new(Backend(self.0.clone()))
    }

    /// Takes the weights of this module off the device, of all modules where it is empty; the bytes that they had. Kernels
    /// that use them are answered with an error from now on, also through clones and views.
    ///
    /// # Errors
    /// No weight of such a module was handed out; one can't be reached. Those before it are gone.
    pub fn evict(&self, module: &str) -> Result<u64> {
        self.turn(module, |weight| {
            if weight.is_there {
                let (_, outcome) = swap(&weight.tensor, refusing_on(weight.tensor.device())?);
                outcome?;
                weight.is_there = false;
            } else {
                return Ok(0);
            }
            Ok(bytes(&weight.tensor))
        })
    }

    /// Brings them back, from the backend that they are of; the bytes that they have.
    ///
    /// # Errors
    /// No weight of such a module was handed out; the backend has one no more, or has another of its name; there is no room. Those
    /// before it are back.
    pub fn restore(&self, module: &str) -> Result<u64> {
        let inner = &self.0.inner;
        self.turn(module, |weight| {
            if weight.is_there {
                return Ok(0);
            }
            let (dtype, device) = (weight.tensor.dtype(), weight.tensor.device());
            let fresh = own(inner.as_ref(), &weight.name, weight.hint.clone(), dtype, device)?;
            if fresh.shape() != weight.tensor.shape() || fresh.dtype() != dtype {
                let (expected, got, msg) = (weight.tensor.shape().clone(), fresh.shape().clone(), weight.name.clone());
                return Err(Error::UnexpectedShape { msg, expected, got }.bt());
            }
            let (Some(storage), Ok(())) = swap(&fresh, refusing_on(device)?) else {
                bail!("{}: its memory can't be taken", weight.name);
            };
            swap(&weight.tensor, storage).1?;
            weight.is_there = true;
            Ok(bytes(&weight.tensor))
        })
    }

    fn turn(&self, module: &str, mut f: impl FnMut(&mut Weight) -> Result<u64>) -> Result<u64> {
        let mut given = self.0.given.lock();
        let (mut total, mut found) = (0u64, false);
        for weight in given.iter_mut().filter(|weight| is_under(&weight.name, module)) {
            found = true;
            total = total.saturating_add(f(weight)?);
        }
        if !found && !module.is_empty() {
            let mut modules: Vec<&str> = given.iter().filter_map(|w| w.name.split('.').next()).collect();
            modules.dedup();
            bail!("no weight of a module {module:?} was handed out; there are: {}", modules.join(", "));
        }
        Ok(total)
    }
}

impl Shared {
    fn give(&self, name: &str, hint: Option<(Shape, Init)>, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut given = self.given.lock();
        let is_it = |w: &&Weight| w.name == name && w.tensor.dtype() == dtype && w.tensor.device().same_device(device);
        if let Some(weight) = given.iter().find(is_it) {
            let shape = hint.as_ref().map_or_else(|| weight.tensor.shape(), |(shape, _)| shape);
            if shape != weight.tensor.shape() {
                let (expected, got) = (shape.clone(), weight.tensor.shape().clone());
                return Err(Error::UnexpectedShape { msg: name.to_owned(), expected, got }.bt());
            }
            return Ok(weight.tensor.clone());
        }
        // A device whose memory can't be swapped is told of now.
        refusing_on(device)?;
        let tensor = own(self.inner.as_ref(), name, hint.clone(), dtype, device)?;
        given.push(Weight { name: name.to_owned(), hint, tensor: tensor.clone(), is_there: true });
        Ok(tensor)
    }
}

/// What the backend answers, in memory that nobody else has.
fn own(
    inner: &dyn SimpleBackend,
    name: &str,
    hint: Option<(Shape, Init)>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let answer = match hint {
        Some((shape, init)) => inner.get(shape, name, init, dtype, device),
        None => inner.get_unchecked(name, dtype, device),
    };
    Ok(answer?.force_contiguous()?.detach())
}

fn is_under(name: &str, module: &str) -> bool {
    module.is_empty() || name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

const fn saturating(bytes: u128) -> u64 {
    if bytes > u64::MAX as u128 { u64::MAX } else { bytes as u64 }
}

fn bytes(tensor: &Tensor) -> u64 {
    saturating(tensor.elem_count() as u128 * tensor.dtype().size_in_bytes() as u128)
}

struct Backend(Arc<Shared>);

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.give(name, Some((shape, init)), dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.give(name, None, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.inner.contains_tensor(name)
    }
}
