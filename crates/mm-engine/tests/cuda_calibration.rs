//! A CUDA device tells what copies and compute took by its driver's timed events: the plan becomes the one of the true figures,
//! nothing waits for them, a call of theirs that fails ends the measuring alone, and who is not calibrated makes none.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;

use common::{
    Shape, TestDevice,
    calibrated::{self, Measured, compute_ns},
    fake_cuda::{FakeCuda, ILLEGAL_ADDRESS, NEVER, driver},
    machine, policy,
};
use mm_engine::{
    Calibration, CudaDevice, EngineError, ModelManager, Staging, calibrate::Hysteresis, timeline::Timeline,
};
use mm_plan::{DeviceKind, Links, Machine, Plan, Rule, Strategy};
use parking_lot::{Mutex, MutexGuard};
use std::{ops::Deref, sync::Arc};

/// What the fake driver's machine does: a nanosecond a byte, and the work of starting it.
const TRUE: Links = Links { h2d: 1_000_000_000, staging: Some(4_000_000_000), disk: None, copy_fixed_ns: 64 };

/// Where the host's clock, which tells of staging, stands still.
const MEASURED: Links = Links { staging: None, ..TRUE };

const BUDGET: u64 = 120_000;
const STAGING: Staging = Staging { buffers: 3, bytes: 1 << 16, limit: 1 << 24 };

/// The driver's settings and counters are all tests': one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock();
    driver().fail(NEVER, 0, 0);
    driver().fail_timing(NEVER, 0);
    guard
}

/// Equal blocks, so that the plan of the true figures is the best there is.
fn shapes() -> Vec<(Shape, u32)> {
    calibrated::shapes(vec![(3000, 400); 16])
}

struct Pipeline {
    device: FakeCuda,
    measured: Measured<FakeCuda>,
}

impl Deref for Pipeline {
    type Target = Measured<FakeCuda>;

    fn deref(&self) -> &Self::Target {
        &self.measured
    }
}

impl Pipeline {
    fn new(links: Option<Links>, timeline: Timeline) -> Self {
        let timeline = Arc::new(timeline);
        driver();
        let device = FakeCuda::of(CudaDevice::with_staging(0, None, BUDGET, STAGING, timeline.clone()).unwrap());
        let measured = Measured::new(&device, &timeline, with(links), policy(Strategy::Auto), &shapes());
        Self { device, measured }
    }

    /// On a host clock that stands still, so that staging is what it was thought to be.
    fn calibrated(links: Option<Links>) -> Self {
        let this = Self::new(links, Timeline::with_clock(1000, || 0));
        let any = Hysteresis { gain_permille: 0, ..Hysteresis::default() };
        this.manager.calibrate(Calibration::of("test").hysteresis(any)).unwrap();
        this
    }

    fn spend(&self, ns: u64) {
        driver().spend(self.device.cuda.compute_stream().cu_stream() as u64, ns);
    }

    fn pass(&self, name: &str) -> Result<Arc<Plan>, EngineError> {
        let (module, _) = self.module(name);
        let run = self.manager.begin(module)?;
        let plan = self.manager.plan().expect("in force while it runs");
        self.device.set_frozen(true);
        self.spend(300);
        let lease = |group| module.lease(group).map(|_lease| self.spend(compute_ns(name, group)));
        let outcome = (0..module.description().groups().count()).try_for_each(lease).and_then(|()| run.complete());
        self.device.set_frozen(false);
        outcome.map(|()| plan)
    }

    fn settle(&self) {
        self.device.cuda.compute_stream().synchronize().unwrap();
    }

    /// A request; the plans of the transformer's passes. `settled`: the device is idle after each pass.
    fn request(&self, settled: bool) -> Result<Vec<Arc<Plan>>, EngineError> {
        let pass = |name| {
            let plan = self.pass(name)?;
            if settled {
                self.settle();
            }
            Ok(plan)
        };
        pass("encoder")?;
        let plans = (0..20).map(|_| pass("transformer")).collect::<Result<_, _>>();
        pass("vae")?;
        plans
    }
}

