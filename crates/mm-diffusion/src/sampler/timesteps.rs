//! At which timesteps of its training a model is asked.

use super::config::{Config, Kind, Spacing};
use crate::Error;

/// One for each pass, from noise to image.
pub(super) fn of(config: &Config, steps: u32) -> Result<Vec<f64>, Error> {
    let train = config.num_train_timesteps;
    let most = match config.spacing() {
        // The offset must leave the last one within training.
        Spacing::Leading if config.steps_offset > 0 => train - config.steps_offset,
        _ => train,
    };
    if !(1..=most).contains(&steps) {
        return Err(Error::request("steps", steps, format!("expected 1 to {most}")));
    }
    let mut timesteps: Vec<f64> = match config.spacing() {
        Spacing::Leading => {
            let stride = train / steps;
            (0..steps).rev().map(|step| f64::from(step * stride + config.steps_offset)).collect()
        }
        Spacing::Trailing => {
            let stride = f64::from(train) / f64::from(steps);
            (0..steps).map(|step| (f64::from(train) - f64::from(step) * stride).round_ties_even() - 1.0).collect()
        }
        Spacing::Linspace => {
            let stride = f64::from(train - 1) / f64::from(steps.max(2) - 1);
            let exact = (0..steps).rev().map(|step| f64::from(step) * stride);
            match config.kind {
                // Between timesteps too, in single precision.
                Kind::Euler => exact.map(|timestep| f64::from(timestep as f32)).collect(),
                _ => exact.map(f64::round_ties_even).collect(),
            }
        }
    };
    if timesteps.first().is_some_and(|first| *first > f64::from(train - 1)) {
        return Err(Error::request(
            "steps",
            steps,
            "the scheduler's steps_offset leads beyond its timesteps: take fewer",
        ));
    }
    if config.kind == Kind::Pndm
        && let Some(&second) = timesteps.get(1)
    {
        timesteps.insert(1, second);
    }
    Ok(timesteps)
}
