//! A request that can't be fulfilled is refused before anything is computed, and the message says what would work.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{load, shapes};
use mm_diffusion::{Error, Request};

fn refused(change: impl FnOnce(&mut Request)) -> String {
    let mut request =
        Request { prompt: "a small red circle".into(), steps: 1, width: 64, height: 64, ..Request::default() };
    change(&mut request);
    let pipeline = load(shapes(), DType::F32).unwrap();
    let mut passes = 0;
    match pipeline.generate(&request, |_| passes += 1) {
        Err(error @ Error::Request { .. }) => {
            assert_eq!(passes, 0, "computed before refusing: {error}");
            error.to_string()
        }
        other => panic!("{:?}", other.map(|_| "an image")),
    }
}

#[test]
fn steps() {
    assert_eq!(refused(|r| r.steps = 0), "steps = 0: expected 1 to 1000");
    assert_eq!(refused(|r| r.steps = u32::MAX), "steps = 4294967295: expected 1 to 1000");
}

#[test]
fn size() {
    assert_eq!(refused(|r| r.width = 0), "width = 0: expected a multiple of 8 pixels");
    assert_eq!(refused(|r| r.height = 0), "height = 0: expected a multiple of 8 pixels");
    assert_eq!(refused(|r| r.width = 60), "width = 60: expected a multiple of 8 pixels");
    assert_eq!(refused(|r| r.height = 513), "height = 513: expected a multiple of 8 pixels");
    assert_eq!(refused(|r| r.height = 520), "height = 520: the model has positions for at most 512 pixels");
    assert_eq!(
        refused(|r| r.width = u32::MAX - 7),
        "width = 4294967288: the model has positions for at most 512 pixels"
    );
}

#[test]
fn guidance() {
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        let message = refused(|r| r.guidance = bad);
        assert_eq!(message, format!("guidance = {bad}: expected zero (off) or a positive number"));
    }
}

#[test]
fn initial_latents() {
    let message =
        refused(|r| r.initial_latents = Some(Tensor::zeros((1, 8, 16, 8), DType::F32, &Device::Cpu).unwrap()));
    assert_eq!(message, "initial_latents = [1, 8, 16, 8]: expected the shape [1, 8, 16, 16]");
}

#[test]
fn a_prompt_beyond_the_positions() {
    let message = refused(|r| r.prompt = "red ".repeat(97));
    assert_eq!(message, "prompt = 97 tokens: the model has positions for at most 96 tokens");
    let message = refused(|r| (r.negative, r.guidance) = ("red ".repeat(1000), 2.0));
    // 512 are left after truncation.
    assert_eq!(message, "negative = 512 tokens: the model has positions for at most 96 tokens");
}

#[test]
fn a_prompt_without_tokens() {
    assert_eq!(refused(|r| r.prompt = " ".into()), "prompt = \" \": no token is left of it: say what to draw");
}
