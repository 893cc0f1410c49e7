//! The pipeline: encode, denoise, decode.

use super::{
    config::{Config, SIZES},
    encode::{Encoders, Prompts, TEXT_ENCODER_2},
    time::Added,
    unet::UNet,
};
use crate::{
    Error, Folder, Generated, LoadOptions, Loader, Progress, Request,
    check::Check,
    denoise::{VAE, decode},
    guidance::{guide, is_guided},
    lora::Member,
    part::{Load, Part, check_dtype, in_component},
    sampler::Sampler,
    size::{Size, check_guidance},
    trace::Trace,
    vae::{self, Decoder},
};
use candle_core::{DType, Device, Tensor};
use mm_candle::Component;
use mm_probe::Library;
use std::path::Path;

const UNET: &str = "unet";
const XL: &str = "StableDiffusionXLPipeline";

/// A loaded checkpoint of Stable Diffusion 1.5, 2.1 or XL.
///
/// Guidance is as in the reference pipeline: `negative + guidance × (positive − negative)`. Up to one it makes no negative pass. Where
/// SDXL's checkpoint says so, an empty negative prompt is zeros, and is not encoded.
pub struct StableDiffusion {
    sampler: Sampler,
    encoders: Encoders,
    unet: Component<UNet>,
    config: Config,
    vae: Component<Decoder>,
    vae_config: vae::Config,
    zeros_for_empty: bool,
}

impl StableDiffusion {
    /// Loads a Diffusers folder whose pipeline is `StableDiffusionPipeline` or `StableDiffusionXLPipeline`. Components are called
    /// `text_encoder` and, in SDXL, `text_encoder_2` (phase 0), `unet` (1) and `vae` (2). What else the folder holds, a safety
    /// checker for example, is left alone.
    /// A component that is the same in another pipeline of the same manager is loaded once, wherever the two lie.
    ///
    /// # Errors
    /// A file is missing or broken, something in it is not supported, or the weights don't fit the
    /// configuration: the message names the file and the tensor.
    pub fn load(folder: &Folder, options: &LoadOptions, loader: &impl Loader) -> Result<Self, Error> {
        let class = folder.pipeline_class()?;
        let (index, is_xl) = (folder.path("model_index.json"), class == XL);
        let known = is_xl || class == "StableDiffusionPipeline";
        Check(&index).supported(known, "_class_name", class, &format!("StableDiffusionPipeline, {XL}"))?;
        folder.expect(UNET, &["UNet2DConditionModel"])?;
        folder.expect(VAE, &["AutoencoderKL"])?;

        check_dtype(options)?;
        let sampler = Sampler::open(folder, !is_xl)?;
        let (config, file) = Config::open(folder)?;
        let vae_config = vae::Config::open(folder)?;
        let load = Load { folder, loader, options };
        let (passes, decoder) = (options.passes, vae_config.decoder());
        let encoders = Encoders::load(&load, passes.encode, is_xl)?;
        check_widths(&file, &config, &encoders, &vae_config)?;
        Ok(Self {
            unet: load.component(
                Part {
                    name: UNET,
                    library: Library::Diffusers,
                    phase: 1,
                    passes: sampler.passes(passes.denoise),
                    dtype: None,
                },
                &config,
                UNet::new,
            )?,
            sampler,
            encoders,
            config,
            vae: load.component(vae::part(VAE, 2, passes.decode), &decoder, vae::decoder)?,
            vae_config,
            zeros_for_empty: is_xl && folder.flag("force_zeros_for_empty_prompt").unwrap_or(true),
        })
    }

