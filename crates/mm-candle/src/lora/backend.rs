//! LoRA in a loader of one's own.

use super::{Lora, LoraError, Matched, Merge, matching::Index, state::read_term};
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, var_builder::SimpleBackend};
use std::{collections::BTreeSet, sync::Mutex};

/// A `VarBuilder` backend that adds LoRAs to the weights of another one, for a model that nobody manages. What it adds is to the bit what
/// [`Component::apply_lora`](crate::Component::apply_lora) adds; to change it, build the model again.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Module, VarBuilder, linear_no_bias};
/// use mm_candle::{Lora, LoraBackend};
/// use std::collections::HashMap;
///
/// # let file = std::env::temp_dir().join(format!("mm-candle-lora-doc-{}.safetensors", std::process::id()));
/// let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
/// let factors = [("proj.lora_A.weight", ones(&[1, 3])), ("proj.lora_B.weight", ones(&[2, 1]))];
/// candle_core::safetensors::save(&HashMap::from(factors), &file)?;
///
/// let weights = HashMap::from([("proj.weight".to_owned(), ones(&[2, 3]))]);
/// let backend = LoraBackend::new(Box::new(weights), [(Lora::open(&file)?, 0.5)]);
/// let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu);
/// let proj = linear_no_bias(3, 2, vb.pp("proj"))?;
/// assert_eq!(proj.forward(&ones(&[1, 3]))?.to_vec2::<f32>()?, [[4.5, 4.5]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LoraBackend<'a> {
    inner: Box<dyn SimpleBackend + 'a>,
    loras: Vec<(Lora, f64)>,
    asked: Mutex<BTreeSet<String>>,
}

impl<'a> LoraBackend<'a> {
    /// `inner`'s weights, and these LoRAs, each with its scale.
    pub fn new(inner: Box<dyn SimpleBackend + 'a>, loras: impl IntoIterator<Item = (Lora, f64)>) -> Self {
        Self { inner, loras: loras.into_iter().collect(), asked: Mutex::default() }
    }

    /// What became of each LoRA, once the model is built.
    ///
    /// # Errors
    /// `NoMatch`: the model asked for none of the weights that one is for. `Ambiguous`.
    pub fn matched(&self) -> std::result::Result<Vec<Matched>, LoraError> {
        // Nothing panics while the lock is held.
        let asked = self.asked.lock().map(|asked| asked.clone()).unwrap_or_default();
        self.loras.iter().map(|(lora, _)| Index::new(lora).outcome(asked.iter().map(String::as_str))).collect()
    }

    fn merged(&self, name: &str, weight: Tensor) -> Result<Tensor> {
        if let Ok(mut asked) = self.asked.lock() {
            asked.insert(name.to_owned());
        }
        let mut terms = Vec::new();
        for (lora, scale) in self.loras.iter().filter(|(_, scale)| *scale != 0.0) {
            if !scale.is_finite() {
                return Err(Error::wrap(LoraError::Scale { file: lora.path(), scale: *scale }));
            }
            for piece in Index::new(lora).fitting(name, weight.dims()).map_err(Error::wrap)? {
                terms.push(read_term(piece, *scale, weight.device())?);
            }
        }
        if terms.is_empty() {
            return Ok(weight);
        }
        // What the other backend has stays as it is.
        let own = weight.force_contiguous()?;
        Merge::new(&own, terms)?.run()?;
        Ok(own)
    }
}

impl SimpleBackend for LoraBackend<'_> {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.merged(name, self.inner.get(shape, name, init, dtype, device)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.merged(name, self.inner.get_unchecked(name, dtype, device)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.inner.contains_tensor(name)
    }
}
