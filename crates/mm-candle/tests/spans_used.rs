//! However spans are entered, outputs are right or there is an error that says what to do.

mod common;

use candle_core::{DType, Error as CandleError, Result, Tensor};
use common::{
    Net, bits, manager, spec,
    tower::{self, LAYER, LAYERS, REST, Tower, input},
};
use mm_candle::{Component, Error, LoadSpec, Manager, describe, load_unmanaged};
use mm_engine::EngineError;
use mm_plan::Strategy;
use std::{path::Path, thread};

fn by_spans(file: &Path) -> LoadSpec {
    LoadSpec { spans: true, ..spec("tower", file, DType::F32) }
}

/// The tower by itself, and under a manager with room for so many of its layers.
struct Case {
    _folder: tempfile::TempDir,
    plain: Component<Tower>,
    manager: Manager,
    tower: Component<Tower>,
}

impl Case {
    fn new(layers: u64, strategy: Strategy) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tower.safetensors");
        tower::checkpoint(&file);
        let manager = manager(REST + layers * LAYER, strategy);
        let tower = manager.load(&by_spans(&file), Tower::new).unwrap();
        Self { plain: load_unmanaged(&by_spans(&file), Tower::new).unwrap(), _folder: folder, manager, tower }
    }

    /// Twice, as it is without a manager.
    fn is_right(&self, f: impl Fn(&Tower) -> Result<Tensor>) {
        let expected = bits(&self.plain.run(|t| f(t)).unwrap());
        for _ in 0..2 {
            assert_eq!(bits(&self.tower.run(|t| f(t)).unwrap()), expected);
        }
        assert!(self.manager.memory().peak <= self.manager.memory().budget);
    }
}

#[test]
fn any_order_is_right_and_other_than_last_time_as_well() {
    for layers in [1, 2, 3, 5] {
        let case = Case::new(layers, Strategy::GroupOffload);
        for order in [&[0, 1, 2, 3, 4, 5][..], &[5, 4, 3, 2, 1, 0], &[2, 2, 0, 2], &[], &[3], &[0, 5, 1, 4, 0, 5]] {
            case.is_right(|t| t.forward(&input(), order));
        }
    }
}

#[test]
fn a_span_inside_another_leaves_that_ones_weights_when_it_ends() {
    for layers in [1, 2, 3] {
        let case = Case::new(layers, Strategy::GroupOffload);
        case.is_right(|t| t.layers[0].around(&input(), || t.layers[1].forward(&input()).map(drop)));
        // Entered again inside itself, and inside another inside itself.
        case.is_right(|t| t.layers[2].around(&input(), || t.layers[2].forward(&input()).map(drop)));
        case.is_right(|t| {
            t.layers[3]
                .around(&input(), || t.layers[4].around(&input(), || t.layers[3].forward(&input()).map(drop)).map(drop))
        });
    }
}

#[test]
fn spans_entered_on_other_threads_one_after_another_are_right() {
    let case = Case::new(2, Strategy::GroupOffload);
    case.is_right(|t| {
        (0..LAYERS).try_fold(input(), |x, i| thread::scope(|s| s.spawn(|| t.layers[i].forward(&x)).join().unwrap()))
    });
}

#[test]
fn threads_in_spans_at_once_are_right_or_told_and_then_right() {
    let both = |t: &Tower| {
        let half = |layers: &'static [usize]| layers.iter().try_fold(input(), |x, i| t.layers[*i].forward(&x));
        thread::scope(|s| {
            let other = s.spawn(|| half(&[0, 1, 2]));
            let mine = half(&[3, 4, 5]);
            mine? + other.join().unwrap()?
        })
    };
    for layers in [1, 2, 4, LAYERS as u64] {
        let case = Case::new(layers, Strategy::GroupOffload);
        let expected = bits(&case.plain.run(|t| both(t)).unwrap());
        for _ in 0..50 {
            match case.tower.run(|t| both(t)) {
                Ok(y) => assert_eq!(bits(&y), expected, "{layers}"),
                Err(Error::Spans { reason, .. }) => assert!(reason.contains("threads"), "{reason}"),
                // As a whole it has no room.
                Err(Error::Engine(EngineError::Infeasible(_))) if layers < LAYERS as u64 => break,
                Err(other) => panic!("{layers}: {other}"),
            }
        }
        if layers == LAYERS as u64 {
            case.is_right(both);
        }
    }
}

