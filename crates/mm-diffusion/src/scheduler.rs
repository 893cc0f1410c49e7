//! `FlowMatchEulerDiscreteScheduler`: the noise levels of a denoise loop, in single precision.

use crate::{Error, check::Check, folder::Folder};
use serde::Deserialize;

const FILE: &str = "scheduler/scheduler_config.json";

/// The scheduler of a checkpoint.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
}

/// The noise levels of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Noise level before each step, and zero after the last.
    pub sigmas: Vec<f32>,
    /// Timestep of each step, 0 to the number of training timesteps.
    pub timesteps: Vec<f32>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TimeShift {
    Exponential,
    Linear,
}

/// Defaults are those of the class, for keys that an older file lacks.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    num_train_timesteps: u32,
    shift: f32,
    use_dynamic_shifting: bool,
    base_shift: Option<f64>,
    max_shift: Option<f64>,
    base_image_seq_len: u32,
    max_image_seq_len: u32,
    invert_sigmas: bool,
    shift_terminal: Option<f32>,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    time_shift_type: TimeShift,
    stochastic_sampling: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: Some(0.5),
            max_shift: Some(1.15),
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: TimeShift::Exponential,
            stochastic_sampling: false,
        }
    }
}

impl Scheduler {
    /// Reads `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// The file is missing or broken, or asks for what is not written here.
    pub fn open(folder: &Folder) -> Result<Self, Error> {
        let (config, file) = folder.config::<Config>(FILE)?;
        let check = Check(&file);
        for (key, on) in [
            ("use_karras_sigmas", config.use_karras_sigmas),
            ("use_exponential_sigmas", config.use_exponential_sigmas),
            ("use_beta_sigmas", config.use_beta_sigmas),
            ("invert_sigmas", config.invert_sigmas),
            ("stochastic_sampling", config.stochastic_sampling),
        ] {
            check.supported(!on, key, on, "false")?;
        }
        check.size("num_train_timesteps", config.num_train_timesteps as usize)?;
        check.positive("shift", f64::from(config.shift))?;
        let terminal = config.shift_terminal.unwrap_or(0.0);
        check.holds((0.0..1.0).contains(&terminal), "shift_terminal", terminal, "expected 0 to below 1".into())?;
        let (base, max) = (config.base_image_seq_len, config.max_image_seq_len);
        check.holds(base < max, "base_image_seq_len", base, format!("expected less than max_image_seq_len, {max}"))?;
        Ok(Self { config })
    }

    /// The most steps a request may ask for: one per training timestep.
    pub const fn most_steps(&self) -> u32 {
        self.config.num_train_timesteps
    }

    /// The noise levels of `steps` steps for an image of `tokens` tokens.
    ///
    /// # Errors
    /// `Request`: no steps, or more than [`Self::most_steps`]; one step where the last is to be stretched.
    pub fn schedule(&self, steps: u32, tokens: usize) -> Result<Schedule, Error> {
        let config = &self.config;
        self.check(steps)?;
        let mut sigmas = linspace(1.0, (1.0 / f64::from(steps)) as f32, steps);
        let shift: Box<dyn Fn(f32) -> f32> = if config.use_dynamic_shifting {
            let numerator = self.numerator(tokens);
            Box::new(move |sigma| numerator as f32 / (numerator as f32 + (1.0 / sigma - 1.0)))
        } else {
            let shift = config.shift;
            Box::new(move |sigma| shift * sigma / (1.0 + (shift - 1.0) * sigma))
        };
        sigmas.iter_mut().for_each(|sigma| *sigma = shift(*sigma));
        self.finish(sigmas)
    }

    /// The same from the noisiest to the least noisy level of training, which is where pipelines go that choose no levels of
    /// their own: the first is shifted twice, in double precision.
    ///
    /// # Errors
    /// As [`Self::schedule`].
    pub fn training_schedule(&self, steps: u32, tokens: usize) -> Result<Schedule, Error> {
        self.check(steps)?;
        let config = &self.config;
        let (shift, train) = (f64::from(config.shift), f64::from(config.num_train_timesteps));
        let least = (1.0 / train) as f32;
        let least = match config.use_dynamic_shifting {
            true => least,
            false => config.shift * least / (1.0 + (config.shift - 1.0) * least),
        };
        let (most, least) = (train, f64::from(least) * train);
        let step = if steps > 1 { (least - most) / f64::from(steps - 1) } else { 0.0 };
        let numerator = self.numerator(tokens);
        let shifted = |i| {
            let sigma = if i > 0 && i + 1 == steps { least } else { f64::from(i) * step + most } / train;
            match config.use_dynamic_shifting {
                true => numerator / (numerator + (1.0 / sigma - 1.0)),
                false => shift * sigma / (1.0 + (shift - 1.0) * sigma),
            }
        };
        self.finish((0..steps).map(|i| shifted(i) as f32).collect())
    }

