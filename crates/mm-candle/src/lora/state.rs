//! Which LoRAs a loaded model has.

use super::{Lora, LoraError, Matched, Merge, file::Piece, layout::Base, matching::Index, merge::Term};
use crate::{Error, build::Target, plain};
use candle_core::{DType, Device, Result, Tensor};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{AnyBuffer, EngineError, ModuleSpec};
use std::path::Path;

/// What it takes to add LoRAs to a model and take them away again.
pub(crate) struct Adapted {
    /// Its weights, as they were handed out.
    targets: Vec<Target>,
    /// `None`: nobody manages it.
    base: Option<Base>,
    /// In the order in which they came.
    active: Vec<(Lora, f64)>,
}

/// How LoRAs are to be; what it is made of then is put in place before it is.
pub(crate) type Next = Vec<(Lora, f64)>;

impl Adapted {
    pub(crate) const fn new(targets: Vec<Target>, base: Option<Base>) -> Self {
        Self { targets, base, active: Vec::new() }
    }

    /// The files of those that are there, each with its scale.
    pub(crate) fn active(&self) -> Vec<(Lora, f64)> {
        self.active.clone()
    }

    /// With this one at this scale, whether or not it is there.
    pub(crate) fn with(&self, lora: &Lora, scale: f64) -> std::result::Result<(Next, Matched), Error> {
        if !scale.is_finite() {
            return Err(LoraError::Scale { file: lora.path(), scale }.into());
        }
        if self.targets.is_empty() {
            let text = "a model that was not loaded from files has no names that a LoRA could be for";
            return Err(EngineError::Misuse(text.to_owned()).into());
        }
        let index = Index::new(lora);
        let matched = index.outcome(self.targets.iter().map(|target| &*target.name))?;
        for target in &self.targets {
            let dtype = target.tensor.dtype();
            if !matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
                && let Some(name) = index.layer_for(&target.name)
            {
                let reason = match dtype {
                    // The bytes of a quantized one.
                    DType::U32 => {
                        "it is quantized, which a LoRA can't be added to; take a checkpoint in which it is not".into()
                    }
                    other => format!("it is computed with as {other:?}, which a LoRA can't be added to"),
                };
                return Err(LoraError::Shape { file: lora.path(), name, weight: target.name.clone(), reason }.into());
            }
            index.fitting(&target.name, target.tensor.dims())?;
        }
        let mut next = self.active.clone();
        match next.iter_mut().find(|(known, _)| known.file() == lora.file()) {
            Some(known) => *known = (lora.clone(), scale),
            None => next.push((lora.clone(), scale)),
        }
        Ok((next, matched))
    }

    /// Without it; `None`: it is not there.
    pub(crate) fn without(&self, file: &Path) -> Option<Next> {
        let left: Next = self.active.iter().filter(|(lora, _)| lora.file() != file).cloned().collect();
        (left.len() < self.active.len()).then_some(left)
    }

    /// What a managed component is made of then.
    pub(crate) fn spec(
        &self,
        device: &Device,
        next: &[(Lora, f64)],
    ) -> std::result::Result<Option<ModuleSpec<AnyBuffer>>, Error> {
        self.base.as_ref().map(|base| base.with(device, &self.targets, &effective(next))).transpose()
    }

    /// Changes the weights of a model that nobody manages: what had a LoRA or gets one is read anew. Where that fails they may be
    /// anything, until it has been done again.
    pub(crate) fn change(&self, weights: &Weights, next: &[(Lora, f64)]) -> std::result::Result<(), Error> {
        let (before, after) = (effective(&self.active), effective(next));
        let old: Vec<Index<'_>> = before.iter().map(|(lora, _)| Index::new(lora)).collect();
        let new: Vec<(Index<'_>, f64)> = after.iter().map(|(lora, scale)| (Index::new(lora), *scale)).collect();
        for Target { name, tensor, .. } in &self.targets {
            let mut terms = Vec::new();
            for (index, scale) in &new {
                for piece in index.fitting(name, tensor.dims())? {
                    terms.push(read_term(piece, *scale, tensor.device())?);
                }
            }
            if terms.is_empty() && old.iter().all(|index| index.of(name).is_empty()) {
                continue;
            }
            tensor.slice_set(&plain::read(weights, name, tensor.dtype(), tensor.device())?, 0, 0)?;
            if !terms.is_empty() {
                Merge::new(tensor, terms)?.run()?;
            }
        }
        Ok(())
    }

    /// This is how it is from now on.
    pub(crate) fn commit(&mut self, next: Next) {
        self.active = next;
    }
}

/// Those that add something.
fn effective(loras: &[(Lora, f64)]) -> Vec<(Lora, f64)> {
    loras.iter().filter(|(_, scale)| *scale != 0.0).cloned().collect()
}

/// What a piece adds, its factors read on their own.
pub(crate) fn read_term(piece: &Piece, scale: f64, device: &Device) -> Result<Term> {
    let factors = &piece.factors;
    let read = |source: &TensorSlice, rows: usize| -> Result<Tensor> {
        let tensor = plain::read_tensor(source, false)?;
        // As on a managed device: floats that candle doesn't compute with are f32.
        let dtype = match tensor.dtype() {
            kept @ (DType::F32 | DType::F16 | DType::BF16) => kept,
            _ => DType::F32,
        };
        tensor.to_dtype(dtype)?.to_device(device)?.reshape((rows, ()))
    };
    let up = read(&factors.up, factors.outputs())?.narrow(0, piece.from.start, piece.from.len())?;
    let down = read(&factors.down, factors.rank)?;
    Ok(Term { up, down, at: piece.at.unwrap_or(0), scale: scale * factors.scale })
}
