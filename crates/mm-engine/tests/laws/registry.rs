//! Registering single components: names, counts, aliases, other managers, many threads.

use crate::{Dut, common};
use common::{TestDevice, even, machine, misuse, policy};
use mm_engine::{Device, ModelManager, timeline::Timeline};
use mm_plan::Strategy;
use std::{sync::Arc, thread};

type Rig = common::Rig<Dut>;

const ROOMY: u64 = 1 << 20;

fn rig() -> Rig {
    Rig::empty(ROOMY, Strategy::ModelOffload)
}

fn names(rig: &Rig) -> Vec<String> {
    rig.manager.component_names()
}

#[test]
fn what_is_registered_is_found_by_name_and_nothing_else_is() {
    let rig = rig();
    let (vae, encoder) = (rig.small("vae"), rig.small("text_encoder"));
    let _vae = rig.manager.register("vae", &vae).unwrap();
    let handle = rig.manager.register("text_encoder", &encoder).unwrap();
    assert_eq!(handle.name(), "text_encoder");
    assert_eq!(names(&rig), ["text_encoder", "vae"]);
    assert!(Arc::ptr_eq(&rig.manager.get_component("vae").unwrap(), &vae));
    assert!(rig.manager.get_component("transformer").is_none());
}

#[test]
fn a_component_registered_later_leaves_what_was_applied_alone() {
    let rig = rig();
    let (old, new) = (rig.small("old"), rig.small("new"));
    let _old = rig.manager.register("old", &old).unwrap();
    assert_eq!((rig.manager.applied_strategy(), rig.manager.component_strategy("old")), (None, None));
    rig.run(&old).unwrap();
    let _new = rig.manager.register("new", &new).unwrap();
    assert_eq!(rig.manager.applied_strategy(), Some(Strategy::ModelOffload));
    assert_eq!(rig.manager.component_strategy("old"), Some(Strategy::ModelOffload));
    assert_eq!(rig.manager.component_strategy("new"), None, "it waits for the next plan");
    assert!(old.is_loaded());
    rig.manager.apply().unwrap();
    assert_eq!(rig.manager.component_strategy("new"), Some(Strategy::ModelOffload));
    assert!(old.is_loaded(), "nothing changed for it");
}

#[test]
fn every_registration_counts_and_the_last_one_lets_go() {
    let rig = rig();
    let module = rig.small("a");
    let handles = [(); 3].map(|()| rig.manager.register("a", &module).unwrap());
    assert_eq!(rig.manager.registrations(&module), 3);
    rig.run(&module).unwrap();
    let [one, two, three] = handles;
    drop((one, two));
    assert_eq!((rig.manager.registrations(&module), module.is_loaded()), (1, true));
    drop(three);
    assert_eq!((rig.manager.registrations(&module), module.is_loaded()), (0, false));
    assert!(names(&rig).is_empty());
    assert!(misuse(rig.manager.begin(&module)).contains("not registered"));
}

#[test]
fn without_a_handle_a_registration_lasts_until_it_is_taken_back_by_name() {
    let rig = rig();
    let module = rig.small("a");
    rig.manager.register_component("a", &module).unwrap();
    rig.manager.register_component("a", &module).unwrap();
    rig.run(&module).unwrap();
    assert!(rig.manager.unregister_component("a"));
    assert!(module.is_loaded());
    assert!(rig.manager.unregister_component("a"));
    assert!(!module.is_loaded());
    assert!(!rig.manager.unregister_component("a"), "there is none");
    assert!(!rig.manager.unload_component("a"));
}

#[test]
fn a_handle_whose_registration_was_taken_back_counts_for_nothing() {
    let rig = rig();
    let module = rig.small("a");
    let stale = rig.manager.register("a", &module).unwrap();
    assert!(rig.manager.unregister_component("a"));
    let fresh = rig.manager.register("a", &module).unwrap();
    drop(stale);
    assert_eq!(rig.manager.registrations(&module), 1);
    rig.run(&module).unwrap();
    drop(fresh);
    assert!(names(&rig).is_empty());
}

