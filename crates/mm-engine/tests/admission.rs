//! The rules of admission by themselves: fairness, and what is refused, against a twin that tries every order.
#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "../src/manager/admission.rs"]
mod admission;

use admission::{Admission, Answer, Id, Never, PASSES, Share, Shares, Ticket};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A plan of this peak with these components, each in a phase of its own.
fn admission(capacity: u64, bytes: &[u64]) -> Admission<usize> {
    let mut admission = Admission::default();
    admission.put_in_force(shares(capacity, bytes));
    admission
}

fn shares(capacity: u64, bytes: &[u64]) -> Shares {
    let share = |(id, bytes): (usize, &u64)| {
        let share = Share { bytes: *bytes, keep: false, phases: vec![id] };
        (id as Id, share)
    };
    Shares { capacity, of: bytes.iter().enumerate().map(share).collect() }
}

/// Asks, and does what the answer says.
fn ask(admission: &mut Admission<usize>, ticket: Ticket, id: Id) -> Option<bool> {
    match admission.run(ticket, id) {
        Answer::Granted(leave) => {
            leave.into_iter().for_each(|id| admission.dropped(id));
            Some(true)
        }
        Answer::Wait => Some(false),
        Answer::Never(_) => None,
    }
}

fn never(answer: Answer) -> Option<Never> {
    if let Answer::Never(never) = answer { Some(never) } else { None }
}

#[test]
fn a_small_one_passes_a_large_one_a_few_times_and_then_waits_behind_it() {
    let mut admission = admission(10, &[6, 10, 3]);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 0), Some(true));
    let large = admission.join(1);
    assert_eq!(ask(&mut admission, large, 1), Some(false));
    for pass in 0..100 {
        let small = admission.join(2);
        let passes = ask(&mut admission, small, 2) == Some(true);
        assert_eq!(passes, pass < PASSES, "pass {pass}");
        assert_eq!(ask(&mut admission, large, 1), Some(false));
        if !passes {
            admission.end(0);
            assert_eq!(ask(&mut admission, small, 2), Some(false), "it is the large one's turn");
            assert_eq!(ask(&mut admission, large, 1), Some(true));
            return;
        }
        admission.end(2);
    }
    panic!("the large one starves");
}

#[test]
fn who_can_be_served_now_is_passed_only_by_what_is_on_the_device_already() {
    let mut admission = admission(10, &[6, 6, 6]);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 0), Some(true));
    let next = admission.join(1);
    assert_eq!(ask(&mut admission, next, 1), Some(false));
    admission.end(0);
    let other = admission.join(2);
    assert_eq!(ask(&mut admission, other, 2), Some(false), "the other one's turn has come");
    for pass in 0..=PASSES {
        let again = admission.join(0);
        assert_eq!(ask(&mut admission, again, 0), Some(pass < PASSES), "pass {pass}");
        admission.end(0);
    }
    assert_eq!(ask(&mut admission, next, 1), Some(true));
}

#[test]
fn passing_one_that_has_its_room_all_the_same_costs_nothing() {
    let mut admission = admission(10, &[6, 3]);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 0), Some(true));
    let same = admission.join(1);
    assert_eq!(ask(&mut admission, same, 0), Some(false), "it runs already");
    for _ in 0..10 * PASSES {
        let beside = admission.join(2);
        assert_eq!(ask(&mut admission, beside, 1), Some(true));
        admission.end(1);
    }
    admission.end(0);
    let late = admission.join(3);
    assert_eq!(ask(&mut admission, late, 0), Some(false), "whoever asked for it first gets it first");
    assert_eq!(ask(&mut admission, same, 0), Some(true));
}

#[test]
fn who_runs_something_is_served_before_all_others() {
    let mut admission = admission(10, &[6, 10, 4]);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 0), Some(true));
    let large = admission.join(1);
    assert_eq!(ask(&mut admission, large, 1), Some(false));
    for _ in 0..10 * PASSES {
        let inner = admission.join(0);
        assert_eq!(ask(&mut admission, inner, 2), Some(true), "all others wait for it");
        admission.end(2);
    }
}