    fn check(&self, steps: u32) -> Result<(), Error> {
        if (1..=self.most_steps()).contains(&steps) {
            return Ok(());
        }
        Err(Error::request("steps", steps, format!("expected 1 to {}", self.most_steps())))
    }

    /// What shifts the levels of an image of this size.
    fn numerator(&self, tokens: usize) -> f64 {
        match self.config.time_shift_type {
            TimeShift::Exponential => self.mu(tokens).exp(),
            TimeShift::Linear => self.mu(tokens),
        }
    }

    fn finish(&self, mut sigmas: Vec<f32>) -> Result<Schedule, Error> {
        let (config, steps) = (&self.config, sigmas.len());
        if let (Some(terminal), Some(&last)) = (config.shift_terminal.filter(|&t| t != 0.0), sigmas.last()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            if scale <= 0.0 {
                return Err(Error::request("steps", steps, "expected at least 2: the scheduler sets shift_terminal"));
            }
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
        let train = config.num_train_timesteps as f32;
        let timesteps = sigmas.iter().map(|sigma| sigma * train).collect();
        sigmas.push(0.0);
        Ok(Schedule { sigmas, timesteps })
    }

    /// The shift of an image of this size: linear between the two sizes the model was trained for.
    fn mu(&self, tokens: usize) -> f64 {
        let config = &self.config;
        let (base, max) = (f64::from(config.base_image_seq_len), f64::from(config.max_image_seq_len));
        let (base_shift, max_shift) = (config.base_shift.unwrap_or(0.5), config.max_shift.unwrap_or(1.15));
        let slope = (max_shift - base_shift) / (max - base);
        tokens as f64 * slope + (base_shift - slope * base)
    }
}

/// Evenly spaced, filled from both ends and rounded once, as torch does: the last value is exactly `end`.
pub(crate) fn linspace(start: f32, end: f32, count: u32) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    let value = |i| match i < count / 2 {
        true => step.mul_add(i as f32, start),
        false => step.mul_add(-((count - 1 - i) as f32), end),
    };
    (0..count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Scheduler {
        Scheduler { config: serde_json::from_str(json).unwrap() }
    }

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{got:?} against {expected:?}");
        }
    }

    #[test]
    fn shift_1_is_evenly_spaced() {
        let schedule = scheduler("{}").schedule(4, 64).unwrap();
        close(&schedule.sigmas, &[1.0, 0.75, 0.5, 0.25, 0.0]);
        close(&schedule.timesteps, &[1000.0, 750.0, 500.0, 250.0]);
    }

    #[test]
    fn shift_3_spends_more_steps_on_noise() {
        let schedule = scheduler(r#"{"shift": 3.0}"#).schedule(4, 64).unwrap();
        // 3s / (1 + 2s)
        close(&schedule.sigmas, &[1.0, 0.9, 0.75, 0.5, 0.0]);
    }

    #[test]
    fn dynamic_shifting_depends_on_the_size() {
        let exponential = scheduler(r#"{"use_dynamic_shifting": true, "shift": 3.0}"#);
        // At the base size mu is 0.5: e^0.5 / (e^0.5 + 1/s - 1).
        close(&exponential.schedule(2, 256).unwrap().sigmas, &[1.0, 0.622_459_3, 0.0]);
        close(&exponential.schedule(2, 4096).unwrap().sigmas, &[1.0, 0.759_510_9, 0.0]);
        let linear = scheduler(r#"{"use_dynamic_shifting": true, "time_shift_type": "linear"}"#);
        close(&linear.schedule(2, 256).unwrap().sigmas, &[1.0, 1.0 / 3.0, 0.0]);
    }

    #[test]
    fn the_terminal_is_reached() {
        let stretched = scheduler(r#"{"shift_terminal": 0.1}"#);
        // 1 - (1 - s) * 0.9 / 0.75
        close(&stretched.schedule(4, 64).unwrap().sigmas, &[1.0, 0.7, 0.4, 0.1, 0.0]);
        assert!(stretched.schedule(1, 64).unwrap_err().to_string().contains("shift_terminal"));
    }

    #[test]
    fn levels_of_training_end_at_the_least() {
        let schedule = scheduler(r#"{"shift": 3.0}"#).training_schedule(3, 64).unwrap();
        // From 1000 to 3 / (1 + 0.002), shifted: 3s / (1 + 2s).
        let least = 0.003 / 1.002;
        let shifted = |s: f64| (3.0 * s / (1.0 + 2.0 * s)) as f32;
        close(&schedule.sigmas, &[1.0, shifted((1.0 + least) / 2.0), shifted(least), 0.0]);
        assert_eq!(scheduler("{}").training_schedule(1, 64).unwrap().sigmas, [1.0, 0.0]);
        assert!(scheduler("{}").training_schedule(0, 64).is_err());
    }

    #[test]
    fn one_step_starts_at_pure_noise() {
        assert_eq!(scheduler("{}").schedule(1, 64).unwrap().sigmas, [1.0, 0.0]);
    }
}
