//! All components of something at once, and `managed`.

use crate::{Dut, common};
use common::{machine, misuse, policy};
use mm_engine::{Device, EngineError, Module, Pipeline, managed, scoped_device, scoped_dtype};
use mm_plan::{DType, Policy, Strategy};
use std::{collections::BTreeMap, sync::Arc};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

type List = Vec<(String, Arc<Module<Dut>>)>;

struct Pipe(List);

impl Pipeline<Dut> for Pipe {
    fn components(&self) -> List {
        self.0.clone()
    }
}

fn rig() -> Rig {
    Rig::empty(ROOMY, Strategy::ModelOffload)
}

fn list(components: &[(&str, &Arc<Module<Dut>>)]) -> List {
    components.iter().map(|(name, module)| ((*name).to_owned(), (*module).clone())).collect()
}

fn pipe(components: &[(&str, &Arc<Module<Dut>>)]) -> Arc<Pipe> {
    Arc::new(Pipe(list(components)))
}

#[test]
fn a_list_a_map_and_a_pipeline_are_sources() {
    let rig = rig();
    let (a, b) = (rig.small("a"), rig.small("b"));
    let components = list(&[("a", &a), ("b", &b)]);
    let from_list = rig.manager.register_components(&Arc::new(components.clone())).unwrap();
    assert_eq!(from_list.names(), ["a", "b"]);
    let map: BTreeMap<_, _> = components.iter().cloned().collect();
    let from_map = rig.manager.register_components(&Arc::new(map)).unwrap();
    let _from_pipeline = rig.manager.register_components(&Arc::new(Pipe(components))).unwrap();
    assert_eq!(rig.manager.registrations(&a), 3);
    drop((from_list, from_map));
    assert_eq!(rig.manager.component_names(), ["a", "b"]);
}

#[test]
fn a_source_counts_once_however_often_it_is_registered() {
    let rig = rig();
    let a = rig.small("a");
    let source = pipe(&[("a", &a)]);
    let first = rig.manager.register_components(&source).unwrap();
    let again = rig.manager.register_components(&source).unwrap();
    assert_eq!((rig.manager.registrations(&a), again.names()), (1, first.names()));
    drop(first);
    assert_eq!(rig.manager.registrations(&a), 1, "it has another handle");
    drop(again);
    assert_eq!(rig.manager.registrations(&a), 0);
}

#[test]
fn two_sources_that_share_a_module_both_count() {
    let rig = rig();
    let shared = rig.small("text_encoder");
    let [one, two] = [(); 2].map(|()| pipe(&[("text_encoder", &shared)]));
    let first = rig.manager.register_components(&one).unwrap();
    let _second = rig.manager.register_components(&two).unwrap();
    rig.run(&shared).unwrap();
    assert_eq!(rig.manager.registrations(&shared), 2);
    drop(first);
    assert!(shared.is_loaded());
    assert_eq!(rig.manager.unregister_components(&two), ["text_encoder"]);
    assert!(!shared.is_loaded() && rig.manager.component_names().is_empty());
}

#[test]
fn what_another_source_displaced_is_not_taken_back() {
    let rig = rig();
    let (tx1, tx2, vae) = (rig.small("tx"), rig.small("tx"), rig.small("vae"));
    let (one, two) = (pipe(&[("transformer", &tx1), ("vae", &vae)]), pipe(&[("transformer", &tx2)]));
    let _one = rig.manager.register_components(&one).unwrap();
    let _two = rig.manager.register_components(&two).unwrap();
    assert_eq!(rig.manager.registrations(&tx1), 0);
    assert_eq!(rig.manager.unregister_components(&one), ["vae"]);
    assert!(Arc::ptr_eq(&rig.manager.get_component("transformer").unwrap(), &tx2));
    assert_eq!(rig.manager.registrations(&tx2), 1);
}

#[test]
fn an_unknown_source_has_nothing_to_take_back() {
    let rig = rig();
    let a = rig.small("a");
    let source = pipe(&[("a", &a)]);
    assert!(rig.manager.unregister_components(&source).is_empty());
    assert!(rig.manager.unload_components(&source).is_empty());
}

#[test]
fn a_handle_of_a_source_that_was_taken_back_counts_for_nothing() {
    let rig = rig();
    let (a, b) = (rig.small("a"), rig.small("a"));
    let (one, two) = (pipe(&[("a", &a)]), pipe(&[("a", &b)]));
    let stale = rig.manager.register_components(&one).unwrap();
    rig.manager.unregister_components(&one);
    let _other = rig.manager.register_components(&two).unwrap();
    let fresh = rig.manager.register_components(&one).unwrap();
    drop(stale);
    assert_eq!(rig.manager.registrations(&a), 1);
    drop(fresh);
    let stale = rig.manager.register_components(&one).unwrap();
    rig.manager.clear().unwrap();
    drop(stale);
    assert!(rig.manager.component_names().is_empty());
}

#[test]
fn aliases_in_one_source_count_each_and_go_together() {
    let rig = rig();
    let a = rig.small("a");
    let source = pipe(&[("primary", &a), ("alias", &a)]);
    let handle = rig.manager.register_components(&source).unwrap();
    assert_eq!(rig.manager.registrations(&a), 2);
    rig.run(&a).unwrap();
    drop(handle);
    assert!(rig.manager.component_names().is_empty() && !a.is_loaded());
}

