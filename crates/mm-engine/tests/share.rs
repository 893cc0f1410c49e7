//! What is alike is built once, by whoever comes first, and forgotten with the last who has it.

use mm_cache::{Index, LoadParams, WeightStore, Weights};
use mm_engine::{EngineError, HostDevice, ModelManager, Share, timeline::Timeline};
use mm_plan::{DeviceKind, Machine, Policy};
use std::{cell::Cell, path::PathBuf, sync::Arc};

const PARAMS: LoadParams<'_> = LoadParams { dtype: "f32", device: "cpu", config: b"{}" };

struct Bench {
    manager: Arc<ModelManager<HostDevice>>,
    weights: Arc<Weights>,
    built: Cell<u32>,
}

impl Bench {
    fn new() -> Self {
        let timeline = Arc::new(Timeline::default());
        let device = Arc::new(HostDevice::new(1 << 20, timeline.clone()));
        let machine = Machine { device: DeviceKind::Host, vram_free: Some(1 << 20), ..Machine::default() };
        let store = Arc::new(WeightStore::new(Index::none()));
        let manager = ModelManager::with_weights(device, timeline, machine, Policy::default(), store).unwrap();
        Self { manager, weights: Weights::open(&[] as &[PathBuf]).unwrap(), built: Cell::new(0) }
    }

    fn share(&self, params: Option<&LoadParams<'_>>) -> Share<u32, HostDevice> {
        let build = || {
            self.built.set(self.built.get() + 1);
            Ok::<_, EngineError>(self.built.get())
        };
        self.manager.share("model", &self.weights, params, build).unwrap()
    }

    fn kept(&self) -> u64 {
        self.manager.cache().stats().entries
    }
}

#[test]
fn alike_is_one_until_the_last_share_goes() {
    let bench = Bench::new();
    let (a, b) = (bench.share(Some(&PARAMS)), bench.share(Some(&PARAMS)));
    assert!(a.is_same(&b) && *a == 1);
    let c = bench.share(Some(&LoadParams { config: b"{ }", ..PARAMS }));
    assert!(!a.is_same(&c) && *c == 2);
    assert_eq!(bench.kept(), 2);
    drop((a, c));
    assert_eq!((bench.kept(), *bench.share(Some(&PARAMS))), (1, 1), "one is left");
    drop(b);
    assert_eq!((bench.kept(), *bench.share(Some(&PARAMS))), (0, 3), "it is built anew");
}

#[test]
fn what_is_not_known_is_not_shared() {
    let bench = Bench::new();
    let (a, b) = (bench.share(None), bench.share(None));
    assert!(!a.is_same(&b) && (*a, *b) == (1, 2));
    assert_eq!(bench.kept(), 0);
}

#[test]
fn a_build_that_fails_leaves_nothing() {
    let bench = Bench::new();
    let fails = || Err::<u32, _>(EngineError::Internal("on purpose".into()));
    let error = bench.manager.share("model", &bench.weights, Some(&PARAMS), fails).err().unwrap();
    assert!(error.to_string().contains("on purpose"), "{error}");
    assert_eq!((bench.kept(), *bench.share(Some(&PARAMS))), (0, 1));
}

#[test]
fn a_build_that_asks_for_itself_is_told() {
    let bench = Bench::new();
    let inner = || bench.manager.share("model", &bench.weights, Some(&PARAMS), || Ok::<_, EngineError>(1u32));
    let outer = || inner().map(|share| *share);
    let error = bench.manager.share("model", &bench.weights, Some(&PARAMS), outer).err().unwrap();
    assert!(matches!(error, EngineError::Misuse(_)), "{error}");
}

/// Types of one name, which only their ids tell apart.
#[test]
fn another_type_is_another_thing() {
    let bench = Bench::new();
    let one = {
        struct Model(u8);
        bench.manager.share("model", &bench.weights, Some(&PARAMS), || Ok::<_, EngineError>(Model(1))).map(|m| m.0)
    };
    let bench_holds = bench.share(Some(&PARAMS));
    let two = {
        struct Model(u16);
        bench.manager.share("model", &bench.weights, Some(&PARAMS), || Ok::<_, EngineError>(Model(2))).map(|m| m.0)
    };
    assert_eq!((one.unwrap(), *bench_holds, two.unwrap()), (1, 1, 2));
}