#[test]
fn an_alias_is_on_the_device_once_and_either_name_keeps_it() {
    let rig = rig();
    let module = rig.small("a");
    let first = rig.manager.register("a", &module).unwrap();
    let alone = rig.manager.apply().unwrap().peak.device;
    let second = rig.manager.register("b", &module).unwrap();
    assert_eq!(rig.manager.registrations(&module), 2);
    assert_eq!(rig.manager.apply().unwrap().peak.device, alone);
    rig.run(&module).unwrap();
    drop(first);
    assert_eq!(names(&rig), ["b"]);
    rig.manager.apply().unwrap();
    assert!(module.is_loaded(), "it has another name, and lies as it lay");
    drop(second);
    assert!(names(&rig).is_empty() && !module.is_loaded());
}

/// What plans, statistics, errors and the timeline call a component is one of the names that it has now.
#[test]
fn a_component_is_planned_under_a_name_that_it_has() {
    let rig = rig();
    let module = rig.small("built_as");
    let first = rig.manager.register("first", &module).unwrap();
    let _second = rig.manager.register("second", &module).unwrap();
    rig.run(&module).unwrap();
    let called = |name: &str| {
        let plan = rig.manager.apply().unwrap();
        let holder = plan.components.iter().find(|c| c.same_as.is_none()).unwrap();
        assert_eq!(holder.name, name);
        assert_eq!(rig.manager.stats()[0].0, name);
        assert_eq!(&*module.title(), name);
        assert!(misuse(module.lease(9)).contains(name));
        rig.device.take_started();
        rig.manager.unload(name).unwrap();
        rig.run(&module).unwrap();
        let started = rig.device.take_started();
        assert!(started.iter().all(|copy| copy.starts_with(&format!("{name}."))), "{started:?}");
    };
    called("first");
    assert_eq!(rig.manager.plan().unwrap().component("second").unwrap().same_as.as_deref(), Some("first"));
    drop(first);
    called("second");
    // Another component may have the name of its first load, or the one that it was built with.
    let (other, third) = (rig.small("first"), rig.small("built_as"));
    let _other = rig.manager.register("first", &other).unwrap();
    let _third = rig.manager.register("built_as", &third).unwrap();
    rig.run(&other).unwrap();
    rig.run(&third).unwrap();
    called_twice(&rig, ["built_as", "first", "second"]);
}

fn called_twice(rig: &Rig, expected: [&str; 3]) {
    let plan = rig.manager.apply().unwrap();
    assert_eq!(plan.components.iter().map(|c| &*c.name).collect::<Vec<_>>(), expected);
    assert!(plan.components.iter().all(|c| c.same_as.is_none()));
}

#[test]
fn what_is_said_about_an_alias_is_said_about_its_component() {
    let rig = Rig::empty(ROOMY, Strategy::NoOffload);
    let (module, _rack) = rig.build(&even("a", 10));
    let _first = rig.manager.register("a", &module).unwrap();
    let _second = rig.manager.register("b", &module).unwrap();
    let guard = rig.manager.use_components(&["b"], Strategy::GroupOffload).unwrap();
    assert_eq!(rig.manager.apply().unwrap().component("a").unwrap().strategy, Strategy::GroupOffload);
    drop(guard);
    let mut changed = policy(Strategy::NoOffload);
    changed.strategies.insert("b".to_owned(), Strategy::BlockPin);
    rig.manager.set_policy(changed);
    rig.manager.set_block_pin_count("b", 3);
    let plan = rig.manager.apply().unwrap();
    assert_eq!(plan.component("a").unwrap().resident_count(), 3);
}

#[test]
fn a_given_plan_may_call_a_component_by_any_of_its_names() {
    let rig = rig();
    let module = rig.small("a");
    let only = rig.manager.register("b", &module).unwrap();
    let plan = (*rig.manager.apply().unwrap()).clone();
    drop(only);
    let _first = rig.manager.register("a", &module).unwrap();
    let _second = rig.manager.register("b", &module).unwrap();
    rig.manager.apply_plan(plan.clone()).unwrap();
    rig.run(&module).unwrap();
    let mut twice = plan.clone();
    twice.components.push(mm_plan::ComponentPlan { name: "a".to_owned(), ..plan.components[0].clone() });
    let refusal = rig.manager.apply_plan(twice).unwrap_err().to_string();
    assert!(refusal.contains("one component here"), "{refusal}");
}

