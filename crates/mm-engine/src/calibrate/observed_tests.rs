//! From events to figures.

use super::observed::{Observed, Part};
use crate::timeline::{Event, Kind, Label};
use mm_plan::Links;
use std::sync::Arc;

const KB: u64 = 1000;

/// Three groups of 1 MB, stored in half of that, and a rest of 10 kB.
fn watched() -> Observed {
    let mut observed = Observed::default();
    observed.watch(&name(), parts());
    observed
}

fn name() -> Arc<str> {
    "transformer".into()
}

fn parts() -> Vec<Part> {
    let part = |name: &str, bytes| Part { name: name.into(), bytes, stored: bytes / 2 };
    vec![part("layers.0", KB * KB), part("layers.1", KB * KB), part("layers.2", KB * KB), part("rest", 10 * KB)]
}

fn event(kind: Kind, group: &str, start_ns: u64, ns: u64, bytes: u64) -> Event {
    let label = Some(Label { component: name(), group: group.into() });
    Event { kind, lane: 0, label, start_ns, end_ns: start_ns + ns, bytes, in_use: None }
}

fn copy(group: &str, start_ns: u64, ns: u64) -> Event {
    event(Kind::Copy, group, start_ns, ns, KB * KB)
}

fn compute(group: &str, start_ns: u64, ns: u64) -> Event {
    event(Kind::Compute, group, start_ns, ns, 0)
}

/// A pass of three groups from `start` on, each computing for `ns`, with 5 ns for the rest after each.
fn pass(observed: &mut Observed, start: u64, ns: u64) -> u64 {
    let mut now = start;
    for group in ["layers.0", "layers.1", "layers.2"] {
        observed.read(&[compute(group, now, ns)]);
        now += ns + 5;
    }
    observed.pass("transformer", start, now, true);
    now
}

fn compute_ns(observed: &Observed) -> Option<Vec<Option<u64>>> {
    observed.figures(false).components.remove("transformer").map(|figures| figures.compute_ns)
}

#[test]
fn a_pass_tells_what_each_group_and_the_rest_took() {
    let mut observed = watched();
    assert_eq!(compute_ns(&observed), None);
    let now = pass(&mut observed, 100, 1000);
    assert_eq!(compute_ns(&observed), Some(vec![Some(1000); 3]), "one pass is better than none");
    let now = pass(&mut observed, now, 40);
    pass(&mut observed, now, 42);
    let figures = &observed.figures(false).components["transformer"];
    assert_eq!((&figures.compute_ns, figures.rest_ns, figures.passes), (&vec![Some(40); 3], Some(15), 3));
}

#[test]
fn stalls_are_not_compute_and_groups_may_come_twice_or_not_at_all() {
    let mut observed = watched();
    observed.read(&[
        event(Kind::Stall, "layers.0", 0, 50, 0),
        compute("layers.0", 50, 10),
        event(Kind::Stall, "layers.1", 70, 20, 0),
        compute("layers.1", 60, 40),
        compute("layers.0", 100, 7),
    ]);
    observed.pass("transformer", 0, 110, true);
    let figures = &observed.figures(false).components["transformer"];
    assert_eq!((&figures.compute_ns, figures.rest_ns), (&vec![Some(17), Some(20), Some(0)], Some(3)));
}

#[test]
fn a_pass_that_does_not_count_teaches_nothing() {
    let mut observed = watched();
    observed.read(&[compute("layers.0", 10, 1000)]);
    observed.interrupted("transformer");
    observed.read(&[compute("layers.0", 3000, 0)]);
    observed.pass("transformer", 3000, 3000, true);
    assert_eq!((observed.passes("transformer"), compute_ns(&observed)), (0, None));
    // A lease that outlived its pass belongs to none.
    observed.read(&[compute("layers.1", 3000, 5000), compute("layers.0", 9000, 10)]);
    observed.pass("transformer", 9000, 9010, true);
    assert_eq!(compute_ns(&observed), Some(vec![Some(10), Some(0), Some(0)]));
}

#[test]
fn where_leases_tell_no_compute_passes_are_counted_all_the_same() {
    let mut observed = watched();
    observed.read(&[compute("layers.0", 10, 1000)]);
    observed.pass("transformer", 0, 2000, false);
    let figures = &observed.figures(false).components["transformer"];
    assert_eq!((&figures.compute_ns, figures.rest_ns, figures.passes), (&vec![None; 3], None, 1));
}

