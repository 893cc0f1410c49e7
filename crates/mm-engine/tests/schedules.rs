//! The gate and the rules of admission, the very sources, under a checker of schedules: threads in random orders, many thousand
//! times. A wait that never ends, and a wake-up that is lost, are deadlocks, which the checker finds.
#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "../src/manager/admission.rs"]
mod admission;
#[path = "../src/manager/gate.rs"]
mod gate;

/// What the gate is built on, here.
mod sync {
    pub(super) use shuttle::sync::MutexGuard;

    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    #[derive(Default)]
    pub(super) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap()
        }

        pub(super) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}

use admission::{Admission, Answer, Id, Never, Share, Shares};
use gate::{Gate, Line};
use shuttle::{rand::Rng, thread};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

/// Bytes of each component, by plan: together they never fit, some pairs do.
const PLANS: [(u64, [u64; 4]); 2] = [(10, [4, 5, 6, 9]), (8, [4, 3, 5, 8])];

fn shares(plan: usize) -> Shares {
    let (capacity, bytes) = PLANS[plan];
    let share = |(id, bytes): (usize, &u64)| {
        let share = Share { bytes: *bytes, keep: id == 0, phases: vec![id / 2] };
        (id as Id, share)
    };
    Shares { capacity, of: bytes.iter().enumerate().map(share).collect() }
}

struct State {
    admission: Admission<usize>,
    plan: usize,
    running: BTreeMap<Id, usize>,
    on_device: BTreeMap<Id, u64>,
}

impl Line for State {
    type Who = usize;

    fn join(&mut self, who: usize) -> u64 {
        self.admission.join(who)
    }

    fn leave(&mut self, ticket: u64) {
        self.admission.leave(ticket);
    }
}

impl State {
    fn new() -> Self {
        let mut admission = Admission::default();
        admission.put_in_force(shares(0));
        Self { admission, plan: 0, running: BTreeMap::new(), on_device: BTreeMap::new() }
    }

    fn take_off(&mut self, leave: Vec<Id>) {
        for id in leave {
            assert!(!self.running.contains_key(&id), "{id} was to leave while it runs");
            assert!(self.on_device.remove(&id).is_some());
            self.admission.dropped(id);
        }
    }

    fn check(&self) {
        let held: u64 = self.on_device.values().sum();
        assert!(held <= PLANS[self.plan].0, "{held} bytes on the device");
        assert_eq!(held, self.admission.held_bytes());
    }
}

struct Manager {
    gate: Gate<State>,
    refused: AtomicUsize,
}

impl Manager {
    fn new() -> Arc<Self> {
        Arc::new(Self { gate: Gate::new(State::new()), refused: AtomicUsize::new(0) })
    }

    fn begin(&self, who: usize, id: Id) -> Result<(), Never> {
        let outcome = self.gate.queue(who, |state, ticket| match state.admission.run(ticket, id) {
            Answer::Granted(leave) => {
                assert_eq!(state.running.insert(id, who), None, "two run {id} at once");
                state.take_off(leave);
                state.on_device.insert(id, PLANS[state.plan].1[id as usize]);
                state.check();
                Ok(Some(()))
            }
            Answer::Wait => Ok(None),
            Answer::Never(never) => Err(never),
        });
        if outcome.is_err() {
            self.refused.fetch_add(1, SeqCst);
        }
        outcome
    }

    fn end(&self, id: Id) {
        self.gate.update(|state| {
            state.running.remove(&id);
            state.admission.end(id);
        });
    }

    fn change(&self, who: usize, plan: usize) -> Result<(), Never> {
        self.gate.queue(who, |state, ticket| {
            if state.plan == plan {
                return Ok(Some(()));
            }
            let differs = |id: &Id| PLANS[0].1[*id as usize] != PLANS[1].1[*id as usize];
            let touched: BTreeSet<Id> = (0..4).filter(differs).collect();
            match state.admission.change(ticket, touched, PLANS[plan].0) {
                Answer::Granted(leave) => {
                    state.take_off(leave);
                    state.admission.put_in_force(shares(plan));
                    state.plan = plan;
                    state.check();
                    Ok(Some(()))
                }
                Answer::Wait => Ok(None),
                Answer::Never(never) => Err(never),
            }
        })
    }

    fn check_over(&self) {
        self.gate.read(|state| {
            assert!(state.running.is_empty() && state.admission.running().next().is_none());
            assert_eq!(state.admission.waiting(), 0, "somebody is still in line");
        });
    }
}

/// So many threads do this, in ten thousand random orders; each sees a manager of all of them, and its own number.
fn in_any_order(threads: usize, work: impl Fn(&Manager, usize) + Copy + Send + Sync + 'static, over: fn(&Manager)) {
    shuttle::check_random(
        move || {
            let manager = Manager::new();
            let run = |who: usize| {
                let manager = manager.clone();
                thread::spawn(move || work(&manager, who))
            };
            let running: Vec<_> = (0..threads).map(run).collect();
            running.into_iter().for_each(|thread| thread.join().unwrap());
            manager.check_over();
            over(&manager);
        },
        10_000,
    );
}

fn any() -> Id {
    shuttle::rand::thread_rng().gen_range(0..4)
}

/// Nobody holds one thing and asks for another: everyone is served.
#[test]
fn runs_of_many_threads_are_all_served() {
    let work = |manager: &Manager, who| {
        for _ in 0..3 {
            let id = any();
            manager.begin(who, id).expect("nobody waits for a thread that waits");
            thread::yield_now();
            manager.end(id);
        }
    };
    in_any_order(4, work, |_| {});
}

/// Runs inside runs: served, or told that it can never be; never a wait without end.
#[test]
fn runs_inside_runs_end_or_are_refused() {
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    let work = |manager: &Manager, who| {
        for _ in 0..2 {
            let (outer, inner) = (any(), any());
            manager.begin(who, outer).expect("it holds nothing yet");
            if manager.begin(who, inner).is_ok() {
                thread::yield_now();
                manager.end(inner);
            }
            manager.end(outer);
        }
    };
    in_any_order(4, work, |manager| {
        REFUSED.fetch_add(manager.refused.load(SeqCst), SeqCst);
    });
    assert!(REFUSED.load(SeqCst) > 100, "the threads hardly met");
}

/// Plans change while components run, also by threads that run some.
#[test]
fn plans_change_between_runs() {
    let work = |manager: &Manager, who| {
        for step in 0..2 {
            let id = any();
            manager.begin(who, id).expect("it holds nothing yet");
            if who == 0 {
                // A change of what runs itself can't be; one of what others run is awaited.
                let _ = manager.change(who, 1 - step);
            } else {
                let inner = any();
                if manager.begin(who, inner).is_ok() {
                    manager.end(inner);
                }
            }
            manager.end(id);
            if who == 1 {
                manager.change(who, step).expect("it holds nothing");
            }
        }
    };
    in_any_order(3, work, |_| {});
}