fn with(links: Option<Links>) -> Machine {
    Machine { device: DeviceKind::Discrete, links, ..machine(BUDGET) }
}

fn best(pipeline: &Pipeline, links: Links) -> Plan {
    mm_plan::plan(&with(Some(links)), &pipeline.truth(), &policy(Strategy::Auto)).unwrap()
}

/// No links, and links that are wrong by a factor of twenty either way; with what is true of them.
fn wrong() -> [(Option<Links>, Links); 3] {
    let slow = Links { h2d: TRUE.h2d / 20, copy_fixed_ns: 50_000, ..TRUE };
    let fast = Links { h2d: TRUE.h2d * 20, copy_fixed_ns: 0, ..TRUE };
    [(None, MEASURED), (Some(slow), TRUE), (Some(fast), TRUE)]
}

#[test]
fn from_wrong_or_no_links_the_plan_becomes_the_one_of_the_true_figures() {
    let _alone = alone();
    for (seed, (links, right)) in wrong().into_iter().enumerate() {
        driver().seed(seed as u64);
        let pipeline = Pipeline::calibrated(links);
        let best = best(&pipeline, right);
        let plans = pipeline.request(true).unwrap();
        assert_ne!(plans[0].components, best.components, "{links:?}: nothing to gain, the test tells nothing");
        assert!(plans[..3].iter().all(|plan| Arc::ptr_eq(plan, &plans[0])), "three passes measure");
        assert!(plans[3..].iter().all(|plan| Arc::ptr_eq(plan, &plans[3])), "once");
        assert_eq!((&plans[3].components, plans[3].rule), (&best.components, Rule::Cost), "{links:?}");
        assert_eq!(plans[3].predicted, best.predicted, "{links:?}");
        let measured = pipeline.figures();
        assert_eq!(measured.links, Some(MEASURED));
        let times: Vec<_> = (0..16).map(|i| Some(compute_ns("transformer", i))).collect();
        assert_eq!(measured.components["transformer"].compute_ns, times);
        assert_eq!(measured.components["encoder"].compute_ns, [Some(2_000); 6]);
        assert_eq!(measured.components["vae"].rest_ns, Some(300));
        let more = pipeline.request(true).unwrap();
        assert!(more.iter().all(|plan| Arc::ptr_eq(plan, &plans[3])), "{:?}", pipeline.codes());
        // What is not a lease's, nor waiting for a copy: homes look at each streamed group's bytes as it comes and as it goes.
        let placed = plans[3].component("transformer").unwrap();
        let streamed = placed.stacks[0].resident.iter().filter(|resident| !**resident).count() as u64;
        let looks = 2 * (3000 * 4 + 400 * 2 + 4 * 64);
        assert_eq!(pipeline.figures().components["transformer"].rest_ns, Some(300 + streamed * looks));
        pipeline.device.check();
    }
}

/// The host runs ahead of the device, which is what a device is for: figures come later, and are the same.
#[test]
fn what_is_measured_is_read_later_and_nobody_waits_for_it() {
    let _alone = alone();
    for seed in 0..4 {
        driver().seed(seed);
        let pipeline = Pipeline::calibrated(Some(TRUE));
        pipeline.request(false).unwrap();
        pipeline.request(false).unwrap();
        // The plan has settled: nothing is loaded or left any more but in turn.
        pipeline.pass("transformer").unwrap();
        let counts = || (driver().host_waits(), driver().allocations());
        let before = counts();
        for _ in 0..3 {
            pipeline.pass("transformer").unwrap();
        }
        assert_eq!(counts(), before, "seed {seed}");
        pipeline.settle();
        let times: Vec<_> = (0..16).map(|i| Some(compute_ns("transformer", i))).collect();
        let figures = pipeline.figures();
        assert_eq!(
            (figures.links, &figures.components["transformer"].compute_ns),
            (Some(MEASURED), &times),
            "seed {seed}"
        );
    }
}