#[test]
fn a_component_without_groups_is_all_rest() {
    let mut observed = Observed::default();
    observed.watch(&name(), vec![parts().remove(3)]);
    observed.read(&[compute("rest", 10, 90)]);
    observed.pass("transformer", 10, 100, true);
    let figures = &observed.figures(false).components["transformer"];
    assert_eq!((&figures.compute_ns, figures.rest_ns), (&vec![], Some(90)));
}

#[test]
fn first_copies_are_told_apart() {
    let mut observed = watched();
    // The first time 1 GB/s ...
    observed.read(&[copy("layers.0", 0, 1_000_000), copy("layers.1", 2_000_000, 1_000_000)]);
    let links = Links { h2d: 1_000_000_000, staging: None, disk: None, copy_fixed_ns: 0 };
    assert_eq!(observed.figures(false).links, Some(links), "nothing else tells");
    // ... and then 4: it was the disk, by stored bytes.
    observed.read(&[copy("layers.0", 10_000_000, 250_000), copy("layers.1", 11_000_000, 250_000)]);
    let links = Links { h2d: 4_000_000_000, disk: Some(500_000_000), ..links };
    assert_eq!(observed.figures(false).links, Some(links));
    assert_eq!(observed.figures(true).links, Some(Links { disk: Some(2_000_000_000), ..links }), "every time");
}

#[test]
fn a_first_copy_that_was_as_fast_was_no_disk() {
    let mut observed = watched();
    observed.read(&[copy("layers.0", 0, 400_000), copy("layers.0", 10_000_000, 250_000)]);
    assert_eq!(observed.figures(false).links.and_then(|links| links.disk), None);
}

#[test]
fn a_group_copied_slab_by_slab_is_copied_the_first_time_till_all_of_it_was() {
    let mut observed = watched();
    let half = |start, ns| event(Kind::Copy, "layers.0", start, ns, KB * KB / 2);
    observed.read(&[half(0, 9_000_000), half(9_000_000, 9_000_000)]);
    observed.read(&[half(20_000_000, 500_000), half(30_000_000, 500_000)]);
    assert_eq!(observed.figures(false).links.map(|links| links.h2d), Some(1_000_000_000));
}

#[test]
fn staging_has_a_rate_of_its_own() {
    let mut observed = watched();
    observed.read(&[event(Kind::Stage, "layers.0", 0, 1_000_000, KB * KB)]);
    let staged = Links { h2d: 0, staging: Some(1_000_000_000), disk: None, copy_fixed_ns: 0 };
    assert_eq!(observed.figures(false).links, Some(staged));
    observed.read(&[event(Kind::Stage, "layers.0", 9_000_000, 200_000, KB * KB), copy("layers.0", 9_200_000, 100_000)]);
    let both = Links { h2d: 10_000_000_000, staging: Some(5_000_000_000), disk: Some(500_000_000), copy_fixed_ns: 0 };
    assert_eq!(observed.figures(false).links, Some(both));
}

#[test]
fn the_largest_activation_counts() {
    let mut observed = watched();
    [5, 9, 7].into_iter().for_each(|bytes| observed.activation("transformer", bytes));
    let figures = &observed.figures(false).components["transformer"];
    assert_eq!((figures.activation, figures.passes), (Some(9), 0));
}

#[test]
fn strangers_are_ignored_and_another_component_of_that_name_begins_anew() {
    let mut observed = watched();
    pass(&mut observed, 0, 10);
    observed.watch(&name(), parts());
    assert_eq!(observed.passes("transformer"), 1, "it is the same");
    observed.watch(&name(), parts().split_off(1));
    assert_eq!(observed.passes("transformer"), 0);
    let stranger = Label { component: "vae".into(), group: "rest".into() };
    observed.read(&[Event { label: Some(stranger), ..copy("rest", 0, 10) }, copy("layers.9", 0, 10)]);
    observed.read(&[Event { label: None, ..copy("rest", 0, 10) }]);
    observed.pass("vae", 0, 10, true);
    observed.activation("vae", 1);
    assert_eq!(observed.figures(false).links, None);
}
