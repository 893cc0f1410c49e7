//! `DDPMWuerstchenScheduler`: from noise to image with new noise on the way, at levels between 1 and 0.

use crate::{Error, check::Check, folder::Folder};
use candle_core::{Result, Tensor};
use serde::Deserialize;
use std::f64::consts::FRAC_PI_2;

/// Nobody asks for more, and each is a pass.
const MOST_STEPS: u32 = 10_000;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Schedule {
    scaler: f64,
    s: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { scaler: 1.0, s: 0.008 }
    }
}

impl Schedule {
    /// Reads `scheduler_config.json` in this folder.
    pub(crate) fn open(folder: &Folder, component: &str) -> std::result::Result<Self, Error> {
        folder.expect(component, &["DDPMWuerstchenScheduler"])?;
        let (schedule, file) = folder.config::<Self>(&format!("{component}/scheduler_config.json"))?;
        Check(&file).positive("scaler", schedule.scaler)?;
        Check(&file).positive("s", schedule.s)?;
        Ok(schedule)
    }

    /// Noise levels from 1 to 0: one more than steps.
    pub(crate) fn levels(steps: u32) -> std::result::Result<Vec<f32>, Error> {
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::request("steps", steps, format!("expected 1 to {MOST_STEPS}")));
        }
        Ok((0..=steps).map(|step| 1.0 - step as f32 / steps as f32).collect())
    }

    /// From one level to a lower one. `noise` is new, and none is left at level 0.
    pub(crate) fn step(
        &self,
        (level, next): (f32, f32),
        sample: &Tensor,
        output: &Tensor,
        noise: &Tensor,
    ) -> Result<Tensor> {
        let (now, then) = (self.alpha(level), self.alpha(next));
        let kept = now / then;
        let mean = ((sample - (output * ((1.0 - kept) / (1.0 - now).sqrt()))?)? * (1.0 / kept).sqrt())?;
        if next == 0.0 {
            return Ok(mean);
        }
        mean + (noise * ((1.0 - kept) * (1.0 - then) / (1.0 - now)).sqrt())?
    }

    /// Share of the image at a level.
    fn alpha(&self, level: f32) -> f64 {
        let level = f64::from(level);
        let level = match self.scaler {
            scaler if scaler > 1.0 => 1.0 - (1.0 - level).powf(scaler),
            scaler if scaler < 1.0 => level.powf(scaler),
            _ => level,
        };
        let cosine = |level: f64| ((level + self.s) / (1.0 + self.s) * FRAC_PI_2).cos().powi(2);
        (cosine(level) / cosine(0.0)).clamp(0.0001, 0.9999)
    }
}
