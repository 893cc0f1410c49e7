//! Every tensor on the way to five images, against diffusers' in f32.

mod common;

use candle_core::DType;
use common::{golden, load, relative_error, shapes};

const BOUND: f64 = 1e-3;

fn compare(case: usize) {
    let golden = golden(case);
    let generated = load(shapes(), DType::F32).unwrap().generate(&golden.request, |_| ()).unwrap();
    let trace = generated.trace.unwrap();
    let ids = |t: &candle_core::Tensor| t.to_vec1::<i64>().unwrap();
    assert_eq!(ids(&trace.tensors["input_ids"]), ids(&golden.tensors["input_ids"]));

    let mut names: Vec<_> = golden.tensors.keys().collect();
    names.sort();
    assert_eq!(names, trace.tensors.keys().collect::<Vec<_>>());
    for name in names.into_iter().filter(|name| *name != "input_ids") {
        let (ours, theirs) = (&trace.tensors[name], &golden.tensors[name]);
        let error = relative_error(ours, theirs);
        println!("case {case} {name}: {error:.1e}");
        assert!(error < BOUND, "case {case} {name}: {error}");
    }
    let steps = golden.request.steps as usize;
    for step in 0..steps {
        let at = |t: &candle_core::Tensor| t.get(step).unwrap();
        let error = relative_error(&at(&trace.tensors["latents"]), &at(&golden.tensors["latents"]));
        assert!(error < BOUND, "case {case} latents after step {step}: {error}");
    }
}

#[test]
fn red_circle() {
    compare(0);
}

#[test]
fn blue_triangle() {
    compare(1);
}

/// Guidance 1 still guides: the reference guides above zero.
#[test]
fn yellow_square() {
    compare(2);
}

#[test]
fn green_circle() {
    compare(3);
}

#[test]
fn purple_triangle() {
    compare(4);
}

#[test]
fn half_precision_draws_the_same_image() {
    let golden = golden(0);
    for (dtype, least, most) in [(DType::BF16, 1e-4, 0.02), (DType::F16, 1e-5, 0.002)] {
        let generated = load(shapes(), dtype).unwrap().generate(&golden.request, |_| ()).unwrap();
        let error = relative_error(&generated.image, &golden.tensors["image"]);
        println!("{dtype:?} image: {error:.1e}");
        // Too close would mean that it was computed in f32.
        assert!(error > least && error < most, "{dtype:?}: {error}");
    }
}
