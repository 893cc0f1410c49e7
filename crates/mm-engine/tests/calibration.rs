//! The first passes measure, and the plan is redone once with what they measured.

mod common;

use common::{
    Shape, TestDevice,
    calibrated::{self, Measured, compute_ns},
    machine, policy,
    timed_device::TimedDevice,
};
use mm_engine::{Calibration, EngineError, ModelManager, calibrate::Hysteresis};
use mm_plan::{Activation, Basis, DeviceKind, Links, Machine, Plan, Policy, Rule, Strategy, simulate};
use std::{ops::Deref, path::Path, sync::Arc};

const TRUE: Links = Links { h2d: 1_000_000_000, staging: None, disk: None, copy_fixed_ns: 700 };

/// Blocks of two sizes.
fn shapes() -> Vec<(Shape, u32)> {
    calibrated::shapes((0..16).map(|i| if i % 4 == 0 { (6000, 700) } else { (3000, 400) }).collect())
}

struct Pipeline {
    device: TimedDevice,
    measured: Measured<TimedDevice>,
}

impl Deref for Pipeline {
    type Target = Measured<TimedDevice>;

    fn deref(&self) -> &Self::Target {
        &self.measured
    }
}

impl Pipeline {
    fn new(machine: Machine, policy: Policy) -> Self {
        Self::of(machine, policy, shapes())
    }

    fn of(machine: Machine, policy: Policy, shapes: Vec<(Shape, u32)>) -> Self {
        let device = TimedDevice::new(machine.vram_free.unwrap(), TRUE);
        let measured = Measured::new(&device, device.timeline(), machine, policy, &shapes);
        Self { device, measured }
    }

    fn calibrated(machine: Machine) -> Self {
        let this = Self::new(machine, policy(Strategy::Auto));
        this.manager.calibrate(Calibration::of("test")).unwrap();
        this
    }

    fn kept_in(machine: Machine, folder: &Path, workload: &str) -> Self {
        let this = Self::new(machine, policy(Strategy::Auto));
        this.manager.calibrate(Calibration::of("test").kept_in(folder).workload(workload)).unwrap();
        this
    }

    /// A pass in which every group's bytes are looked at. What it does besides takes `slower` permille longer than it should.
    fn pass(&self, name: &str, slower: u64) -> Arc<Plan> {
        self.pass_with(name, slower, None).unwrap()
    }

    fn pass_with(&self, name: &str, slower: u64, activation: Option<u64>) -> Result<Arc<Plan>, EngineError> {
        let (module, rack) = self.module(name);
        let run = self.manager.begin(module)?;
        let plan = self.manager.plan().expect("in force while it runs");
        self.device.set_frozen(true);
        self.device.spend(300);
        assert!(rack.holds(None));
        for group in 0..module.description().groups().count() {
            let lease = module.lease(group)?;
            assert!(rack.holds(Some(group)), "the bytes of group {group}");
            self.device.spend(compute_ns(name, group) * (1000 + slower) / 1000);
            drop(lease);
        }
        if let Some(bytes) = activation {
            run.record_activation(bytes);
        }
        run.complete()?;
        self.device.set_frozen(false);
        Ok(plan)
    }

    /// A request; the plans of the transformer's passes.
    fn request(&self) -> Vec<Arc<Plan>> {
        self.pass("encoder", 0);
        let plans = (0..20).map(|_| self.pass("transformer", 0)).collect();
        self.pass("vae", 0);
        plans
    }
}

const BUDGET: u64 = 120_000;

fn with(links: Option<Links>) -> Machine {
    Machine { links, ..machine(BUDGET) }
}

/// The plan made from the true figures.
fn best(pipeline: &Pipeline) -> Plan {
    mm_plan::plan(&with(Some(TRUE)), &pipeline.truth(), &policy(Strategy::Auto)).unwrap()
}

fn has(plan: &Plan, code: &str) -> bool {
    plan.notes.iter().any(|note| note.code == code)
}

/// No links, and links that are wrong by a factor of twenty either way.
fn wrong() -> [Option<Links>; 3] {
    let slow = Links { h2d: TRUE.h2d / 20, copy_fixed_ns: 50_000, ..TRUE };
    let fast = Links { h2d: TRUE.h2d * 20, copy_fixed_ns: 0, ..TRUE };
    [None, Some(slow), Some(fast)]
}