#[test]
fn what_can_never_be_is_told_by_whose_fault() {
    let mut admission = admission(10, &[6, 6, 4, 11]);
    let tickets = [0, 1, 2].map(|who| admission.join(who));
    assert_eq!(never(admission.run(tickets[2], 3)), Some(Never::TooLarge));
    assert_eq!(ask(&mut admission, tickets[0], 0), Some(true));
    let again = admission.join(0);
    assert_eq!(never(admission.run(again, 0)), Some(Never::Own(0)));
    assert_eq!(never(admission.run(again, 1)), Some(Never::Own(0)), "they don't fit together");
    assert_eq!(ask(&mut admission, tickets[1], 2), Some(true));
    assert_eq!(ask(&mut admission, again, 2), Some(false), "another one's, which will end");
    let other = admission.join(1);
    assert_eq!(never(admission.run(other, 0)), Some(Never::Circle));
    admission.leave(other);
    admission.end(2);
    assert_eq!(ask(&mut admission, again, 2), Some(true));
}

#[test]
fn who_leaves_first_is_idle_used_long_ago_and_of_another_phase() {
    let mut shares = shares(10, &[3, 3, 3, 3]);
    shares.of.get_mut(&0).unwrap().keep = true;
    shares.of.get_mut(&1).unwrap().phases = vec![3];
    let mut admission = Admission::default();
    admission.put_in_force(shares);
    for id in [0, 1, 2] {
        let ticket = admission.join(0);
        assert_eq!(ask(&mut admission, ticket, id), Some(true));
        admission.end(id);
    }
    assert_eq!((admission.held_bytes(), admission.last_used()), (9, Some(2)));
    let ticket = admission.join(0);
    // 0 is to be kept, and 1 is active beside 3.
    assert!(matches!(admission.run(ticket, 3), Answer::Granted(leave) if leave == [2]));
}

#[test]
fn a_plan_changes_when_nothing_it_touches_runs_and_is_not_put_off_for_ever() {
    let mut admission = admission(10, &[6, 3]);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 0), Some(true));
    let (changer, touched) = (admission.join(1), BTreeSet::from([0]));
    assert!(matches!(admission.change(changer, touched.clone(), 10), Answer::Wait));
    let own = admission.join(0);
    assert_eq!(never(admission.change(own, touched.clone(), 10)), Some(Never::Own(0)));
    admission.leave(own);
    let mut runs = 0;
    loop {
        admission.end(0);
        let again = admission.join(2);
        if ask(&mut admission, again, 0) == Some(false) {
            break;
        }
        runs += 1;
        assert!(matches!(admission.change(changer, touched.clone(), 10), Answer::Wait));
    }
    assert_eq!(runs, PASSES);
    assert!(matches!(admission.change(changer, touched, 10), Answer::Granted(leave) if leave == [0]));
}

/// A smaller peak than what runs takes waits for it, and drives out what is idle.
#[test]
fn a_smaller_peak_is_kept_from_the_start() {
    let mut admission = admission(10, &[6, 4]);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 1), Some(true));
    admission.end(1);
    let first = admission.join(0);
    assert_eq!(ask(&mut admission, first, 0), Some(true));
    let changer = admission.join(1);
    assert!(matches!(admission.change(changer, BTreeSet::new(), 5), Answer::Wait));
    assert!(matches!(admission.change(changer, BTreeSet::new(), 6), Answer::Granted(leave) if leave == [1]));
}

/// Threads that run some components, of which some ask for one more.
#[derive(Clone, Debug)]
struct Scene {
    capacity: u64,
    bytes: Vec<u64>,
    runs: BTreeMap<Id, usize>,
    asks: BTreeMap<usize, Id>,
}

fn scenes() -> impl Strategy<Value = Scene> {
    let bytes = prop::collection::vec(1..8u64, 5);
    let runs = prop::collection::btree_map(0..5u64, 0..4usize, 0..5);
    let asks = prop::collection::btree_map(0..4usize, 0..5u64, 1..5);
    (8..24u64, bytes, runs, asks).prop_map(|(capacity, bytes, mut runs, asks)| {
        // Only what fits together runs.
        let mut held = 0;
        runs.retain(|id, _| {
            let fits = held + bytes[*id as usize] <= capacity;
            held += if fits { bytes[*id as usize] } else { 0 };
            fits
        });
        Scene { capacity, bytes, runs, asks }
    })
}

impl Scene {
    fn may_run(&self, id: Id) -> bool {
        let held: u64 = self.runs.keys().map(|id| self.bytes[*id as usize]).sum();
        !self.runs.contains_key(&id) && held + self.bytes[id as usize] <= self.capacity
    }