    /// Makes an image. `observe` is told after each pass.
    ///
    /// With guidance, both prompts go through the UNet as one batch: one pass per step, and with PNDM one more.
    ///
    /// # Errors
    /// `Request`: told before anything is computed. `Component`: memory, or weights that can't be read.
    pub fn generate(&self, request: &Request, mut observe: impl FnMut(Progress)) -> Result<Generated, Error> {
        let size = Size::of_latents(request, self.vae_config.factor())?;
        check_guidance(request)?;
        let mut run = self.sampler.start(request.steps)?;
        let mut ids = vec![self.encoders.tokenize(&request.prompt)?];
        if self.encodes_negative(request) {
            ids.push(self.encoders.tokenize(&request.negative)?);
        }
        let initial = size.initial_latents(request, self.config.in_channels)?;
        let mut prompts = self.encoders.encode(&ids, &mut observe)?;
        if is_guided(request) && ids.len() == 1 {
            prompts = prompts.and_zeros()?;
        }

        let Prompts { text, pooled } = &prompts;
        let sizes = sizes(request);
        let added = pooled.as_ref().map(|pooled| Added { pooled: pooled.clone(), sizes });
        let ask = |latents: &Tensor, timestep: f32, text: &Tensor, added: Option<&Added>| {
            let forward = |unet: &mut UNet| unet.forward(latents, timestep, text, added);
            self.unet.run_again(forward).map_err(in_component(UNET))
        };
        let mut trace = request.trace.then(|| Trace::start(request));
        if let (Some(trace), [ids, ..]) = (&mut trace, &ids[..]) {
            for (name, ids) in ["input_ids", "input_ids_2"].into_iter().zip(&ids.0) {
                trace.add_ids(name, ids)?;
            }
            let text = text.narrow(0, 0, 1)?;
            trace.add("prompt_embeds", text.to_dtype(DType::F32)?);
            let pooled = pooled.as_ref().map(|pooled| pooled.narrow(0, 0, 1)).transpose()?;
            if let Some(pooled) = &pooled {
                trace.add("pooled_prompt_embeds", pooled.clone());
            }
            trace.add("initial_latents", initial.clone());
            let added = pooled.map(|pooled| Added { pooled, sizes });
            trace.add("unet_out_t250", ask(&initial, 250.0, &text, added.as_ref())?);
            trace.add("timesteps", Tensor::new(&run.timesteps[..], &Device::Cpu)?);
            if !run.sigmas.is_empty() {
                trace.add("sigmas", Tensor::new(&run.sigmas[..], &Device::Cpu)?);
            }
        }

        let (mut latents, mut steps) = ((initial * run.initial_scale())?, Vec::new());
        let (timesteps, passes) = (run.timesteps.clone(), run.timesteps.len() as u32);
        for (pass, timestep) in timesteps.into_iter().enumerate() {
            let out = ask(&run.input(pass, &latents)?, timestep, text, added.as_ref())?;
            latents = run.step(pass, &latents, &guide(&out, request.guidance)?)?;
            if trace.is_some() {
                steps.push(latents.squeeze(0)?);
            }
            observe(Progress { component: UNET, pass: pass as u32 + 1, passes });
        }
        if let Some(trace) = &mut trace {
            trace.add("latents", Tensor::stack(&steps, 0)?);
        }
        decode((&self.vae, &self.vae_config), &latents, trace, observe)
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        let mut all = self.encoders.members();
        all.push(Member { name: UNET, prefixes: &[], rows: &[], component: &self.unet });
        all
    }

    /// How often `observe` will be told of text encoders, for this request.
    pub(crate) fn encode_passes(&self, request: &Request) -> u32 {
        self.encoders.count() * if self.encodes_negative(request) { 2 } else { 1 }
    }

    /// The same of the UNet.
    pub(crate) fn denoise_passes(&self, request: &Request) -> u32 {
        self.sampler.passes(request.steps)
    }

    fn encodes_negative(&self, request: &Request) -> bool {
        is_guided(request) && !(self.zeros_for_empty && request.negative.is_empty())
    }
}

/// That the parts of a checkpoint fit each other.
fn check_widths(file: &Path, config: &Config, encoders: &Encoders, vae: &vae::Config) -> Result<(), Error> {
    let check = Check(file);
    let (width, channels) = (encoders.width(), vae.latent_channels);
    let reason = format!("expected the width of the text encoders together, {width}");
    check.holds(config.cross_attention_dim == width, "cross_attention_dim", config.cross_attention_dim, reason)?;
    for (key, found) in [("in_channels", config.in_channels), ("out_channels", config.out_channels)] {
        let reason = format!(
            "expected the VAE's latent_channels, {channels}: UNets that are given more are for other pipelines"
        );
        check.holds(found == channels, key, found, reason)?;
    }
    let (pooled, addition) = (encoders.pooled_width(), config.addition().map(|addition| addition.pooled));
    let supported = if pooled.is_some() { "text_time with two text encoders" } else { "null with one text encoder" };
    check.supported(pooled.is_some() == addition.is_some(), "addition_embed_type", addition.is_some(), supported)?;
    let reason =
        format!("expected {SIZES} × addition_time_embed_dim and {TEXT_ENCODER_2}'s projection_dim, {pooled:?}");
    check.holds(pooled == addition, "projection_class_embeddings_input_dim", addition, reason)
}

/// As if the image had been photographed in this size, and not cropped.
fn sizes(request: &Request) -> [f32; SIZES] {
    let (height, width) = (request.height as f32, request.width as f32);
    [height, width, 0.0, 0.0, height, width]
}