#[test]
fn from_wrong_or_no_links_the_plan_becomes_the_one_of_the_true_figures() {
    // Blocks are equal here, so that the plan of the true figures is the best there is.
    let mut shapes = shapes();
    shapes[1].0.stacks = vec![vec![(3000, 400); 16]];
    for links in wrong() {
        let shapes = shapes.iter().map(|(shape, passes)| (Shape { stacks: shape.stacks.clone(), ..*shape }, *passes));
        let pipeline = Pipeline::of(with(links), policy(Strategy::Auto), shapes.collect());
        let any = Hysteresis { gain_permille: 0, ..Hysteresis::default() };
        pipeline.manager.calibrate(Calibration::of("test").hysteresis(any)).unwrap();
        let best = best(&pipeline);
        let plans = pipeline.request();
        assert_ne!(plans[0].components, best.components, "{links:?}: nothing to gain, the test tells nothing");
        assert!(plans[..3].iter().all(|plan| Arc::ptr_eq(plan, &plans[0])), "three passes measure");
        assert!(plans[3..].iter().all(|plan| Arc::ptr_eq(plan, &plans[3])), "once");
        assert_eq!((&plans[3].components, plans[3].rule), (&best.components, Rule::Cost), "{links:?}");
        assert!(has(&plans[3], "calibrated"));
        assert_eq!(plans[3].predicted, best.predicted, "{links:?}");
        let measured = pipeline.figures();
        assert_eq!(measured.links, Some(TRUE));
        let times: Vec<_> = (0..16).map(|i| Some(compute_ns("transformer", i))).collect();
        assert_eq!(measured.components["transformer"].compute_ns, times);
        assert_eq!(measured.components["transformer"].rest_ns, Some(300));
        assert_eq!(measured.components["vae"].rest_ns, Some(300));
        let more = pipeline.request();
        assert!(more.iter().all(|plan| Arc::ptr_eq(plan, &plans[3])), "{:?}", pipeline.codes());
        pipeline.device.check();
    }
}

#[test]
fn a_plan_that_stays_is_no_slower_than_the_bound_allows() {
    for links in wrong() {
        let pipeline = Pipeline::calibrated(with(links));
        let plan = pipeline.request().pop().unwrap();
        let takes = |plan: &Plan| simulate(&with(Some(TRUE)), &pipeline.truth(), plan).unwrap().request_ns;
        let (best, takes) = (takes(&best(&pipeline)), takes(&plan));
        let more = takes.saturating_sub(best);
        assert!(more * 1000 <= takes * 50, "{links:?}: {takes} ns, {best} would do: {:?}", pipeline.codes());
    }
}

#[test]
fn where_nobody_asked_plans_stay() {
    let pipeline = Pipeline::new(with(None), policy(Strategy::Auto));
    let first = pipeline.request().remove(0);
    assert!(pipeline.request().iter().all(|plan| Arc::ptr_eq(plan, &first)));
    assert!(pipeline.manager.calibration().is_none());
}

#[test]
fn true_figures_from_the_start_change_nothing() {
    let pipeline = Pipeline::calibrated(with(Some(TRUE)));
    let mut policy = policy(Strategy::Auto);
    policy.rule = Some(Rule::Cost);
    pipeline.manager.set_policy(policy);
    let plans = pipeline.request();
    let last = pipeline.request().pop().unwrap();
    let replaced = pipeline.codes().iter().filter(|code| *code == "calibrated").count();
    assert_eq!(replaced, usize::from(!Arc::ptr_eq(&plans[0], &last)));
}

#[test]
fn a_gain_below_the_bound_leaves_the_plan_and_a_note_says_so() {
    let pipeline = Pipeline::new(with(None), policy(Strategy::Auto));
    let never = Hysteresis { gain_permille: 1000, memory_permille: 100 };
    pipeline.manager.calibrate(Calibration::of("test").hysteresis(never)).unwrap();
    let plans = pipeline.request();
    assert!(plans.iter().all(|plan| Arc::ptr_eq(plan, &plans[0])));
    assert!(pipeline.codes().contains(&"plan_kept".to_owned()));
}

#[test]
fn memory_and_times_that_jitter_do_not_plan_anew() {
    let pipeline = Pipeline::calibrated(with(None));
    let plan = pipeline.request().pop().unwrap();
    let notes = pipeline.codes();
    for (i, free) in [BUDGET * 9 / 10, BUDGET, BUDGET * 95 / 100].into_iter().cycle().take(60).enumerate() {
        pipeline.manager.set_free_memory(free);
        let now = pipeline.pass("transformer", 37 * (i as u64 % 7) / 2);
        assert!(Arc::ptr_eq(&now, &plan), "{free}: {:?}", pipeline.codes());
    }
    assert_eq!(pipeline.codes(), notes, "nobody looked");
}