#[test]
fn a_weight_used_outside_its_span_is_refused_once_and_then_the_component_is_whole() {
    let wrong = |t: &Tower| t.layers[1].outside(&t.forward(&input(), &[0, 1, 2])?);
    let case = Case::new(LAYERS as u64, Strategy::GroupOffload);
    let expected = bits(&case.plain.run(|t| wrong(t)).unwrap());
    let refused = case.tower.run(|t| wrong(t));
    let Err(Error::Spans { name, reason }) = refused else { panic!("{:?}", refused.map(|y| bits(&y))) };
    assert!(name == "tower" && reason.contains("outside the span"), "{reason}");
    let told = case.tower.spans().unwrap();
    assert!(told.whole.is_some() && !told.verified);
    let notes = || case.manager.get_component("tower").unwrap().stats().notes;
    assert!(notes()[0].contains("as a whole"), "{:?}", notes());
    case.is_right(wrong);
    assert_eq!(bits(&case.tower.run(|t| wrong(t)).unwrap()), expected);

    // Who can start over is not even told.
    let case = Case::new(LAYERS as u64, Strategy::GroupOffload);
    assert_eq!(bits(&case.tower.run_again(|t| wrong(t)).unwrap()), expected);

    // Where there is no room for the whole that is the error.
    let case = Case::new(2, Strategy::GroupOffload);
    assert!(matches!(case.tower.run(|t| wrong(t)), Err(Error::Spans { .. })));
    assert!(matches!(case.tower.run(|t| wrong(t)), Err(Error::Engine(EngineError::Infeasible(_)))));
}

#[test]
fn a_layer_that_stays_on_the_device_is_refused_like_one_that_streams() {
    // So that a wrong guess shows in the first pass, and not in the one after a plan has changed.
    let case = Case::new(4, Strategy::BlockPin);
    case.is_right(|t| t.forward(&input(), &[0, 1, 2, 3, 4, 5]));
    let resident = case.manager.plan().unwrap().components[0].stacks[0].resident.clone();
    let (stays, streams) = (resident.iter().position(|r| *r).unwrap(), resident.iter().position(|r| !*r).unwrap());
    case.is_right(|t| t.forward(&input(), &[stays, streams, stays]));
    // What was open last in a pass is closed in the next.
    case.is_right(|t| t.forward(&input(), &[stays]));
    let outside = case.tower.run(|t| t.layers[stays].outside(&input()));
    assert!(matches!(outside, Err(Error::Spans { .. })), "{:?}", outside.map(|y| bits(&y)));

    let case = Case::new(4, Strategy::BlockPin);
    let outside = case.tower.run(|t| t.layers[stays].outside(&t.forward(&input(), &[stays, streams])?));
    assert!(matches!(outside, Err(Error::Spans { .. })), "{:?}", outside.map(|y| bits(&y)));
}

#[test]
fn where_nothing_streams_nothing_is_refused() {
    let case = Case::new(2 * LAYERS as u64, Strategy::NoOffload);
    case.is_right(|t| t.layers[1].outside(&input()));
    assert!(!case.tower.spans().unwrap().verified, "nothing was verified either");
}

#[test]
fn outside_a_run_weights_refuse_and_spans_do_nothing() {
    let case = Case::new(2, Strategy::GroupOffload);
    let kept = std::sync::Mutex::new(None);
    let file = case._folder.path().join("tower.safetensors");
    let other = case
        .manager
        .load(&LoadSpec { name: "other".into(), ..by_spans(&file) }, |vb| {
            let span = tracing::span!(tracing::Level::TRACE, "kept");
            *kept.lock().unwrap() = Some((vb.get((32, 32), "layers.0.proj.weight")?, span));
            Tower::new(vb)
        })
        .unwrap();
    let (weight, span) = kept.into_inner().unwrap().unwrap();
    let _entered = span.enter();
    assert!(weight.sum_all().is_err());
    other.run(|t| t.forward(&input(), &[0, 1])).unwrap();
    case.is_right(|t| t.forward(&input(), &[0, 1]));
}

#[test]
fn errors_and_panics_inside_spans_leave_the_next_run_right() {
    let case = Case::new(2, Strategy::GroupOffload);
    let failed: std::result::Result<(), _> = case.tower.run(|t| {
        t.layers[1].around(&input(), || Err(CandleError::Msg("the caller's own".into())))?;
        Ok(())
    });
    assert!(failed.unwrap_err().to_string().contains("the caller's own"));
    let wrong = case.tower.run(|t| t.forward(&input().to_dtype(DType::F64)?, &[0]));
    assert!(matches!(wrong, Err(Error::Candle(_))), "a dtype of the caller's own is no refusal");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        case.tower.run(|t| t.layers[1].around(&input(), || panic!("on purpose")).map(drop))
    }));
    assert!(panicked.is_err());
    case.is_right(|t| t.forward(&input(), &[0, 1, 2, 3, 4, 5]));
    assert!(case.tower.spans().unwrap().whole.is_none());
}

