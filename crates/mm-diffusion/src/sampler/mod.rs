//! Samplers of models that predict noise at the timesteps of their training: DDIM, PNDM and Euler's method.
//!
//! A model has a share of image, `alpha`, left at each timestep. Coefficients are computed in double precision from the shares,
//! which are single, as the reference has them.

mod config;
mod pndm;
#[cfg(test)]
mod tests;
mod timesteps;

use crate::{Error, folder::Folder, scheduler::linspace};
use candle_core::{Result, Tensor};
use config::{Betas, Config, Kind, Prediction};
use pndm::Pndm;

/// The sampler of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    config: Config,
    /// Share of the image in a noisy one, at each timestep of training.
    alphas: Vec<f32>,
}

/// One request's way from noise to image.
pub(crate) struct Run<'a> {
    sampler: &'a Sampler,
    /// Of each pass of the model.
    pub(crate) timesteps: Vec<f32>,
    /// Of Euler's method: the noise at each pass, and zero after the last. Of the others none.
    pub(crate) sigmas: Vec<f32>,
    /// Timesteps between two steps.
    stride: i64,
    pndm: Pndm,
}

impl Sampler {
    /// Reads `scheduler/scheduler_config.json`. `latent`: what a pipeline for latents changes about it.
    pub(crate) fn open(folder: &Folder, latent: bool) -> std::result::Result<Self, Error> {
        Ok(Self::new(Config::open(folder, latent)?))
    }

    fn new(config: Config) -> Self {
        let (from, to, count) = (config.beta_start, config.beta_end, config.num_train_timesteps);
        let betas = match config.beta_schedule {
            Betas::Linear => linspace(from as f32, to as f32, count),
            Betas::ScaledLinear => {
                linspace(from.sqrt() as f32, to.sqrt() as f32, count).into_iter().map(|root| root * root).collect()
            }
        };
        let product = |left: &mut f64, beta: f32| {
            *left *= f64::from(1.0 - beta);
            Some(*left as f32)
        };
        Self { alphas: betas.into_iter().scan(1.0, product).collect(), config }
    }

    /// How often the model is asked, for a request of this many steps.
    pub(crate) fn passes(&self, steps: u32) -> u32 {
        // PNDM takes its second step twice.
        steps.saturating_add(u32::from(self.config.kind == Kind::Pndm && steps > 1))
    }

    /// `Request`: no steps, or more than there are timesteps.
    pub(crate) fn start(&self, steps: u32) -> std::result::Result<Run<'_>, Error> {
        let timesteps = timesteps::of(&self.config, steps)?;
        let sigmas = match self.config.kind {
            Kind::Euler => {
                let sigma = |timestep: &f64| self.sigma_at(*timestep) as f32;
                timesteps.iter().map(sigma).chain([0.0]).collect()
            }
            _ => Vec::new(),
        };
        Ok(Run {
            sampler: self,
            timesteps: timesteps.iter().map(|timestep| *timestep as f32).collect(),
            sigmas,
            stride: i64::from(self.config.num_train_timesteps / steps),
            pndm: Pndm::default(),
        })
    }

    /// Share of the image at a timestep; before the first, after the last step.
    fn alpha(&self, timestep: i64) -> f64 {
        match usize::try_from(timestep) {
            Ok(timestep) => self.alphas.get(timestep).or(self.alphas.last()).copied().unwrap_or(1.0).into(),
            Err(_) if self.config.ends_at_one() => 1.0,
            Err(_) => self.alpha(0),
        }
    }

    /// Noise over image, between timesteps too.
    fn sigma_at(&self, timestep: f64) -> f64 {
        let sigma = |timestep: f64| {
            let alpha = self.alpha(timestep as i64) as f32;
            f64::from(((1.0 - alpha) / alpha).sqrt())
        };
        let (before, share) = (timestep.floor(), timestep.fract());
        let from = sigma(before);
        if share > 0.0 { from + share * (sigma(before + 1.0) - from) } else { from }
    }

    /// The image and the noise that an output says are in `sample`, of whose image this share is left.
    fn parts(&self, alpha: f64, sample: &Tensor, output: &Tensor) -> Result<(Tensor, Tensor)> {
        let (image, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        match self.config.prediction_type {
            Prediction::Noise => Ok((((sample - (output * noise)?)? / image)?, output.clone())),
            Prediction::Image => Ok((output.clone(), ((sample - (output * image)?)? / noise)?)),
            Prediction::Velocity => {
                Ok((((sample * image)? - (output * noise)?)?, ((output * image)? + (sample * noise)?)?))
            }
        }
    }
}

impl Run<'_> {
    /// What normal noise is multiplied by to begin with.
    pub(crate) fn initial_scale(&self) -> f64 {
        let Some(&most) = self.sigmas.first() else { return 1.0 };
        let most = self.sigmas.iter().fold(most, |most, sigma| most.max(*sigma)).into();
        match self.sampler.config.spacing() {
            config::Spacing::Leading => f64::hypot(most, 1.0),
            _ => most,
        }
    }

    /// What the model is given in a pass.
    pub(crate) fn input(&self, pass: usize, sample: &Tensor) -> Result<Tensor> {
        match self.sigmas.get(pass) {
            Some(&sigma) => sample / f64::hypot(sigma.into(), 1.0),
            None => Ok(sample.clone()),
        }
    }

    /// What a pass comes to; passes in order, each once.
    pub(crate) fn step(&mut self, pass: usize, sample: &Tensor, output: &Tensor) -> Result<Tensor> {
        let Some(&timestep) = self.timesteps.get(pass) else {
            candle_core::bail!("pass {pass} of a request of {}", self.timesteps.len());
        };
        let timestep = timestep as i64;
        match self.sampler.config.kind {
            Kind::Ddim => self.ddim(timestep, sample, output),
            Kind::Pndm => self.pndm.step(self.sampler, (timestep, self.stride), sample, output),
            Kind::Euler => self.euler(pass, sample, output),
        }
    }

    fn ddim(&self, timestep: i64, sample: &Tensor, output: &Tensor) -> Result<Tensor> {
        let sampler = self.sampler;
        let (image, noise) = sampler.parts(sampler.alpha(timestep), sample, output)?;
        let image = match sampler.config.clip() {
            Some(most) => image.clamp(-most, most)?,
            None => image,
        };
        let next = sampler.alpha(timestep - self.stride);
        (image * next.sqrt())? + (noise * (1.0 - next).sqrt())?
    }

    fn euler(&self, pass: usize, sample: &Tensor, output: &Tensor) -> Result<Tensor> {
        let [sigma, next] = [0, 1].map(|i| f64::from(self.sigmas.get(pass + i).copied().unwrap_or(0.0)));
        let square = sigma * sigma + 1.0;
        let image = match self.sampler.config.prediction_type {
            Prediction::Noise => return sample + (output * (next - sigma))?,
            Prediction::Image => output.clone(),
            Prediction::Velocity => ((sample / square)? - (output * (sigma / square.sqrt()))?)?,
        };
        sample + ((sample - image)? * ((next - sigma) / sigma))?
    }
}
