//! Spans that models enter in their forwards, as leases: an unmodified model streams by them.
//!
//! Many layers of candle-transformers enter a `tracing` span in `forward`. A model is built twice: first without weights, to hear
//! in which order it asks for them and makes its spans, which tells what belongs to what ([`outline`]); then with each
//! such module a group of its own. When it runs, entering a span opens its group ([`follow`]).
//!
//! Names and spans are no interface, so nothing rests on them but speed: a weight that is used outside its spans is refused by
//! the kernels, in the first pass where anything streams ([`gate`]). Then the component is whole from there on.

mod direction;
mod follow;
mod gate;
mod outline;
mod watch;

use crate::{
    Error,
    build::{Built, Link, build},
    home::Home,
    lora::layout::Base,
};
use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use follow::Follow;
pub(crate) use gate::Gate;
use mm_cache::Weights;
use mm_engine::{AnyDevice, EngineError, ModelManager, Slab, StrategyOverride};
use mm_plan::Strategy;
pub(crate) use outline::Outline;
use parking_lot::Mutex;
use std::{
    fmt::{self, Display, Formatter},
    sync::Arc,
};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use watch::Watch;

/// How much of a component streams by its spans.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpanCoverage {
    /// How many modules are groups, opened by their spans.
    pub groups: usize,
    /// Bytes of their weights on the device.
    pub covered: u64,
    /// Bytes of all weights on the device.
    pub total: u64,
    /// A whole pass, in which groups were in place inside their spans only, has gone well.
    pub verified: bool,
    /// Why it is on the device as a whole nevertheless.
    pub whole: Option<String>,
}

impl Display for SpanCoverage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.whole {
            return write!(f, "spans: on the device as a whole: {reason}");
        }
        let permille = (u128::from(self.covered) * 1000).checked_div(u128::from(self.total)).unwrap_or(0);
        let verified = if self.verified { "verified by a pass" } else { "not yet verified by a pass" };
        let (whole, tenths) = (permille / 10, permille % 10);
        write!(
            f,
            "spans: {} groups cover {whole}.{tenths} % of {} bytes; the rest stays; {verified}",
            self.groups, self.total
        )
    }
}

/// What hears a model being built, and what is to become of it.
#[derive(Clone)]
pub(crate) struct Survey {
    watch: Arc<Watch>,
    outline: Option<Arc<Outline>>,
}

impl Survey {
    /// A weight is asked for: the group that it belongs to.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.watch.weight(name);
        self.outline.as_ref()?.weights.get(name).copied()
    }

    /// The groups to build it in, where they are known.
    pub(crate) const fn outline(&self) -> Option<&Arc<Outline>> {
        self.outline.as_ref()
    }

    fn new(outline: Option<Arc<Outline>>) -> Self {
        // Others hear of the model that stays, not of the one that only tells how it is built.
        Self { watch: Watch::new(outline.is_some()), outline }
    }
}

/// The spans of a component.
pub(crate) struct Spans {
    /// `None`: nothing follows them.
    followed: Option<(Arc<Follow>, Arc<Gate>)>,
    link: Link,
    coverage: Mutex<SpanCoverage>,
    /// Once it turned out that its groups can't stream.
    whole: Mutex<Option<StrategyOverride<AnyDevice>>>,
}

