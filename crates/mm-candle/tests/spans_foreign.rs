//! Somebody else's subscriber goes on as before, and hears of a managed model's spans like of any other's.

mod common;

use candle_core::{DType, Result, Tensor};
use common::{
    bits, manager, spec,
    tower::{self, LAYER, LAYERS, REST, Tower, input},
};
use mm_candle::{LoadSpec, load_unmanaged};
use mm_plan::Strategy;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tracing::{
    Level, Metadata, Subscriber, dispatcher,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// What a subscriber heard, in order: `new`, `enter`, `exit`, `close` with a span's name, and events.
#[derive(Clone)]
struct Ears {
    most: LevelFilter,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    log: Vec<String>,
    names: HashMap<u64, (&'static str, usize)>,
}

impl Ears {
    fn new(most: LevelFilter) -> Self {
        Self { most, heard: Arc::default() }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap().log)
    }

    fn hear(&self, what: &str, id: &Id) {
        let mut heard = self.heard.lock().unwrap();
        // An id that it never gave would be none of its own.
        let (name, _) = heard.names[&id.into_u64()];
        heard.log.push(format!("{what} {name}"));
    }
}

impl Subscriber for Ears {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut heard = self.heard.lock().unwrap();
        // Numbers of its own.
        let id = 1000 + 7 * heard.names.len() as u64;
        heard.names.insert(id, (span.metadata().name(), 1));
        heard.log.push(format!("new {}", span.metadata().name()));
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.heard.lock().unwrap().log.push(format!("event {}", event.metadata().level()));
    }

    fn enter(&self, id: &Id) {
        self.hear("enter", id);
    }

    fn exit(&self, id: &Id) {
        self.hear("exit", id);
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some((_, count)) = self.heard.lock().unwrap().names.get_mut(&id.into_u64()) {
            *count += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut heard = self.heard.lock().unwrap();
        let (name, count) = heard.names.get_mut(&id.into_u64()).unwrap();
        *count -= 1;
        let (name, is_last) = (*name, *count == 0);
        if is_last {
            heard.log.push(format!("close {name}"));
        }
        is_last
    }
}

fn build(vb: candle_nn::VarBuilder<'_>) -> Result<Tower> {
    tracing::info!("a tower is built");
    let _building = tracing::info_span!("building").entered();
    Tower::new(vb)
}

fn forward(tower: &Tower) -> Result<Tensor> {
    tracing::info!("a tower is run");
    let clone = tracing::Span::current();
    drop(clone);
    tower.forward(&input(), &[0, 1, 2, 3, 4, 5])
}

/// What a subscriber hears of a tower, without and with a manager.
fn compare(most: LevelFilter) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tower.safetensors");
    tower::checkpoint(&file);
    let spec = LoadSpec { spans: true, ..spec("tower", &file, DType::F32) };
    let ears = Ears::new(most);
    tracing::subscriber::with_default(ears.clone(), || {
        let plain = load_unmanaged(&spec, build).unwrap();
        let expected = bits(&plain.run(|t| forward(t)).unwrap());
        drop(plain);
        let without = ears.take();
        let manager = manager(REST + 2 * LAYER, Strategy::GroupOffload);
        let tower = manager.load(&spec, build).unwrap();
        assert!(tower.spans().unwrap().whole.is_none());
        assert_eq!(bits(&tower.run(|t| forward(t)).unwrap()), expected);
        drop(tower);
        assert_eq!(ears.take(), without);
        let spans = without.iter().filter(|heard| *heard == "enter layer").count();
        assert_eq!(spans, if most == LevelFilter::TRACE { LAYERS } else { 0 });
        assert!(most < LevelFilter::INFO || without.contains(&"event INFO".to_owned()));
    });
}

#[test]
fn who_listens_on_a_thread_hears_the_same_with_and_without_a_manager() {
    for most in [LevelFilter::TRACE, LevelFilter::INFO, LevelFilter::OFF] {
        compare(most);
    }
}

#[test]
fn who_listens_everywhere_hears_of_models_run_anywhere() {
    let ears = Ears::new(LevelFilter::TRACE);
    dispatcher::set_global_default(tracing::Dispatch::new(ears.clone())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tower.safetensors");
    tower::checkpoint(&file);
    let spec = LoadSpec { spans: true, ..spec("tower", &file, DType::F32) };
    let manager = manager(REST + 2 * LAYER, Strategy::GroupOffload);
    let tower = manager.load(&spec, build).unwrap();
    let count = |heard: &[String], what: &str| heard.iter().filter(|heard| *heard == what).count();
    let built = ears.take();
    assert_eq!((count(&built, "new layer"), count(&built, "new building")), (LAYERS, 1));
    std::thread::scope(|s| {
        s.spawn(|| tower.run(|t| forward(t)).unwrap());
    });
    let run = ears.take();
    assert_eq!((count(&run, "enter layer"), count(&run, "exit layer"), count(&run, "event INFO")), (LAYERS, LAYERS, 1));
    // Others' spans, made and entered while a model is managed.
    let own = tracing::span!(Level::DEBUG, "own").entered();
    drop(own);
    assert_eq!(ears.take(), ["new own", "enter own", "exit own", "close own"]);
}
