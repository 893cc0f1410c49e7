//! What logging an event costs, also when four threads do so at once, and what a log that drops its oldest events costs.
#![allow(missing_docs)]

use mm_engine::timeline::{Kind, Label, Timeline};

/// Events of one sample: enough to see the log grow, few enough to be kept.
const EVENTS: usize = 10_000;

fn main() {
    divan::main();
}

fn label() -> Label {
    Label { component: "transformer".into(), group: "layers.3".into() }
}

/// As a group's end does: reads the clock and logs.
fn log(timeline: &Timeline, label: &Label, start: u64) -> u64 {
    timeline.span(Kind::Compute, 0, label, start, 0);
    start + 1
}

#[divan::bench(sample_count = 50, sample_size = 1)]
fn growing(bencher: divan::Bencher<'_, '_>) {
    let label = label();
    bencher
        .counter(divan::counter::ItemsCount::new(EVENTS))
        .with_inputs(Timeline::default)
        .bench_refs(|timeline| (0..EVENTS).fold(0, |start, _| log(timeline, &label, start)));
}

#[divan::bench(threads = [1, 4])]
fn full(bencher: divan::Bencher<'_, '_>) {
    let (timeline, label) = (Timeline::new(EVENTS), label());
    (0..EVENTS).fold(0, |start, _| log(&timeline, &label, start));
    bencher.bench(|| log(&timeline, &label, 0));
}

#[divan::bench]
fn clock() -> u64 {
    static TIMELINE: std::sync::LazyLock<Timeline> = std::sync::LazyLock::new(Timeline::default);
    TIMELINE.now()
}
