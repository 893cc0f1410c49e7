//! The subscriber that a model is built under. Its spans keep it, so it hears of each enter for as long as the model lives.
//!
//! Whoever was listening before goes on listening: all is passed on.

use super::{follow::Follow, outline::Event};
use parking_lot::{Mutex, RwLock};
use std::sync::{Arc, OnceLock};
use tracing::{
    Dispatch, Metadata, Subscriber,
    callsite::Identifier,
    dispatcher,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::{Interest, NoSubscriber},
};

/// Hears of spans made while a model is built, and of their enters.
pub(super) struct Watch {
    /// Who listened before; `None`: nobody.
    outer: Option<Dispatch>,
    /// Per span, what it is called there; `None`: it is not wanted.
    outer_ids: RwLock<Vec<Option<Id>>>,
    heard: Mutex<Heard>,
    follow: OnceLock<Arc<Follow>>,
}

#[derive(Default)]
struct Heard {
    lines: Vec<Identifier>,
    events: Vec<Event>,
}

impl Watch {
    /// `passes_on`: to whoever listens on this thread now.
    pub(super) fn new(passes_on: bool) -> Arc<Self> {
        let outer = dispatcher::get_default(Clone::clone);
        let outer = (passes_on && !outer.is::<NoSubscriber>()).then_some(outer);
        Arc::new(Self { outer, outer_ids: RwLock::default(), heard: Mutex::default(), follow: OnceLock::new() })
    }

    /// Runs `f` under it.
    pub(super) fn hear<T>(self: &Arc<Self>, f: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&Dispatch::new(self.clone()), f)
    }

    /// A weight is asked for.
    pub(super) fn weight(&self, name: &str) {
        self.heard.lock().events.push(Event::Weight(name.to_owned()));
    }

    /// What was heard, in order.
    pub(super) fn events(&self) -> Vec<Event> {
        self.heard.lock().events.clone()
    }

    pub(super) fn follow(&self, follow: Arc<Follow>) {
        // Set once, by whoever built the model.
        let _ = self.follow.set(follow);
    }

    fn outer_id(&self, id: &Id) -> Option<(&Dispatch, Id)> {
        let index = usize::try_from(id.into_u64()).ok()?.checked_sub(1)?;
        Some((self.outer.as_ref()?, self.outer_ids.read().get(index)?.clone()?))
    }

    fn pass_on(&self, span: &Attributes<'_>) -> Option<Id> {
        let outer = self.outer.as_ref().filter(|outer| outer.enabled(span.metadata()))?;
        let parent = span.parent().and_then(|parent| self.outer_id(parent));
        Some(match parent {
            Some((_, parent)) => outer.new_span(&Attributes::child_of(parent, span.metadata(), span.values())),
            // Its parent is none of ours, so it is theirs.
            None => outer.new_span(span),
        })
    }
}

impl Subscriber for Watch {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let outer = self.outer.as_ref().map_or_else(Interest::never, |outer| outer.register_callsite(metadata));
        if metadata.is_span() || !outer.is_never() { Interest::sometimes() } else { outer }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() || self.outer.as_ref().is_some_and(|outer| outer.enabled(metadata))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let outer = self.pass_on(span);
        let line = span.metadata().callsite();
        let mut heard = self.heard.lock();
        let number = heard.lines.iter().position(|known| *known == line).unwrap_or(heard.lines.len());
        if number == heard.lines.len() {
            heard.lines.push(line);
        }
        heard.events.push(Event::Span(number));
        let mut ids = self.outer_ids.write();
        ids.push(outer);
        Id::from_u64(ids.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if let Some((outer, id)) = self.outer_id(span) {
            outer.record(&id, values);
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        if let (Some((outer, id)), Some((_, follows))) = (self.outer_id(span), self.outer_id(follows)) {
            outer.record_follows_from(&id, &follows);
        }
    }

    fn event(&self, event: &tracing::Event<'_>) {
        // Under a parent of ours it can't be passed on: nobody else can make an event of the same values.
        if let Some(outer) = self.outer.as_ref().filter(|_| event.parent().is_none()) {
            outer.event(event);
        }
    }

    fn enter(&self, span: &Id) {
        if let Some((outer, id)) = self.outer_id(span) {
            outer.enter(&id);
        }
        if let Some(follow) = self.follow.get() {
            follow.enter(span.into_u64());
        }
    }

    fn exit(&self, span: &Id) {
        if let Some(follow) = self.follow.get() {
            follow.exit(span.into_u64());
        }
        if let Some((outer, id)) = self.outer_id(span) {
            outer.exit(&id);
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some((outer, id)) = self.outer_id(id) {
            // It is counted there under the id that it has already.
            let _ = outer.clone_span(&id);
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        self.outer_id(&id).is_some_and(|(outer, id)| outer.try_close(id))
    }
}
