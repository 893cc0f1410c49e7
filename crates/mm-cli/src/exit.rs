//! What can go wrong, and what the program answers then: an exit code, a sentence, a JSON document.

use crate::size::show;
use crate::table::print;
use mm_candle::Error as CandleError;
use mm_engine::EngineError;
use mm_plan::Infeasible;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

pub(crate) const BAD_USAGE: u8 = 2;
pub(crate) const INFEASIBLE: u8 = 3;
pub(crate) const BAD_INPUT: u8 = 4;
pub(crate) const DEVICE: u8 = 5;

/// Why a command failed; variants by what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Change the command line.
    #[error("{flag}: {reason}")]
    Usage { flag: String, reason: String },
    /// Write somewhere else.
    #[error("{} cannot be written: {source}", path.display())]
    Output { path: PathBuf, source: io::Error },
    /// No placement fits.
    #[error("{}", infeasible(.0))]
    Infeasible(Infeasible),
    /// The plan given is not for this.
    #[error("the plan in {} is refused: {reason}; `mm plan --device cpu` makes plans for such a run", file.display())]
    PlanRefused { file: PathBuf, reason: String },
    /// Correct the spec.
    #[error("bad spec: {text}")]
    Spec { line: Option<usize>, text: String },
    /// Give another file, or make it again.
    #[error("{}: {reason}", file.display())]
    File { code: &'static str, file: PathBuf, reason: String },
    /// Give another LoRA.
    #[error("{text}")]
    Lora { file: PathBuf, text: String },
    /// Give another checkpoint, or fetch it again.
    #[error("{0}")]
    Checkpoint(String),
    /// A device is missing or failed.
    #[error("{text}")]
    Device { code: &'static str, text: String },
}

impl Failure {
    pub(crate) fn usage(flag: &str, reason: impl Into<String>) -> Self {
        Self::Usage { flag: flag.to_owned(), reason: reason.into() }
    }

    /// The program's exit code.
    pub(crate) const fn exit(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Output { .. } => BAD_USAGE,
            Self::Infeasible(Infeasible::BadInput { .. })
            | Self::Spec { .. }
            | Self::File { .. }
            | Self::Lora { .. }
            | Self::Checkpoint(_) => BAD_INPUT,
            Self::Infeasible(_) | Self::PlanRefused { .. } => INFEASIBLE,
            Self::Device { .. } => DEVICE,
        }
    }

    /// Stable name of the kind of failure.
    const fn code(&self) -> &'static str {
        match self {
            Self::Usage { .. } => "bad_usage",
            Self::Output { .. } => "unwritable",
            Self::Infeasible(infeasible) => infeasible.code(),
            Self::PlanRefused { .. } => "plan_refused",
            Self::Spec { .. } => "bad_spec",
            Self::File { code, .. } | Self::Device { code, .. } => code,
            Self::Lora { .. } => "bad_lora",
            Self::Checkpoint(_) => "bad_checkpoint",
        }
    }

    /// The JSON answer.
    pub(crate) fn document(&self) -> Value {
        let mut error = json!({"code": self.code(), "text": self.to_string()});
        match self {
            Self::Infeasible(
                Infeasible::NeverFits { component, need, have, smallest }
                | Infeasible::NotNow { component, need, have, smallest },
            ) => {
                error["component"] = json!(component);
                error["need"] = json!(need);
                error["have"] = json!(have);
                error["smallest"] = json!(smallest);
            }
            Self::Usage { flag, .. } => error["flag"] = json!(flag),
            Self::Spec { line: Some(line), .. } => error["line"] = json!(line),
            Self::Output { path: file, .. }
            | Self::PlanRefused { file, .. }
            | Self::File { file, .. }
            | Self::Lora { file, .. } => {
                error["file"] = json!(file.to_string_lossy());
            }
            _ => {}
        }
        json!({"schema": 1, "error": error})
    }

    /// Tells it: a sentence on standard error and, where JSON was asked for, a document on standard output.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        say(format_args!("{self}"));
        if json && let Err(error) = print(self.document()) {
            say(format_args!("{error}"));
        }
        ExitCode::from(self.exit())
    }
}

/// A line on standard error. Where that is closed nobody is told.
pub(crate) fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "mm: {text}");
}

/// What is missing, and the flag that would do.
fn infeasible(infeasible: &Infeasible) -> String {
    let (component, need, have, smallest, never) = match infeasible {
        Infeasible::NeverFits { component, need, have, smallest } => (component, need, have, smallest, true),
        Infeasible::NotNow { component, need, have, smallest } => (component, need, have, smallest, false),
        other => return other.to_string(),
    };
    let have = match never {
        true => format!("there are {have} ({}) in all", show(*have)),
        false => format!("{have} ({}) are free now; free some, or choose a strategy that streams", show(*have)),
    };
    format!(
        "no plan fits: `{component}` needs {need} bytes ({}) on the device at the least, {have}; the smallest budget \
         that works is {smallest} bytes ({}) under this strategy: --vram {smallest}",
        show(*need),
        show(*smallest)
    )
}

