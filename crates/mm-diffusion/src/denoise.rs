//! From noise to an image: what all pipelines do once their prompts are encoded.

use crate::{
    Error, Generated, Progress, Schedule,
    part::in_component,
    trace::Trace,
    vae::{self, Decoder},
};
use candle_core::{Device, Tensor};
use mm_candle::Component;

pub(crate) const TRANSFORMER: &str = "transformer";
pub(crate) const VAE: &str = "vae";

/// Follows `velocity`, which is asked with latents and their timestep, to the end of the schedule. Traces what each step comes to.
pub(crate) fn denoise(
    schedule: &Schedule,
    initial: Tensor,
    trace: Option<&mut Trace>,
    velocity: impl Fn(&Tensor, f32) -> Result<Tensor, Error>,
    mut observe: impl FnMut(Progress),
) -> Result<Tensor, Error> {
    let (mut latents, mut steps) = (initial, Vec::new());
    let passes = schedule.timesteps.len() as u32;
    for (pass, (timestep, sigmas)) in (1..).zip(schedule.timesteps.iter().zip(schedule.sigmas.windows(2))) {
        let velocity = velocity(&latents, *timestep)?;
        latents = (latents + (velocity * f64::from(sigmas[1] - sigmas[0]))?)?;
        if trace.is_some() {
            steps.push(latents.squeeze(0)?);
        }
        observe(Progress { component: TRANSFORMER, pass, passes });
    }
    if let Some(trace) = trace {
        trace.add("latents", Tensor::stack(&steps, 0)?);
    }
    Ok(latents)
}

/// The image of latents.
pub(crate) fn decode(
    (decoder, config): (&Component<Decoder>, &vae::Config),
    latents: &Tensor,
    mut trace: Option<Trace>,
    mut observe: impl FnMut(Progress),
) -> Result<Generated, Error> {
    // Latents and images are on the host: each component takes what it is given to where it computes.
    let latents = latents.to_device(decoder.device())?;
    let image = decoder.run_again(|decoder| config.decode(decoder, &latents)).map_err(in_component(VAE))?;
    let image = image.to_device(&Device::Cpu)?;
    observe(Progress { component: VAE, pass: 1, passes: 1 });
    if let Some(trace) = &mut trace {
        trace.add("image", image.clone());
    }
    Ok(Generated { image, trace })
}