#[test]
fn in_a_pass_no_event_is_made_and_where_room_runs_out_old_ones_are_used_again() {
    let _alone = alone();
    driver().seed(2);
    let pipeline = Pipeline::calibrated(Some(TRUE));
    (0..4).for_each(|_| drop(pipeline.pass("transformer").unwrap()));
    let live = driver().live();
    for _ in 0..8 {
        pipeline.pass("transformer").unwrap();
    }
    // The engine's own events are made as they are first needed.
    assert!(driver().live() <= live + 16, "{} after {live}", driver().live());
}

#[test]
fn what_readers_do_is_told_by_the_hosts_clock() {
    let _alone = alone();
    driver().seed(1);
    let pipeline = Pipeline::new(None, Timeline::default());
    pipeline.manager.calibrate(Calibration::of("test")).unwrap();
    pipeline.request(true).unwrap();
    let links = pipeline.figures().links.unwrap();
    assert_eq!((links.h2d, links.copy_fixed_ns), (TRUE.h2d, TRUE.copy_fixed_ns));
    assert!(links.staging.is_some());
}

#[test]
fn who_is_not_calibrated_makes_no_call_more() {
    let _alone = alone();
    let pipeline = Pipeline::new(Some(TRUE), Timeline::default());
    pipeline.request(true).unwrap();
    assert_eq!(driver().timing_calls(), 0);
    pipeline.manager.calibrate(Calibration::of("test")).unwrap();
    pipeline.request(true).unwrap();
    assert!(driver().timing_calls() > 100);
    // When all is known nobody asks any more.
    (0..20).for_each(|_| drop((pipeline.pass("encoder"), pipeline.pass("vae"), pipeline.settle())));
    pipeline.pass("vae").unwrap();
    driver().fail_timing(NEVER, 0);
    pipeline.request(true).unwrap();
    assert_eq!(driver().timing_calls(), 0);
}

#[test]
fn a_device_is_measured_for_one_manager() {
    let _alone = alone();
    let pipeline = Pipeline::calibrated(None);
    let other = || {
        let device = Arc::new(pipeline.device.clone());
        ModelManager::new(device, Arc::default(), with(None), policy(Strategy::Auto)).unwrap()
    };
    let error = other().calibrate(Calibration::of("test")).unwrap_err();
    assert!(matches!(&error, EngineError::Misuse(text) if text.contains("on this device")), "{error}");
    let Pipeline { device, .. } = Pipeline::calibrated(None);
    let next = ModelManager::new(Arc::new(device), Arc::default(), with(None), policy(Strategy::Auto)).unwrap();
    next.calibrate(Calibration::of("test")).unwrap();
}

#[test]
fn whichever_timing_call_fails_the_passes_go_on_and_a_note_says_so() {
    let _alone = alone();
    let passes = |pipeline: &Pipeline| {
        for name in ["encoder", "transformer", "transformer", "vae"] {
            pipeline.pass(name).unwrap_or_else(|error| panic!("{error}"));
        }
        pipeline.settle();
    };
    driver().seed(1);
    let pipeline = Pipeline::calibrated(None);
    passes(&pipeline);
    pipeline.figures();
    let calls = driver().timing_calls();
    drop(pipeline);
    let live = driver().live();
    assert!(calls > 300, "{calls}");
    for at in 0..calls {
        driver().seed(at);
        let pipeline = Pipeline::calibrated(None);
        driver().fail_timing(at, ILLEGAL_ADDRESS);
        passes(&pipeline);
        let notes = pipeline.manager.calibration().unwrap().notes;
        let lost: Vec<_> = notes.iter().filter(|note| note.code == "times_lost").collect();
        // How many calls there are differs by what was done when it was asked.
        if driver().timing_calls() > at {
            assert_eq!(lost.len(), 1, "call {at}: {notes:?}");
            assert!(lost[0].text.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{}", lost[0].text);
            let made = driver().timing_calls();
            passes(&pipeline);
            assert_eq!(driver().timing_calls(), made, "measuring goes on after call {at}");
        } else {
            assert!(lost.is_empty() && at * 10 > calls * 6, "call {at} of {calls} was not made");
        }
        pipeline.device.check();
        drop(pipeline);
        assert_eq!(driver().live(), live, "after timing call {at}");
    }
    driver().fail_timing(NEVER, 0);
}