    /// Whether there is an order of ends and grants in which `who` is served.
    fn is_served_in_some_order(&self, who: usize) -> bool {
        self.asks.iter().any(|(asks, id)| {
            self.may_run(*id) && {
                let mut next = self.clone();
                next.asks.remove(asks);
                next.runs.insert(*id, *asks);
                *asks == who || next.is_served_in_some_order(who)
            }
        }) || self.runs.iter().any(|(id, runs)| {
            !self.asks.contains_key(runs) && {
                let mut next = self.clone();
                next.runs.remove(id);
                next.is_served_in_some_order(who)
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Refused is exactly who can't be served in any order of what may happen.
    #[test]
    fn who_waits_can_be_served_and_who_cannot_is_refused(scene in scenes()) {
        let mut admission = admission(scene.capacity, &scene.bytes);
        for (id, who) in &scene.runs {
            let ticket = admission.join(*who);
            prop_assert_eq!(ask(&mut admission, ticket, *id), Some(true));
        }
        let mut now = Scene { asks: BTreeMap::new(), ..scene.clone() };
        for (who, id) in &scene.asks {
            let ticket = admission.join(*who);
            now.asks.insert(*who, *id);
            match admission.run(ticket, *id) {
                Answer::Granted(leave) => {
                    leave.into_iter().for_each(|id| admission.dropped(id));
                    now.asks.remove(who);
                    now.runs.insert(*id, *who);
                }
                Answer::Wait => prop_assert!(now.is_served_in_some_order(*who), "{} waits for ever in {:?}", who, now),
                Answer::Never(why) => {
                    prop_assert!(!now.is_served_in_some_order(*who), "{} is refused ({:?}) in {:?}", who, why, now);
                    admission.leave(ticket);
                    now.asks.remove(who);
                }
            }
        }
    }

    /// Whatever is asked and ended in whatever order: the peak is never exceeded, no component runs twice, and when
    /// nobody asks any more everyone has been served.
    #[test]
    fn everyone_is_served_within_the_peak(
        capacity in 8..24u64,
        bytes in prop::collection::vec(1..9u64, 5),
        steps in prop::collection::vec((0..4usize, 0..5u64, any::<bool>()), 1..60),
    ) {
        let mut admission = admission(capacity, &bytes);
        let mut runs: BTreeMap<Id, usize> = BTreeMap::new();
        let mut waits: BTreeMap<usize, (Ticket, Id)> = BTreeMap::new();
        let mut steps = steps.into_iter();
        for _ in 0..10_000 {
            let step = steps.next();
            match step {
                Some((who, id, true)) if !waits.contains_key(&who) => {
                    waits.insert(who, (admission.join(who), id));
                }
                Some((who, ..)) if !waits.contains_key(&who) => {
                    let own: Vec<Id> = runs.iter().filter(|(_, w)| **w == who).map(|(id, _)| *id).collect();
                    own.iter().for_each(|id| admission.end(*id));
                    runs.retain(|_, w| *w != who);
                }
                Some(_) => {}
                None => {
                    // Who doesn't wait ends.
                    let over: Vec<Id> = runs.iter().filter(|(_, w)| !waits.contains_key(w)).map(|(id, _)| *id).collect();
                    over.iter().for_each(|id| admission.end(*id));
                    runs.retain(|id, _| !over.contains(id));
                }
            }
            for (who, (ticket, id)) in waits.clone() {
                match admission.run(ticket, id) {
                    Answer::Granted(leave) => {
                        for gone in leave {
                            prop_assert!(!runs.contains_key(&gone));
                            admission.dropped(gone);
                        }
                        prop_assert_eq!(runs.insert(id, who), None);
                        prop_assert!(admission.held_bytes() <= capacity);
                        waits.remove(&who);
                    }
                    Answer::Wait => {}
                    Answer::Never(_) => {
                        prop_assert!(runs.values().any(|w| *w == who), "refused without holding anything");
                        admission.leave(ticket);
                        waits.remove(&who);
                    }
                }
            }
            if step.is_none() && runs.is_empty() && waits.is_empty() {
                return Ok(());
            }
        }
        prop_assert!(false, "{:?} wait for ever beside {:?}", waits, runs);
    }
}
