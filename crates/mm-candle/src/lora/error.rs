//! What can be wrong with a LoRA, split by remedy.

use std::path::PathBuf;

/// Why a LoRA could not be read or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// The file can't be read: check the path, or fetch it again.
    #[error(transparent)]
    Weights(#[from] mm_cache::WeightsError),
    /// It is another kind of file: give a LoRA in the names of kohya, PEFT or diffusers.
    #[error("{}: holds no LoRA: {reason}", file.display())]
    NoLora {
        /// The file.
        file: PathBuf,
        /// What it holds.
        reason: String,
    },
    /// It is a kind of adapter that is not supported: convert it to a plain LoRA, or merge it into the checkpoint.
    #[error("{}: tensor {tensor:?} is of a kind of adapter that is not supported: {kind}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// A tensor that tells.
        tensor: String,
        /// Its kind.
        kind: &'static str,
    },
    /// A tensor, or what is said about it, makes no sense: the file is damaged.
    #[error("{}: {name:?}: {reason}", file.display())]
    Broken {
        /// The file.
        file: PathBuf,
        /// The tensor, or the layer that it is for.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It was made for a model of other sizes: give one for this checkpoint.
    #[error("{}: {name:?} does not fit the weight {weight:?}: {reason}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// Its name of the layer.
        name: String,
        /// The weight.
        weight: String,
        /// Where it differs.
        reason: String,
    },
    /// None of its layers is one of the model's: it is for another model.
    #[error("{}: none of its {} is in this model; {}", file.display(), layers(*count), likes(near))]
    NoMatch {
        /// The file.
        file: PathBuf,
        /// How many layers it has.
        count: usize,
        /// Some of its names, each with the most similar name of the model's, if it has any.
        near: Vec<(String, Option<String>)>,
    },
    /// A name of its can't be told apart: rename it in the file.
    #[error("{}: {name:?} is ambiguous: {reason}", file.display())]
    Ambiguous {
        /// The file.
        file: PathBuf,
        /// Its name of the layer.
        name: String,
        /// What it may be.
        reason: String,
    },
    /// A scale that is no number: give another.
    #[error("{}: {scale} is no scale for a LoRA; give a finite number", file.display())]
    Scale {
        /// The file.
        file: PathBuf,
        /// The scale.
        scale: f64,
    },
}

fn layers(count: usize) -> String {
    if count == 1 { "1 layer".to_owned() } else { format!("{count} layers") }
}

fn likes(near: &[(String, Option<String>)]) -> String {
    let one = |(name, most): &(String, Option<String>)| match most {
        Some(most) => format!("{name:?} is most like its {most:?}"),
        None => format!("{name:?} is like nothing there"),
    };
    near.iter().map(one).collect::<Vec<_>>().join(", ")
}
