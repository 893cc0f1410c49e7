//! What the process really holds follows the budget: every allocation is counted.
//!
//! One test: the counter is the process's.

mod common;

use candle_core::DType;
use common::{folder, manager, options, request, weight_bytes};
use mm_diffusion::{Loader, Unmanaged, ZImage};
use mm_plan::Strategy;
use peak_alloc::PeakAlloc;
use std::collections::BTreeMap;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Room for what is neither weights nor activations: headers, thread stacks, logs.
const SLACK: usize = 1 << 20;

/// Peak of live heap bytes above `baseline` while loading, and in the passes of each component.
fn peaks(baseline: usize, loader: &impl Loader) -> BTreeMap<&'static str, usize> {
    HEAP.reset_peak_usage();
    let pipeline = ZImage::load(&folder(), &options(DType::F32), loader).unwrap();
    let mut peaks = BTreeMap::from([("load", HEAP.peak_usage() - baseline)]);
    HEAP.reset_peak_usage();
    let image = pipeline.generate(&request(3), |progress| {
        let peak = peaks.entry(progress.component).or_default();
        *peak = HEAP.peak_usage().saturating_sub(baseline).max(*peak);
        HEAP.reset_peak_usage();
    });
    image.unwrap();
    peaks
}

#[test]
fn weights_held_never_exceed_the_budget() {
    let weights = weight_bytes(DType::F32) as usize;
    let budget = weights * 3 / 10;
    // Once without counting: thread pools and lazy tables stay.
    peaks(0, &Unmanaged);
    let baseline = HEAP.current_usage();
    let plain = peaks(baseline, &Unmanaged);
    let manager = manager(budget as u64, Strategy::Auto);
    let managed = peaks(HEAP.current_usage(), &manager);
    println!("weights {weights}, budget {budget}, unmanaged {plain:?}, managed {managed:?}");
    assert!(managed["load"] <= budget + SLACK, "loading held {} of a budget of {budget}", managed["load"]);
    for component in common::COMPONENTS {
        assert!(plain[component] >= weights, "unmanaged, everything is held");
        let activations = plain[component] - weights;
        let held = managed[component].saturating_sub(activations);
        assert!(held <= budget + SLACK, "{component}: {held} bytes of weights in a budget of {budget}");
    }
}
