//! Every sampler against diffusers', in `tests/golden/samplers.json`.

use super::{Config, Kind, Sampler};
use candle_core::{Device, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    class: String,
    config: serde_json::Value,
    steps: u32,
    /// The first eight.
    timesteps: Vec<f32>,
    /// What the first pass comes to, and the last.
    first: Vec<f32>,
    last: Vec<f32>,
}

fn sampler(class: &str, config: &serde_json::Value) -> Sampler {
    let mut config: Config = serde_json::from_value(config.clone()).unwrap();
    config.kind = match class {
        "DDIMScheduler" => Kind::Ddim,
        "PNDMScheduler" => Kind::Pndm,
        _ => Kind::Euler,
    };
    Sampler::new(config)
}

fn close(what: &str, got: &Tensor, expected: &[f32]) {
    let got = got.to_vec1::<f32>().unwrap();
    let most = expected.iter().fold(1.0, |most: f32, x| most.max(x.abs()));
    let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart <= 1e-5 * most, "{what}: {got:?} for {expected:?}");
}

#[test]
fn samples_equal_diffusers_own() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/samplers.json")).unwrap();
    assert!(cases.len() > 20);
    for Case { class, config, steps, timesteps, first, last } in cases {
        let what = format!("{class} of {steps} steps, {config}");
        let sampler = sampler(&class, &config);
        let mut run = sampler.start(steps).unwrap();
        assert_eq!(run.timesteps.len(), sampler.passes(steps) as usize, "{what}");
        let apart = run.timesteps.iter().zip(&timesteps).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{what}: {:?} for {timesteps:?}", run.timesteps);
        let mut sample = (Tensor::new(&[0.3f32, -1.2, 2.1], &Device::Cpu).unwrap() * run.initial_scale()).unwrap();
        for pass in 0..run.timesteps.len() {
            let given = (run.input(pass, &sample).unwrap() * 0.5).unwrap();
            let noise = [1f32, 2.0, 3.0].map(|x| (x + pass as f32).sin());
            let output = (given + Tensor::new(&noise, &Device::Cpu).unwrap()).unwrap();
            sample = run.step(pass, &sample, &output).unwrap();
            if pass == 0 {
                close(&format!("{what}, first"), &sample, &first);
            }
        }
        close(&what, &sample, &last);
        assert!(run.step(run.timesteps.len(), &sample, &sample).is_err(), "{what}: one pass more");
    }
}

#[test]
fn steps_that_do_not_fit_are_refused() {
    let leading = serde_json::json!({ "steps_offset": 10, "timestep_spacing": "leading" });
    for class in ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"] {
        let sampler = sampler(class, &leading);
        for steps in [0, 500, 995, 1000, u32::MAX] {
            assert!(sampler.start(steps).is_err(), "{class}: {steps}");
        }
        assert!(sampler.start(50).is_ok());
    }
}