impl From<Infeasible> for Failure {
    fn from(infeasible: Infeasible) -> Self {
        Self::Infeasible(infeasible)
    }
}

impl From<mm_probe::InspectError> for Failure {
    fn from(error: mm_probe::InspectError) -> Self {
        Self::Checkpoint(error.to_string())
    }
}

impl From<mm_cache::WeightsError> for Failure {
    fn from(error: mm_cache::WeightsError) -> Self {
        Self::Checkpoint(error.to_string())
    }
}

impl From<mm_cache::ContentError> for Failure {
    fn from(error: mm_cache::ContentError) -> Self {
        let (file, reason) = match error {
            mm_cache::ContentError::Io { path, source } => (path, format!("cannot be read: {source}")),
            mm_cache::ContentError::NotAFile { path } => (path, "is not a regular file and has no content id".into()),
            other => return Self::Checkpoint(other.to_string()),
        };
        Self::File { code: "unreadable", file, reason }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = match error {
            EngineError::Infeasible(infeasible) => return Self::Infeasible(infeasible),
            EngineError::Source { .. } => return Self::Checkpoint(error.to_string()),
            EngineError::OverBudget { .. } => "over_budget",
            EngineError::DeviceLost { .. } => "device_lost",
            EngineError::Internal(_) => "internal",
            _ => "device_error",
        };
        Self::Device { code, text: error.to_string() }
    }
}

/// What a pipeline was doing when it failed. A model that can't be built is the checkpoint's fault, one that fails in
/// a pass is the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Load,
    Run,
}

impl Failure {
    /// A manager's error.
    pub(crate) fn of_engine(error: CandleError) -> Self {
        match error {
            CandleError::Engine(engine) => engine.into(),
            CandleError::Weights(weights) => Self::Checkpoint(weights.to_string()),
            other => Self::Device { code: "compute", text: other.to_string() },
        }
    }

    /// What a pipeline can't be changed by is the file's fault.
    pub(crate) fn of_lora(self, lora: &mm_candle::Lora) -> Self {
        match self {
            Self::Checkpoint(text) => Self::Lora { file: lora.file().to_owned(), text },
            other => other,
        }
    }

    /// A pipeline's error; requests name their flag.
    pub(crate) fn of_pipeline(error: mm_diffusion::Error, stage: Stage) -> Self {
        use mm_diffusion::Error;
        let text = error.to_string();
        match error {
            Error::Request { field, found, reason } => {
                let flag = if field == "initial_latents" { "latents" } else { field };
                Self::usage(&format!("--{flag}"), format!("{found}: {reason}"))
            }
            Error::Save { file, reason } => Self::Output { path: file, source: io::Error::other(reason) },
            Error::Component { source: CandleError::Engine(engine), .. } => engine.into(),
            Error::Component { source: CandleError::Weights(_), .. } => Self::Checkpoint(text),
            Error::Component { .. } | Error::Compute(_) if stage == Stage::Run => {
                Self::Device { code: "compute", text }
            }
            _ => Self::Checkpoint(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infeasible_budget_names_the_flag_that_works() {
        let failure = Failure::from(Infeasible::NeverFits {
            component: "transformer".into(),
            need: 3 << 30,
            have: 2 << 30,
            smallest: 5 << 30,
        });
        assert_eq!(failure.exit(), INFEASIBLE);
        let text = failure.to_string();
        assert!(text.contains("`transformer` needs 3221225472 bytes (3.00 GiB)"), "{text}");
        assert!(text.ends_with("--vram 5368709120"), "{text}");
        let error = &failure.document()["error"];
        assert_eq!(
            (&error["code"], &error["have"], &error["smallest"]),
            (&json!("never_fits"), &json!(2u64 << 30), &json!(5u64 << 30))
        );
    }

    #[test]
    fn engine_errors_have_the_code_of_their_remedy() {
        let mismatch = EngineError::Misuse("m".into());
        assert_eq!(Failure::from(mismatch).exit(), DEVICE);
        let source = EngineError::Source { file: "f".into(), tensor: "t".into(), range: 0..1, reason: "r".into() };
        assert_eq!(Failure::from(source).exit(), BAD_INPUT);
        let bad = EngineError::Infeasible(Infeasible::BadInput { text: "b".into() });
        assert_eq!(Failure::from(bad).exit(), BAD_INPUT);
    }
}