#[test]
fn all_are_registered_or_none() {
    let rig = rig();
    let (a, b) = (rig.small("a"), rig.small("b"));
    let elsewhere = self::rig();
    let foreign = elsewhere.small("foreign");
    let held = rig.manager.register("b", &b).unwrap();
    let refused = |components: &[(&str, &Arc<Module<Dut>>)]| misuse(rig.manager.register_components(&pipe(components)));
    assert!(refused(&[]).contains("no components"));
    assert!(refused(&[("a", &a), ("a", &b)]).contains("twice"));
    assert!(refused(&[("b", &a), ("c", &foreign)]).contains("another device"));
    assert_eq!(rig.manager.component_names(), ["b"]);
    assert!(Arc::ptr_eq(&rig.manager.get_component("b").unwrap(), &b), "nobody displaced it");
    // Nobody else's: another manager may have what was refused here.
    let (device, timeline) = (rig.manager.device().clone(), rig.manager.timeline().clone());
    let other = mm_engine::ModelManager::new(device, timeline, machine(ROOMY), Policy::default()).unwrap();
    let _a = other.register("a", &a).unwrap();
    drop(held);
}

#[test]
fn managed_registers_plans_applies_and_runs_inside_the_device() {
    let rig = rig();
    let (a, b) = (rig.small("a"), rig.small("b"));
    let pipeline = managed(pipe(&[("a", &a), ("b", &b)]))
        .on(machine(ROOMY))
        .policy(policy(Strategy::Auto))
        .strategy(Strategy::NoOffload)
        .dtype(DType::Bf16)
        .start()
        .unwrap();
    assert_eq!(pipeline.manager().applied_strategy(), Some(Strategy::NoOffload));
    assert_eq!((pipeline.component_names(), pipeline.notes()), (&["a".to_owned(), "b".to_owned()][..], &[][..]));
    assert_eq!(pipeline.0.len(), 2, "it is the pipeline still");
    let answer = pipeline.run(|pipe| {
        assert!(Arc::ptr_eq(&scoped_device::<Dut>().unwrap(), pipeline.manager().device()));
        assert_eq!(scoped_dtype(), Some(DType::Bf16));
        let run = pipeline.manager().begin(&pipe.0[0].1).unwrap();
        run.complete().unwrap();
        7
    });
    assert_eq!(answer, 7);
    assert!(scoped_device::<Dut>().is_none());
    assert!(a.is_loaded());
    drop(pipeline);
    assert_eq!(rig.device.memory().in_use, 0);
}

#[test]
fn pipelines_share_a_manager_and_its_configuration_counts() {
    let rig = rig();
    let (shared, own) = (rig.small("text_encoder"), rig.small("transformer"));
    let pipelines = [pipe(&[("text_encoder", &shared)]), pipe(&[("text_encoder", &shared), ("transformer", &own)])];
    let one = managed(pipelines[0].clone()).sharing(&rig.manager).start().unwrap();
    assert!(one.notes().is_empty());
    let two = managed(pipelines[1].clone()).sharing(&rig.manager).strategy(Strategy::NoOffload).start().unwrap();
    assert_eq!(two.notes().len(), 1);
    assert!(two.notes()[0].text.contains("ignored"));
    assert_eq!(rig.manager.applied_strategy(), Some(Strategy::ModelOffload));
    // Once more the very same one: nothing new.
    let again = managed(pipelines[1].clone()).sharing(&rig.manager).start().unwrap();
    assert_eq!(rig.manager.registrations(&shared), 2);
    drop((one, again));
    assert_eq!(rig.manager.component_names(), ["text_encoder", "transformer"]);
    drop(two);
    assert!(rig.manager.component_names().is_empty());
}

#[test]
fn managed_says_what_is_missing() {
    let rig = rig();
    let a = rig.small("a");
    assert!(misuse(managed(pipe(&[("a", &a)])).start()).contains(".on(machine)"));
    assert!(misuse(managed(pipe(&[])).on(machine(ROOMY)).start()).contains("no components"));
    assert!(misuse(managed(pipe(&[])).sharing(&rig.manager).start()).contains("no components"));
    let over = managed(pipe(&[("a", &a)])).on(machine(2 * ROOMY)).start();
    assert!(misuse(over).contains("budget"));
}

/// A pipeline for which there is no plan: what was there is there, also what it would have displaced.
#[test]
fn a_pipeline_that_does_not_fit_leaves_everything_as_it_was() {
    let rig = Rig::empty(4000, Strategy::NoOffload);
    let a = rig.small("a");
    let _a = rig.manager.register("a", &a).unwrap();
    rig.run(&a).unwrap();
    let plan = rig.manager.plan().unwrap();
    let (large, _rack) = rig.build(&common::even("large", 10));
    let outcome = managed(pipe(&[("a", &large)])).sharing(&rig.manager).start();
    assert!(matches!(outcome, Err(EngineError::Infeasible(_))));
    assert!(a.is_loaded() && Arc::ptr_eq(&rig.manager.get_component("a").unwrap(), &a));
    assert_eq!((rig.manager.plan().unwrap(), rig.manager.registrations(&large)), (plan, 0));
    rig.run(&a).unwrap();
}

#[test]
fn a_pipeline_is_not_managed_inside_a_run() {
    let rig = rig();
    let (a, b) = (rig.small("a"), rig.small("b"));
    let _a = rig.manager.register("a", &a).unwrap();
    let run = rig.manager.begin(&a).unwrap();
    assert!(misuse(managed(pipe(&[("b", &b)])).sharing(&rig.manager).start()).contains("inside a run"));
    assert_eq!(rig.manager.component_names(), ["a"]);
    run.complete().unwrap();
}