/// As [`build`], with a group for each module that spans tell of.
pub(crate) fn build_with_spans<M>(
    name: &str,
    weights: &Arc<Weights>,
    dtype: DType,
    device: &Device,
    memory: Option<&Arc<AnyDevice>>,
    make: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> Result<(Built<M>, Spans)> {
    let survey = Survey::new(None);
    // Without weights: where it goes wrong, building with them tells why.
    let surveyed = survey.watch.hear(|| build(name, weights, dtype, device, None, Some(&survey), &make));
    let events = survey.watch.events();
    let reason = match surveyed {
        Err(error) => format!("it can't be built without its weights ({})", first_line(&error)),
        Ok(built) if !built.base.stacks.is_empty() => {
            "it holds its blocks in `Blocks`, and streams by these".to_owned()
        }
        Ok(_) => {
            let size = |name: &str| weights.get(name).map_or(0, |tensor| tensor.byte_len());
            let outline = Outline::new(&events, size);
            if !outline.paths.is_empty() {
                let survey = Survey::new(Some(Arc::new(outline)));
                let built = survey.watch.hear(|| build(name, weights, dtype, device, memory, Some(&survey), &make))?;
                if survey.watch.events() == events {
                    return Ok(followed(built, &survey));
                }
                "it is built in another way each time".to_owned()
            } else {
                absence(STATIC_MAX_LEVEL, outline.spans.len()).to_owned()
            }
        }
    };
    let built = build(name, weights, dtype, device, memory, None, &make)?;
    let covered = coverage(&built.base, Some(reason));
    let spans =
        Spans { followed: None, link: built.link.clone(), coverage: Mutex::new(covered), whole: Mutex::default() };
    Ok((built, spans))
}

fn followed<M>(mut built: Built<M>, survey: &Survey) -> (Built<M>, Spans) {
    let covered = coverage(&built.base, None);
    let gate = Gate::new(built.base.groups.len());
    built.base.gate = Some(gate.clone());
    let groups = survey.outline.as_ref().map_or_else(Vec::new, |outline| outline.spans.clone());
    let follow = Arc::new(Follow::new(groups, gate.clone(), built.link.clone()));
    survey.watch.follow(follow.clone());
    let spans = Spans {
        followed: Some((follow, gate)),
        link: built.link.clone(),
        coverage: Mutex::new(covered),
        whole: Mutex::default(),
    };
    (built, spans)
}

fn coverage(base: &Base, whole: Option<String>) -> SpanCoverage {
    let bytes = |slabs: &[(Slab, Arc<Home>)]| slabs.iter().map(|(slab, _)| slab.bytes()).fold(0, u64::saturating_add);
    let groups: Vec<u64> = base.groups.iter().map(|group| bytes(group)).collect();
    let covered = if whole.is_some() { 0 } else { groups.iter().copied().fold(0, u64::saturating_add) };
    let total = groups.iter().copied().fold(bytes(&base.rest), u64::saturating_add);
    let groups = if whole.is_some() { 0 } else { groups.len() };
    SpanCoverage { groups, covered, total, verified: false, whole }
}

/// Why no spans are followed, of so many that were made.
const fn absence(compiled_in: LevelFilter, made: usize) -> &'static str {
    if made > 0 {
        return "its spans are beside no blocks of a stack";
    }
    match compiled_in.into_level() {
        Some(tracing::Level::TRACE) => "it makes no spans while it is built",
        _ => {
            "this program was compiled without spans; take out tracing's feature max_level_* or release_max_level_*, \
             wherever in its dependencies it is"
        }
    }
}

fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Spans {
    pub(crate) fn coverage(&self) -> SpanCoverage {
        self.coverage.lock().clone()
    }

    /// Says what became of it where the component's notes are read.
    pub(crate) fn note(&self) {
        if let Some(module) = self.link.get() {
            module.set_note(self.coverage().to_string());
        }
    }

    /// A pass begins on this thread.
    pub(crate) fn pass(&self) -> std::result::Result<Option<Pass<'_>>, EngineError> {
        let Some((follow, gate)) = &self.followed else { return Ok(None) };
        // Where nothing streams there is nothing to refuse.
        let strict = self.link.get().is_some_and(|module| module.streams());
        gate.set_wide(!strict).map_err(EngineError::Internal)?;
        follow.begin();
        Ok(Some(Pass { spans: self, follow, strict, over: false }))
    }

    /// From now on it is on the device as a whole.
    fn give_up(&self, manager: &Arc<ModelManager<AnyDevice>>, name: &str, reason: &str) -> Error {
        let change = manager.use_components(&[name], Strategy::ModelOffload);
        self.coverage.lock().whole = Some(reason.to_owned());
        self.note();
        match change {
            Ok(guard) => {
                *self.whole.lock() = Some(guard);
                Error::Spans { name: name.to_owned(), reason: reason.to_owned() }
            }
            Err(error) => error.into(),
        }
    }
}