#[test]
fn memory_that_is_gone_plans_anew_once_and_memory_that_is_back_again() {
    let pipeline = Pipeline::calibrated(with(None));
    let plan = pipeline.request().pop().unwrap();
    pipeline.manager.set_free_memory(BUDGET * 7 / 10);
    let less = pipeline.pass("transformer", 0);
    assert!(less.peak.device <= BUDGET * 7 / 10 && has(&less, "replanned_for_memory"));
    for free in [BUDGET * 65 / 100, BUDGET * 7 / 10, BUDGET * 75 / 100] {
        pipeline.manager.set_free_memory(free);
        assert!(Arc::ptr_eq(&pipeline.pass("transformer", 0), &less), "{free}");
    }
    pipeline.manager.set_free_memory(u64::MAX);
    let back = pipeline.pass("transformer", 0);
    assert_eq!(back.components, plan.components, "the budget is the most there can be");
    pipeline.manager.set_free_memory(10);
    let kept = pipeline.pass("transformer", 0);
    assert!(Arc::ptr_eq(&kept, &back), "nothing fits in ten bytes: what is there goes on");
    assert!(pipeline.codes().contains(&"plan_kept".to_owned()));
    pipeline.device.check();
}

#[test]
fn a_plan_that_was_given_is_never_replaced() {
    let pipeline = Pipeline::calibrated(with(None));
    let given = mm_plan::plan(&with(None), &pipeline.truth(), &policy(Strategy::GroupOffload)).unwrap();
    let given = pipeline.manager.apply_plan(given).unwrap();
    pipeline.manager.set_free_memory(1);
    assert!(pipeline.request().iter().chain(&pipeline.request()).all(|plan| Arc::ptr_eq(plan, &given)));
    assert!(pipeline.figures().links.is_some(), "it is measured all the same");
}

#[test]
fn the_next_process_begins_with_the_plan_of_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = Pipeline::kept_in(with(None), folder.path(), "64x64");
    let plan = first.request().pop().unwrap();
    let next = Pipeline::kept_in(with(None), folder.path(), "64x64");
    let plans = next.request();
    assert_eq!((&plans[0].components, plans[0].rule), (&plan.components, Rule::Cost));
    assert!(has(&plans[0], "measured_before"));
    assert!(plans.iter().all(|plan| Arc::ptr_eq(plan, &plans[0])), "{:?}", next.codes());
    assert_eq!(next.figures().components, first.figures().components);
    // Another workload knows the links, and nothing of what computing takes.
    let other = Pipeline::kept_in(with(None), folder.path(), "512x512");
    let plan = other.manager.apply().unwrap();
    assert_eq!((plan.rule, plan.predicted.clone().unwrap().compute), (Rule::Cost, Basis::Unknown));
    assert_eq!(other.figures().links, first.figures().links);
}

#[test]
fn figures_that_were_damaged_or_cannot_be_kept_are_notes() {
    let folder = tempfile::tempdir().unwrap();
    Pipeline::kept_in(with(None), folder.path(), "").request();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::write(file.unwrap().path(), "{").unwrap();
    }
    let pipeline = Pipeline::kept_in(with(None), folder.path(), "");
    let plans = pipeline.request();
    assert!(pipeline.codes().contains(&"figures_damaged".to_owned()));
    assert_eq!(plans[19].components, best(&pipeline).components, "measured anew");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let pipeline = Pipeline::kept_in(with(None), &file, "");
    assert_eq!(pipeline.request()[19].components, best(&pipeline).components);
    assert!(pipeline.codes().contains(&"figures_not_kept".to_owned()));
}