#[test]
fn a_module_is_one_managers_at_a_time() {
    let rig = rig();
    let module = rig.small("a");
    let (device, timeline) = (rig.manager.device().clone(), Arc::new(Timeline::default()));
    let other = ModelManager::new(device, timeline, machine(ROOMY), policy(Strategy::Auto)).unwrap();
    let here = rig.manager.register("a", &module).unwrap();
    assert!(misuse(other.register("a", &module)).contains("another manager"));
    drop(here);
    let there = other.register("a", &module).unwrap();
    assert!(misuse(rig.manager.register("a", &module)).contains("another manager"));
    // A manager that goes leaves nothing behind, whatever handles there are.
    other.begin(&module).unwrap().complete().unwrap();
    drop(other);
    assert_eq!(rig.device.memory().in_use, 0);
    let _here = rig.manager.register("a", &module).unwrap();
    drop(there);
    rig.run(&module).unwrap();
}

#[test]
fn a_module_whose_last_registration_ends_while_it_runs_can_be_registered_again() {
    let rig = rig();
    let module = rig.small("a");
    let first = rig.manager.register("a", &module).unwrap();
    let run = rig.manager.begin(&module).unwrap();
    drop(first);
    assert!(names(&rig).is_empty());
    let again = rig.manager.register("b", &module).unwrap();
    run.complete().unwrap();
    assert!(module.is_loaded(), "it is registered");
    rig.run(&module).unwrap();
    drop(again);
    assert_eq!(rig.device.memory().in_use, 0);
}

#[test]
fn a_cached_module_is_shared_and_forgotten_with_its_last_name() {
    let rig = rig();
    let loads = std::cell::Cell::new(0);
    let load = |name: &str| {
        let make = || {
            loads.set(loads.get() + 1);
            Ok(rig.small("t5"))
        };
        rig.manager.load_module(name, "t5@fp16", make).unwrap()
    };
    let (base, refiner) = (load("base.t5"), load("refiner.t5"));
    assert_eq!(loads.get(), 1);
    let module = rig.manager.get_component("base.t5").unwrap();
    assert!(Arc::ptr_eq(&module, &rig.manager.get_component("refiner.t5").unwrap()));
    drop(base);
    drop(load("base.t5"));
    assert_eq!(loads.get(), 1, "the refiner holds it");
    assert!(rig.manager.unload_component("refiner.t5"));
    drop((refiner, module));
    assert_eq!(rig.manager.cache().stats().entries, 0);
    drop(load("base.t5"));
    assert_eq!(loads.get(), 2);
    let failed = rig.manager.load_module("x", "x", || Err(mm_engine::EngineError::Misuse("no file".to_owned())));
    assert!(misuse(failed).contains("no file"));
    assert_eq!(rig.manager.cache().stats().entries, 0, "a failed load is not kept");
}

#[test]
fn many_threads_register_and_let_go() {
    let rig = rig();
    let modules: Vec<_> = ["a", "b", "c", "d"].map(|name| rig.small(name)).into();
    thread::scope(|scope| {
        for worker in 0..8 {
            let (rig, modules) = (&rig, &modules);
            scope.spawn(move || {
                for step in 0..100 {
                    let module = &modules[(worker + step) % 4];
                    let own = rig.manager.register(&format!("{worker}"), module).unwrap();
                    let shared = rig.manager.register(module.name(), module).unwrap();
                    assert!(Arc::ptr_eq(&rig.manager.get_component(own.name()).unwrap(), module));
                    if step % 10 == 0 {
                        rig.run(module).unwrap();
                    }
                    drop((own, shared));
                }
            });
        }
    });
    assert!(names(&rig).is_empty());
    assert_eq!(rig.device.memory().in_use, 0);
    rig.finish();
}
