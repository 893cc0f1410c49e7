//! The pipeline: encode, denoise, decode.

use super::{
    config::Config,
    encode::{Encoders, TEXT_ENCODER_3},
    transformer::Transformer,
};
use crate::{
    Error, Folder, Generated, LoadOptions, Loader, Progress, Request, Scheduler,
    check::Check,
    denoise::{TRANSFORMER, VAE, decode, denoise},
    guidance::{guide, is_guided},
    lora::{self, Member},
    part::{Load, Part, check_dtype, in_component},
    size::{Size, check_guidance},
    trace::Trace,
    vae::{self, Decoder},
};
use candle_core::{DType, Device, Tensor};
use mm_candle::Component;
use mm_probe::Library;

/// A loaded checkpoint of Stable Diffusion 3 or 3.5.
///
/// Guidance is as in the reference pipeline: `negative + guidance × (positive − negative)`. Up to one it makes no negative pass.
pub struct Sd3 {
    scheduler: Scheduler,
    encoders: Encoders,
    transformer: Component<Transformer>,
    config: Config,
    vae: Component<Decoder>,
    vae_config: vae::Config,
}

impl Sd3 {
    /// Loads a Diffusers folder whose pipeline is `StableDiffusion3Pipeline`. Components are called `text_encoder`,
    /// `text_encoder_2` and `text_encoder_3` (phase 0; the last may be left out, as `null` in `model_index.json`), `transformer`
    /// (1) and `vae` (2). The transformer's weights may have their original names.
    /// A component that is the same in another pipeline of the same manager is loaded once, wherever the two lie.
    ///
    /// # Errors
    /// A file is missing or broken, something in it is not supported, or the weights don't fit the
    /// configuration: the message names the file and the tensor.
    pub fn load(folder: &Folder, options: &LoadOptions, loader: &impl Loader) -> Result<Self, Error> {
        let class = folder.pipeline_class()?;
        let index = folder.path("model_index.json");
        let expected = "StableDiffusion3Pipeline";
        Check(&index).supported(class == expected, "_class_name", class, expected)?;
        folder.expect("scheduler", &["FlowMatchEulerDiscreteScheduler"])?;
        folder.expect(TRANSFORMER, &["SD3Transformer2DModel"])?;
        folder.expect(VAE, &["AutoencoderKL"])?;

        check_dtype(options)?;
        let scheduler = Scheduler::open(folder)?;
        let (config, file) = Config::open(folder)?;
        let vae_config = vae::Config::open(folder)?;
        let load = Load { folder, loader, options };
        let (passes, decoder) = (options.passes, vae_config.decoder());
        let encoders = Encoders::load(&load, passes.encode, config.joint_attention_dim)?;
        let check = Check(&file);
        let (width, pooled, channels) =
            (config.joint_attention_dim, encoders.pooled_width(), vae_config.latent_channels);
        let reason = format!("expected what the two CLIPs make together, {pooled}");
        check.holds(
            config.pooled_projection_dim == pooled,
            "pooled_projection_dim",
            config.pooled_projection_dim,
            reason,
        )?;
        let reason = format!("expected {TEXT_ENCODER_3}'s d_model, {:?}", encoders.t5_width());
        check.holds(encoders.t5_width().is_none_or(|t5| t5 == width), "joint_attention_dim", width, reason)?;
        let reason = format!("expected at least the width of the two CLIPs together, {}", encoders.clip_width());
        check.holds(encoders.clip_width() <= width, "joint_attention_dim", width, reason)?;
        let reason = format!("expected the VAE's latent_channels, {channels}");
        check.holds(config.in_channels == channels, "in_channels", config.in_channels, reason)?;
        Ok(Self {
            scheduler,
            encoders,
            transformer: load.component(
                Part { name: TRANSFORMER, library: Library::Diffusers, phase: 1, passes: passes.denoise, dtype: None },
                &config,
                Transformer::new,
            )?,
            config,
            vae: load.component(vae::part(VAE, 2, passes.decode), &decoder, vae::decoder)?,
            vae_config,
        })
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        let mut all = self.encoders.members();
        all.push(Member { name: TRANSFORMER, prefixes: &[], rows: lora::SD3, component: &self.transformer });
        all
    }

    /// Makes an image. `observe` is told after each pass.
    ///
    /// With guidance, both prompts go through the transformer as one batch: one pass per step.
    ///
    /// # Errors
    /// `Request`: told before anything is computed. `Component`: memory, or weights that can't be read.
    pub fn generate(&self, request: &Request, mut observe: impl FnMut(Progress)) -> Result<Generated, Error> {
        let size = Size::of(request, self.vae_config.factor(), Some([self.config.pos_embed_max_size; 2]))?;
        check_guidance(request)?;
        let schedule = self.scheduler.training_schedule(request.steps, size.tokens())?;
        let mut prompts = vec![self.encoders.tokenize(&request.prompt)?];
        if is_guided(request) {
            prompts.push(self.encoders.tokenize(&request.negative)?);
        }
        let initial = size.initial_latents(request, self.config.in_channels)?;
        let (text, pooled) = self.encoders.encode(&prompts, &mut observe)?;

        let transform = |latents: &Tensor, timestep: f32, text: &Tensor, pooled: &Tensor| {
            let forward = |m: &mut Transformer| m.forward(latents, timestep, text, pooled);
            self.transformer.run_again(forward).map_err(in_component(TRANSFORMER))
        };
        let mut trace = request.trace.then(|| Trace::start(request));
        if let (Some(trace), [ids, ..]) = (&mut trace, &prompts[..]) {
            let [one, two] = &ids.clips;
            trace.add_ids("input_ids", one)?;
            trace.add_ids("input_ids_2", two)?;
            if let Some(ids) = &ids.t5 {
                trace.add_ids("input_ids_3", ids)?;
            }
            let (text, pooled) = (text.narrow(0, 0, 1)?, pooled.narrow(0, 0, 1)?);
            trace.add("prompt_embeds", text.to_dtype(DType::F32)?);
            trace.add("pooled_prompt_embeds", pooled.clone());
            trace.add("initial_latents", initial.clone());
            trace.add("transformer_out_t0.25", transform(&initial, 250.0, &text, &pooled)?);
            trace.add("timesteps", Tensor::new(&schedule.timesteps[..], &Device::Cpu)?);
            trace.add("sigmas", Tensor::new(&schedule.sigmas[..], &Device::Cpu)?);
        }

        let velocity =
            |latents: &Tensor, timestep| Ok(guide(&transform(latents, timestep, &text, &pooled)?, request.guidance)?);
        let latents = denoise(&schedule, initial, trace.as_mut(), velocity, &mut observe)?;
        decode((&self.vae, &self.vae_config), &latents, trace, observe)
    }

    /// How often `observe` will be told of text encoders, for this request.
    pub(crate) fn encode_passes(&self, request: &Request) -> u32 {
        self.encoders.count() * if is_guided(request) { 2 } else { 1 }
    }
}