/// A pass of a component that streams by its spans.
pub(crate) struct Pass<'a> {
    spans: &'a Spans,
    follow: &'a Follow,
    strict: bool,
    over: bool,
}

impl Pass<'_> {
    /// It is over, with this answer.
    pub(crate) fn end<T>(
        mut self,
        answer: Result<T>,
        managed: Option<(&Arc<ModelManager<AnyDevice>>, &str)>,
    ) -> std::result::Result<T, Error> {
        self.over = true;
        let outcome = self.follow.end();
        let gives_up = match (&outcome.error, &answer) {
            (Some(EngineError::Misuse(_)), _) if outcome.crowded => Some(String::new()),
            (None, Err(error)) if self.strict && is_refusal(error) => Some(format!(" ({})", first_line(error))),
            _ => None,
        };
        if let Some((found, (manager, name))) = gives_up.zip(managed) {
            let reason = if outcome.crowded {
                "several threads are in its spans at once"
            } else {
                "a weight is used outside the span that it was built beside"
            };
            return Err(self.spans.give_up(manager, name, &format!("{reason}{found}")));
        }
        if let Some(error) = outcome.error {
            return Err(error.into());
        }
        if answer.is_ok() && self.strict && !self.spans.coverage().verified {
            self.spans.coverage.lock().verified = true;
            self.spans.note();
        }
        Ok(answer?)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.over {
            // A panic is on its way.
            let _ = self.follow.end();
        }
    }
}

/// Whether a kernel may have been given an evicted weight, which it knows by a dtype that no weight has. Not all say which one it was.
fn is_refusal(error: &candle_core::Error) -> bool {
    use candle_core::Error::{
        Context, DTypeMismatchBinaryOp, UnexpectedDType, UnsupportedDTypeForOp, WithBacktrace, WithPath,
    };
    const REFUSING: DType = DType::F8E8M0;
    match error {
        WithBacktrace { inner, .. } | Context { inner, .. } | WithPath { inner, .. } => is_refusal(inner),
        DTypeMismatchBinaryOp { lhs, rhs, .. } => [*lhs, *rhs].contains(&REFUSING),
        UnsupportedDTypeForOp(dtype, _) => *dtype == REFUSING,
        UnexpectedDType { expected, got, .. } => [*expected, *got].contains(&REFUSING),
        other => first_line(other).contains("dtype"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_by_what_was_compiled_in() {
        assert!(absence(LevelFilter::TRACE, 0).contains("makes no spans"));
        for less in [LevelFilter::DEBUG, LevelFilter::INFO, LevelFilter::OFF] {
            assert!(absence(less, 0).contains("release_max_level_"), "{less}");
        }
        assert!(absence(LevelFilter::TRACE, 3).contains("blocks of a stack"));
    }

    #[test]
    fn a_refusal_is_known_also_where_a_kernel_does_not_name_the_dtype() {
        use candle_core::Error as Candle;
        let mismatch = |lhs, rhs| Candle::DTypeMismatchBinaryOp { lhs, rhs, op: "matmul" }.bt();
        assert!(is_refusal(&mismatch(DType::F32, DType::F8E8M0)));
        assert!(!is_refusal(&mismatch(DType::F32, DType::F64)), "the caller's own mistake");
        assert!(is_refusal(&Candle::UnsupportedDTypeForOp(DType::F8E8M0, "exp").context("in a layer")));
        assert!(is_refusal(&Candle::Msg("unsupported dtype for rmsnorm F32".to_owned()).bt()));
        assert!(!is_refusal(&Candle::Msg("a file is missing".to_owned())));
    }
}
