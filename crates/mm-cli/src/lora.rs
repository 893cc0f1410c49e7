//! LoRAs of a run.

use crate::args::LoraArg;
use crate::exit::{Failure, Stage};
use mm_candle::Lora;
use mm_diffusion::Pipeline;
use mm_plan::Note;
use serde::Serialize;

/// Names that are shown of those that a file has and the pipeline hasn't.
const SHOWN: usize = 3;

/// A LoRA that a run has.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Applied {
    file: String,
    scale: f64,
    /// How many weights of each component it changes.
    weights: std::collections::BTreeMap<&'static str, usize>,
    /// Layers of the file that the pipeline doesn't have.
    left: Vec<String>,
}

/// Opens them: what can't be read is refused before anything is loaded.
pub(crate) fn open(args: &[LoraArg]) -> Result<Vec<(Lora, f64)>, Failure> {
    let twice = args.iter().enumerate().find(|(at, arg)| args[..*at].iter().any(|other| other.file == arg.file));
    if let Some((_, arg)) = twice {
        return Err(Failure::usage("--lora", format!("{} is given twice; give one scale", arg.file.display())));
    }
    let open = |arg: &LoraArg| match Lora::open(&arg.file) {
        Ok(lora) => Ok((lora, arg.scale)),
        Err(error) => Err(Failure::Lora { file: arg.file.clone(), text: error.to_string() }),
    };
    args.iter().map(open).collect()
}

pub(crate) fn apply(loras: &[(Lora, f64)], pipeline: &Pipeline) -> Result<Vec<Applied>, Failure> {
    let apply = |(lora, scale): &(Lora, f64)| {
        let adapted = pipeline
            .apply_lora(lora, *scale)
            .map_err(|error| Failure::of_pipeline(error, Stage::Load).of_lora(lora))?;
        Ok(Applied {
            file: lora.file().to_string_lossy().into_owned(),
            scale: *scale,
            weights: adapted.components.into_iter().collect(),
            left: adapted.left,
        })
    };
    loras.iter().map(apply).collect()
}

/// What of their files was left out.
pub(crate) fn notes(applied: &[Applied]) -> Vec<Note> {
    let note = |lora: &Applied| {
        let (count, all) = (lora.left.len(), lora.weights.values().sum::<usize>());
        let names = lora.left.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = if count > SHOWN { ", ..." } else { "" };
        let text = format!(
            "{}: {count} of its layers are not in this pipeline and were left out ({names}{more}); {all} weights are changed.",
            lora.file
        );
        Note::new("lora_left", &[("left", count as u64), ("weights", all as u64)], text)
    };
    applied.iter().filter(|lora| !lora.left.is_empty()).map(note).collect()
}
