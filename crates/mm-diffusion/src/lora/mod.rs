//! LoRA for pipelines: which layers of a file are which component's, and under which names.

mod fused;

pub(crate) use fused::{FLUX, Row, SD3};

use crate::{Error, Flux, Pipeline, Sd3, StableDiffusion, Wuerstchen, ZImage, part::in_component};
use mm_candle::{Component, Error as CandleError, Lora, LoraError, Matched};
use std::path::{Path, PathBuf};

/// What became of a LoRA's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adapted {
    /// Components that it changes, each with how many of its weights.
    pub components: Vec<(&'static str, usize)>,
    /// Layers of the file that none of them has, as the file calls them.
    pub left: Vec<String>,
}

/// A component that LoRAs may be for.
pub(crate) struct Member<'a> {
    pub(crate) name: &'static str,
    /// What its layers begin with in a file; empty: it gets what is nobody else's.
    pub(crate) prefixes: &'static [&'static str],
    /// Other names of its layers.
    pub(crate) rows: &'static [Row],
    pub(crate) component: &'a dyn Adapt,
}

/// Of files' names for a first, second and third text encoder.
pub(crate) const FIRST: &[&str] = &["text_encoder.", "lora_te_", "lora_te1_"];
pub(crate) const SECOND: &[&str] = &["text_encoder_2.", "lora_te2_"];
pub(crate) const THIRD: &[&str] = &["text_encoder_3.", "lora_te3_"];
/// Of FLUX.1's T5, which is the second, but the third in kohya's names.
pub(crate) const SECOND_OR_THIRD: &[&str] = &["text_encoder_2.", "lora_te2_", "lora_te3_"];

/// A component of whatever model.
pub(crate) trait Adapt {
    fn matches(&self, lora: &Lora) -> Result<Matched, CandleError>;
    fn apply(&self, lora: &Lora, scale: f64) -> Result<Matched, CandleError>;
    fn remove(&self, file: &Path) -> Result<bool, CandleError>;
    fn loras(&self) -> Vec<(PathBuf, f64)>;
}

impl<M: Send> Adapt for Component<M> {
    fn matches(&self, lora: &Lora) -> Result<Matched, CandleError> {
        self.match_lora(lora)
    }

    fn apply(&self, lora: &Lora, scale: f64) -> Result<Matched, CandleError> {
        self.apply_lora(lora, scale)
    }

    fn remove(&self, file: &Path) -> Result<bool, CandleError> {
        self.remove_lora(file)
    }

    fn loras(&self) -> Vec<(PathBuf, f64)> {
        Self::loras(self)
    }
}

/// Adds it to all components that it is for, or to none.
fn apply(members: &[Member<'_>], lora: &Lora, scale: f64) -> Result<Adapted, Error> {
    let mut adapted = Adapted::default();
    let (mut found, mut refused) = (Vec::new(), None);
    for member in members {
        let owner = |layer: &str| members.iter().find(|m| m.prefixes.iter().any(|p| layer.starts_with(p)));
        let part = lora.only(|layer| match owner(layer) {
            Some(owner) => owner.name == member.name,
            None => member.prefixes.is_empty(),
        });
        if part.layers().is_empty() {
            continue;
        }
        match best(member, &part) {
            Ok((part, matched)) => {
                adapted.components.push((member.name, matched.weights));
                adapted.left.extend(matched.left);
                found.push((member, part));
            }
            Err(error @ CandleError::Lora(LoraError::NoMatch { .. })) => {
                adapted.left.extend(part.layers().into_iter().map(str::to_owned));
                refused.get_or_insert((member.name, error));
            }
            Err(error) => return Err(in_component(member.name)(error)),
        }
    }
    if found.is_empty() {
        return Err(match refused {
            Some((name, error)) => in_component(name)(error),
            None => {
                let reason = "its layers are of components that this pipeline doesn't have".to_owned();
                let file = lora.file().to_owned();
                in_component("pipeline")(LoraError::NoLora { file, reason }.into())
            }
        });
    }
    let before: Vec<Option<f64>> = (found.iter())
        .map(|(m, _)| m.component.loras().into_iter().find(|(file, _)| file == lora.file()).map(|(_, scale)| scale))
        .collect();
    for (at, (member, part)) in found.iter().enumerate() {
        if let Err(error) = member.component.apply(part, scale) {
            for ((member, part), before) in found.iter().zip(&before).take(at) {
                // The first error is the one to report.
                let _ = match before {
                    Some(scale) => member.component.apply(part, *scale).map(drop),
                    None => member.component.remove(lora.file()).map(drop),
                };
            }
            return Err(in_component(member.name)(error));
        }
    }
    Ok(adapted)
}

/// Under the names that most of its layers are found by.
fn best(member: &Member<'_>, lora: &Lora) -> Result<(Lora, Matched), CandleError> {
    let mut all = vec![lora.clone()];
    if !member.rows.is_empty() {
        all.push(lora.split(|layer, outputs, inputs| fused::to_diffusers(member.rows, layer, outputs, inputs)));
        all.push(lora.split(|layer, outputs, inputs| fused::to_original(member.rows, layer, outputs, inputs)));
    }
    let mut outcome: Option<Result<(Lora, Matched), CandleError>> = None;
    for lora in all {
        let next = member.component.matches(&lora).map(|matched| (lora, matched));
        let is_better = match (&outcome, &next) {
            (None, _) | (Some(Err(_)), Ok(_)) => true,
            (Some(Ok((_, before))), Ok((_, now))) => now.weights > before.weights,
            // That sizes differ says more than that names do.
            (Some(Err(CandleError::Lora(LoraError::NoMatch { .. }))), Err(now)) => {
                !matches!(now, CandleError::Lora(LoraError::NoMatch { .. }))
            }
            _ => false,
        };
        if is_better {
            outcome = Some(next);
        }
    }
    // There is at least one.
    outcome.unwrap_or_else(|| member.component.matches(lora).map(|matched| (lora.clone(), matched)))
}

fn remove(members: &[Member<'_>], file: &Path) -> Result<bool, Error> {
    let mut there = false;
    for member in members {
        there |= member.component.remove(file).map_err(in_component(member.name))?;
    }
    Ok(there)
}

macro_rules! adapts {
    ($($pipeline:ty),*) => {$(
        impl $pipeline {
            /// Adds a LoRA to the components that it is for, at this scale, or changes the scale of one that is there; see
            /// [`Component::apply_lora`]. It may be in any of the names that the models' makers, diffusers, PEFT and kohya write.
            ///
            /// # Errors
            /// `Component`: it is for another model, or its sizes are. Then nothing changed.
            pub fn apply_lora(&self, lora: &Lora, scale: f64) -> Result<Adapted, Error> {
                apply(&self.members(), lora, scale)
            }

            /// Takes the LoRA of this file away; `false`: it is not there. See [`Component::remove_lora`].
            ///
            /// # Errors
            /// `Component`: weights can't be read.
            pub fn remove_lora(&self, file: impl AsRef<Path>) -> Result<bool, Error> {
                remove(&self.members(), file.as_ref())
            }
        }
    )*};
}

adapts!(ZImage, Flux, Sd3, StableDiffusion, Wuerstchen, Pipeline);