#[test]
fn what_an_enter_could_not_say_is_what_the_run_answers() {
    let case = Case::new(1, Strategy::GroupOffload);
    case.is_right(|t| t.forward(&input(), &[0, 1]));
    let file = case._folder.path().join("tower.safetensors");
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    let all = [0, 1, 2, 3, 4, 5];
    let told = case.tower.run(|t| t.forward(&input(), &all)).unwrap_err();
    assert!(matches!(&told, Error::Engine(EngineError::Source { .. })), "{told}");
    assert!(told.to_string().contains("tower.safetensors"), "{told}");
    // Also where the model swallows the errors: there is no output without its weights.
    let told = case.tower.run(|t| Ok(t.forward(&input(), &all).map_err(|_| ()).is_err())).unwrap_err();
    assert!(matches!(told, Error::Engine(EngineError::Source { .. })), "{told}");
}

#[test]
fn models_without_spans_or_with_blocks_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    common::checkpoint(&file, common::BLOCKS, DType::F32);
    let spec = by_spans(&file);
    let manager = manager(1 << 20, Strategy::GroupOffload);
    let net = manager.load(&spec, |vb| Net::new(common::BLOCKS, &vb)).unwrap();
    assert!(net.spans().unwrap().whole.unwrap().contains("Blocks"));
    let module = manager.get_component("tower").unwrap();
    assert_eq!(module.description().groups().count(), common::BLOCKS, "they stream as ever");
    drop(net);
    let dim = common::DIM;
    let bare = manager.load(&spec, |vb| vb.get((dim, dim), "embed.weight")).unwrap();
    let reason = bare.spans().unwrap().whole.unwrap();
    assert!(reason.contains("spans"), "{reason}");
    let sum = bare.run(|w| w.sum_all()?.to_scalar::<f32>()).unwrap();
    assert!(sum.is_finite());
    drop(bare);
    let computes = manager.load(&spec, |vb| vb.get((dim, dim), "embed.weight")?.sqr()).unwrap();
    assert!(computes.spans().unwrap().whole.unwrap().contains("without its weights"));
    let missing = manager.load(&LoadSpec { name: "no".into(), ..spec }, |vb| vb.get(1, "no.such")).map(|_| ());
    assert!(missing.unwrap_err().to_string().contains("no.such"));
}

#[test]
fn a_model_built_in_another_way_each_time_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tower.safetensors");
    tower::checkpoint(&file);
    let built = std::sync::atomic::AtomicUsize::new(0);
    let make = |vb: candle_nn::VarBuilder<'_>| {
        if built.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            vb.get((32, 32), "head.weight")?;
        }
        Tower::new(vb)
    };
    let manager = manager(1 << 20, Strategy::GroupOffload);
    let tower = manager.load(&by_spans(&file), make).unwrap();
    assert!(tower.spans().unwrap().whole.unwrap().contains("another way"));
    tower.run(|t| t.forward(&input(), &[0, 1])).unwrap();
}

#[test]
fn a_description_from_headers_is_what_is_loaded() {
    let case = Case::new(2, Strategy::GroupOffload);
    let file = case._folder.path().join("tower.safetensors");
    let (description, _) = describe(&by_spans(&file), Tower::new).unwrap();
    let module = case.manager.get_component("tower").unwrap();
    assert_eq!(&description, module.description());
    assert_eq!((description.groups().count(), description.rest), (LAYERS, REST));
}

#[test]
fn components_of_one_configuration_are_shared_by_spans_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tower.safetensors");
    tower::checkpoint(&file);
    let manager = manager(REST + 2 * LAYER, Strategy::GroupOffload);
    let spec = |name: &str, spans| LoadSpec { spans, config: Some("{}".into()), name: name.into(), ..by_spans(&file) };
    let first = manager.load(&spec("first", true), Tower::new).unwrap();
    let second = manager.load(&spec("second", true), Tower::new).unwrap();
    assert!(first.is_same(&second));
    let whole = manager.load(&spec("whole", false), Tower::new).unwrap();
    assert!(!first.is_same(&whole) && whole.spans().is_none());
    drop(whole);
    let order = [0, 1, 2, 3, 4, 5];
    let one = bits(&first.run(|t| t.forward(&input(), &order)).unwrap());
    drop(first);
    assert_eq!(bits(&second.run(|t| t.forward(&input(), &order)).unwrap()), one);
}
