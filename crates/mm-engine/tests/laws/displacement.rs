//! Another module takes a name over.

use crate::{Dut, common};
use common::misuse;
use mm_engine::Device;
use mm_plan::Strategy;
use std::sync::Arc;

type Rig = common::Rig<Dut>;

fn rig() -> Rig {
    Rig::empty(1 << 20, Strategy::NoOffload)
}

#[test]
fn only_that_name_is_to_be_planned_anew() {
    let rig = rig();
    let (a, b, new) = (rig.small("a"), rig.small("b"), rig.small("a"));
    let old = rig.manager.register("a", &a).unwrap();
    let _b = rig.manager.register("b", &b).unwrap();
    rig.run(&a).unwrap();
    rig.run(&b).unwrap();
    let allocations = rig.device.memory().allocations;
    let _new = rig.manager.register("a", &new).unwrap();
    assert_eq!(rig.manager.component_strategy("a"), None);
    assert_eq!(rig.manager.component_strategy("b"), Some(Strategy::NoOffload));
    assert_eq!(rig.manager.applied_strategy(), Some(Strategy::NoOffload));
    assert!(!a.is_loaded() && b.is_loaded());
    rig.run(&b).unwrap();
    assert_eq!(rig.device.memory().allocations, allocations, "b stayed as it was");
    rig.run(&new).unwrap();
    drop(old);
}

#[test]
fn one_that_nobody_holds_any_more_leaves_the_device_and_the_cache() {
    let rig = rig();
    let old = rig.manager.load_module("transformer", "v1", || Ok(rig.small("transformer"))).unwrap();
    let module = rig.manager.get_component("transformer").unwrap();
    rig.run(&module).unwrap();
    let new = rig.small("transformer");
    let _new = rig.manager.register("transformer", &new).unwrap();
    assert!(!module.is_loaded());
    assert_eq!((rig.manager.registrations(&module), rig.manager.cache().stats().entries), (0, 0));
    assert!(misuse(rig.manager.begin(&module)).contains("another component took its name"));
    drop(old);
    assert!(Arc::ptr_eq(&rig.manager.get_component("transformer").unwrap(), &new));
    rig.run(&new).unwrap();
}

#[test]
fn one_with_another_name_stays_where_it_is() {
    let rig = rig();
    let (old, new) = (rig.small("a"), rig.small("a"));
    let first = rig.manager.register("a", &old).unwrap();
    let alias = rig.manager.register("b", &old).unwrap();
    rig.run(&old).unwrap();
    let taken = rig.manager.register("a", &new).unwrap();
    assert!(old.is_loaded());
    assert_eq!(rig.manager.registrations(&old), 1);
    rig.run(&old).unwrap();
    rig.run(&new).unwrap();
    let plan = rig.manager.plan().unwrap();
    assert_eq!(
        plan.components.iter().map(|c| (&*c.name, c.same_as.is_some())).collect::<Vec<_>>(),
        [("a", false), ("b", false)]
    );
    assert_eq!((&*old.title(), &*new.title()), ("b", "a"));
    // The displaced name's handle is not the new one's, and the new one's going doesn't bring the old one back.
    drop(first);
    assert!(Arc::ptr_eq(&rig.manager.get_component("a").unwrap(), &new));
    drop(taken);
    assert!(rig.manager.get_component("a").is_none());
    drop(alias);
    assert_eq!(rig.device.memory().in_use, 0);
}

#[test]
fn one_held_twice_under_the_name_goes_with_both() {
    let rig = rig();
    let (old, new) = (rig.small("a"), rig.small("a"));
    let handles = [(); 2].map(|()| rig.manager.register("a", &old).unwrap());
    rig.run(&old).unwrap();
    let _new = rig.manager.register("a", &new).unwrap();
    assert_eq!((rig.manager.registrations(&old), rig.device.memory().in_use), (0, 0));
    drop(handles);
    assert_eq!(rig.manager.registrations(&new), 1);
}

#[test]
fn one_that_runs_ends_its_run_first() {
    let rig = rig();
    let (old, new) = (rig.small("a"), rig.small("a"));
    let _old = rig.manager.register("a", &old).unwrap();
    let run = rig.manager.begin(&old).unwrap();
    let _new = rig.manager.register("a", &new).unwrap();
    for group in 0..2 {
        drop(old.lease(group).unwrap());
    }
    assert!(old.is_loaded());
    run.complete().unwrap();
    assert!(!old.is_loaded());
    rig.run(&new).unwrap();
}

#[test]
fn it_may_take_its_name_back() {
    let rig = rig();
    let (one, two) = (rig.small("a"), rig.small("a"));
    for _ in 0..3 {
        for module in [&one, &two] {
            std::mem::forget(rig.manager.register("a", module).unwrap());
            rig.run(module).unwrap();
            assert!(Arc::ptr_eq(&rig.manager.get_component("a").unwrap(), module));
        }
    }
    assert_eq!((rig.manager.registrations(&one), rig.manager.registrations(&two)), (0, 1));
}

#[test]
fn who_takes_no_name_over_is_told_and_nothing_changed() {
    let rig = rig();
    let (old, new) = (rig.small("transformer"), rig.small("transformer"));
    let registration = rig.manager.register_new("transformer", &old).unwrap();
    let again = rig.manager.register_new("transformer", &old).unwrap();
    assert!(misuse(rig.manager.register_new("transformer", &new)).contains("choose another name"));
    rig.run(&old).unwrap();
    drop((registration, again));
    let _registration = rig.manager.register_new("transformer", &new).unwrap();
    rig.run(&new).unwrap();
    assert!(misuse(rig.run(&old)).contains("not registered"));
}
