//! What `scheduler/scheduler_config.json` says of a sampler.

use crate::{Error, check::Check, folder::Folder};
use serde::Deserialize;

const FILE: &str = "scheduler/scheduler_config.json";

/// Which sampler it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ddim,
    Pndm,
    Euler,
}

/// The classes of these.
const CLASSES: [(&str, Kind); 3] =
    [("DDIMScheduler", Kind::Ddim), ("PNDMScheduler", Kind::Pndm), ("EulerDiscreteScheduler", Kind::Euler)];

/// What a model's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Prediction {
    #[serde(rename = "epsilon")]
    Noise,
    /// From image to noise, of unit variance at every timestep.
    #[serde(rename = "v_prediction")]
    Velocity,
    #[serde(rename = "sample")]
    Image,
}

/// Where the steps lie among the timesteps of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Betas {
    Linear,
    ScaledLinear,
}

/// Defaults are those of the classes, for keys that an older file lacks; where they differ the key is optional.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) num_train_timesteps: u32,
    pub(crate) beta_start: f64,
    pub(crate) beta_end: f64,
    pub(crate) beta_schedule: Betas,
    trained_betas: Option<serde_json::Value>,
    pub(crate) prediction_type: Prediction,
    timestep_spacing: Option<Spacing>,
    pub(crate) steps_offset: u32,
    set_alpha_to_one: Option<bool>,
    clip_sample: bool,
    clip_sample_range: f64,
    thresholding: bool,
    rescale_betas_zero_snr: bool,
    skip_prk_steps: bool,
    interpolation_type: String,
    timestep_type: String,
    final_sigmas_type: String,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    #[serde(skip, default = "euler")]
    pub(crate) kind: Kind,
}

const fn euler() -> Kind {
    Kind::Euler
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: Betas::Linear,
            trained_betas: None,
            prediction_type: Prediction::Noise,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: false,
            rescale_betas_zero_snr: false,
            skip_prk_steps: false,
            interpolation_type: "linear".into(),
            timestep_type: "discrete".into(),
            final_sigmas_type: "zero".into(),
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            kind: euler(),
        }
    }
}

impl Config {
    /// Of the class that `model_index.json` names. `latent`: for latents of no bounds, of which nothing is cut off, and which
    /// count timesteps from one, whatever the file says, as the reference's first pipeline does.
    pub(crate) fn open(folder: &Folder, latent: bool) -> Result<Self, Error> {
        folder.expect("scheduler", &CLASSES.map(|(class, _)| class))?;
        let class = folder.class("scheduler");
        let kind = CLASSES.iter().find(|(known, _)| Some(*known) == class).map_or(Kind::Euler, |(_, kind)| *kind);
        let (config, file) = folder.config::<Self>(FILE)?;
        let mut config = Self { kind, ..config };
        config.check(&Check(&file))?;
        if latent {
            (config.steps_offset, config.clip_sample) = (1, false);
        }
        Ok(config)
    }

    fn check(&self, check: &Check<'_>) -> Result<(), Error> {
        check.size("num_train_timesteps", self.num_train_timesteps as usize)?;
        let betas = 0.0 < self.beta_start && self.beta_start <= self.beta_end && self.beta_end < 1.0;
        let reason = "expected more than 0, and beta_end from there to below 1".to_owned();
        check.holds(betas, "beta_start", (self.beta_start, self.beta_end), reason)?;
        check.supported(self.trained_betas.is_none(), "trained_betas", &self.trained_betas, "null")?;
        let rescaled = self.rescale_betas_zero_snr;
        check.supported(!rescaled, "rescale_betas_zero_snr", rescaled, "false")?;
        let offset = self.steps_offset;
        check.holds(offset < self.num_train_timesteps, "steps_offset", offset, "expected few".into())?;
        match self.kind {
            Kind::Ddim => {
                check.supported(!self.thresholding, "thresholding", self.thresholding, "false")?;
                check.positive("clip_sample_range", self.clip_sample_range)
            }
            Kind::Pndm => {
                check.supported(self.skip_prk_steps, "skip_prk_steps", self.skip_prk_steps, "true")?;
                let known = self.prediction_type != Prediction::Image;
                check.supported(known, "prediction_type", self.prediction_type, "epsilon, v_prediction")
            }
            Kind::Euler => {
                for (key, on) in [
                    ("use_karras_sigmas", self.use_karras_sigmas),
                    ("use_exponential_sigmas", self.use_exponential_sigmas),
                    ("use_beta_sigmas", self.use_beta_sigmas),
                ] {
                    check.supported(on != Some(true), key, on, "false")?;
                }
                for (key, found, known) in [
                    ("interpolation_type", &self.interpolation_type, "linear"),
                    ("timestep_type", &self.timestep_type, "discrete"),
                    ("final_sigmas_type", &self.final_sigmas_type, "zero"),
                ] {
                    check.supported(found == known, key, found, known)?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn spacing(&self) -> Spacing {
        let default = if self.kind == Kind::Euler { Spacing::Linspace } else { Spacing::Leading };
        self.timestep_spacing.unwrap_or(default)
    }

    /// Whether nothing is left of the noise after the last step, rather than what the first timestep has.
    pub(crate) fn ends_at_one(&self) -> bool {
        self.set_alpha_to_one.unwrap_or(self.kind == Kind::Ddim)
    }

    /// Where predicted images are cut off.
    pub(crate) fn clip(&self) -> Option<f64> {
        (self.kind == Kind::Ddim && self.clip_sample).then_some(self.clip_sample_range)
    }
}