#[test]
fn computing_that_takes_more_than_was_known_makes_room() {
    let links = Links { staging: Some(TRUE.h2d), ..TRUE };
    let machine = Machine { device: DeviceKind::Discrete, ..with(Some(links)) };
    let transformer = shapes().remove(1);
    let pipeline = Pipeline::of(machine, policy(Strategy::Auto), vec![transformer]);
    pipeline.manager.calibrate(Calibration::of("test")).unwrap();
    let before = pipeline.pass_with("transformer", 0, Some(0)).unwrap();
    let need = 60_000;
    assert!(before.peak.device + need > BUDGET);
    pipeline.pass_with("transformer", 0, Some(need)).unwrap();
    let after = pipeline.pass_with("transformer", 0, Some(need - 1)).unwrap();
    assert!(after.peak.device + need <= BUDGET && has(&after, "replanned_for_memory"), "{:?}", pipeline.codes());
    assert_eq!(after.phases[0].activation, Some(Activation { bytes: need, basis: Basis::Measured }));
    for _ in 0..20 {
        let now = pipeline.pass_with("transformer", 0, Some(need)).unwrap();
        assert!(now.peak.device + need <= BUDGET);
    }
    // On a host device it lies beside the budget.
    let pipeline = Pipeline::of(with(Some(TRUE)), policy(Strategy::Auto), vec![shapes().remove(1)]);
    pipeline.manager.calibrate(Calibration::of("test")).unwrap();
    pipeline.pass_with("transformer", 0, Some(u64::MAX)).unwrap();
    pipeline.pass_with("transformer", 0, Some(u64::MAX)).unwrap();
    assert!(!pipeline.codes().contains(&"replanned_for_memory".to_owned()));
    assert_eq!(pipeline.figures().components["transformer"].activation, Some(u64::MAX));
}

#[test]
fn passes_that_were_interrupted_are_not_measured() {
    let pipeline = Pipeline::calibrated(with(None));
    let (module, _) = &pipeline.modules[1];
    for _ in 0..5 {
        let run = pipeline.manager.begin(module).unwrap();
        pipeline.device.spend(1_000_000);
        drop(run);
    }
    assert!(!pipeline.figures().components.contains_key("transformer"));
    let plans = pipeline.request();
    assert_eq!(plans[19].components, best(&pipeline).components);
}

#[test]
fn a_timeline_has_one_calibration() {
    let pipeline = Pipeline::calibrated(with(None));
    let again = pipeline.manager.calibrate(Calibration::of("test"));
    assert!(matches!(again, Err(EngineError::Misuse(text)) if text.contains("already")));
    let (shared, timeline) = (pipeline.manager.device().clone(), pipeline.device.timeline().clone());
    let other = || ModelManager::new(shared.clone(), timeline.clone(), with(None), Policy::default()).unwrap();
    let refused = other().calibrate(Calibration::of("test"));
    assert!(matches!(refused, Err(EngineError::Misuse(text)) if text.contains("timeline")));
    drop(pipeline);
    other().calibrate(Calibration::of("test")).unwrap();
}

#[test]
fn nothing_is_planned_anew_while_something_runs() {
    let beside = |name| Shape { name, phase: Some(0), rest: 50, stacks: vec![vec![(3000, 400); 8]] };
    let pipeline = Pipeline::of(with(None), policy(Strategy::Auto), vec![(beside("a"), 2), (beside("b"), 20)]);
    let any = Hysteresis { gain_permille: 0, ..Hysteresis::default() };
    pipeline.manager.calibrate(Calibration::of("test").hysteresis(any)).unwrap();
    let first = pipeline.manager.apply().unwrap();
    let held = pipeline.manager.begin(&pipeline.modules[0].0).unwrap();
    pipeline.manager.set_free_memory(BUDGET / 2);
    for _ in 0..6 {
        assert!(Arc::ptr_eq(&pipeline.pass("b", 0), &first));
    }
    held.complete().unwrap();
    let next = pipeline.pass("b", 0);
    assert!(next.peak.device <= BUDGET / 2 && has(&next, "replanned_for_memory"), "{:?}", pipeline.codes());
    pipeline.device.check();
}

#[test]
fn what_is_measured_counts_more_than_what_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let before = Pipeline::kept_in(with(None), folder.path(), "");
    for _ in 0..3 {
        before.pass("transformer", 1000);
    }
    let twice = Some(2 * compute_ns("transformer", 1));
    assert_eq!(before.figures().components["transformer"].compute_ns[1], twice);
    let now = Pipeline::kept_in(with(None), folder.path(), "");
    for _ in 0..2 {
        now.pass("transformer", 0);
        assert_eq!(now.figures().components["transformer"].compute_ns[1], twice, "two passes are not enough");
    }
    now.pass("transformer", 0);
    assert_eq!(now.figures().components["transformer"].compute_ns[1], Some(compute_ns("transformer", 1)));
    drop(now);
    let next = Pipeline::kept_in(with(None), folder.path(), "");
    next.manager.apply().unwrap();
    assert_eq!(next.figures().components["transformer"].compute_ns[1], Some(compute_ns("transformer", 1)));
}
