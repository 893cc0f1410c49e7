//! The pipeline: encode, denoise, decode.

use super::{
    config::Config,
    transformer::{Transformer, padding},
};
use crate::{
    Error, Folder, Generated, LoadOptions, Loader, Progress, Request, Scheduler, Tokenizer,
    check::Check,
    denoise::{TRANSFORMER, VAE, decode, denoise},
    lora::{FIRST, Member},
    part::{Load, Part, check_dtype, in_component},
    qwen3,
    size::{Size, check_guidance},
    tokenizer::in_vocabulary,
    trace::Trace,
    vae::{self, Decoder},
};
use candle_core::{DType, Device, Tensor};
use mm_candle::Component;
use mm_probe::Library;
use std::path::PathBuf;

const TEXT_ENCODER: &str = "text_encoder";

/// A loaded Z-Image checkpoint.
pub struct ZImage {
    tokenizer: Tokenizer,
    scheduler: Scheduler,
    text_encoder: Component<qwen3::Encoder>,
    text_config: qwen3::Config,
    transformer: Component<Transformer>,
    config: Config,
    vae: Component<Decoder>,
    vae_config: vae::Config,
    tokenizer_file: PathBuf,
}

impl ZImage {
    /// Loads a Diffusers folder whose pipeline is `ZImagePipeline`. Components are called
    /// `text_encoder`, `transformer` and `vae`, in phases 0, 1 and 2. A component that is the same in another pipeline
    /// of the same manager is loaded once, wherever the two lie.
    ///
    /// # Errors
    /// A file is missing or broken, something in it is not supported, or the weights don't fit the
    /// configuration: the message names the file and the tensor.
    pub fn load(folder: &Folder, options: &LoadOptions, loader: &impl Loader) -> Result<Self, Error> {
        let class = folder.pipeline_class()?;
        let index = folder.path("model_index.json");
        Check(&index).supported(class == "ZImagePipeline", "_class_name", class, "ZImagePipeline")?;
        folder.expect("scheduler", &["FlowMatchEulerDiscreteScheduler"])?;
        folder.expect(TEXT_ENCODER, &["Qwen3Model", "Qwen3ForCausalLM"])?;
        folder.expect(TRANSFORMER, &["ZImageTransformer2DModel"])?;
        folder.expect(VAE, &["AutoencoderKL"])?;

        check_dtype(options)?;
        let scheduler = Scheduler::open(folder)?;
        let tokenizer = Tokenizer::open(folder)?;
        let text_config = qwen3::Config::open(folder)?;
        let (config, file) = Config::open(folder)?;
        let vae_config = vae::Config::open(folder)?;
        let (check, width, channels) = (Check(&file), text_config.hidden_size, vae_config.latent_channels);
        let reason = format!("expected the text encoder's hidden_size, {width}");
        check.holds(config.cap_feat_dim == width, "cap_feat_dim", config.cap_feat_dim, reason)?;
        let reason = format!("expected the VAE's latent_channels, {channels}");
        check.holds(config.in_channels == channels, "in_channels", config.in_channels, reason)?;

        let load = Load { folder, loader, options };
        let (passes, decoder) = (options.passes, vae_config.decoder());
        Ok(Self {
            text_encoder: load.component(
                Part {
                    name: TEXT_ENCODER,
                    library: Library::Transformers,
                    phase: 0,
                    passes: passes.encode,
                    dtype: None,
                },
                &text_config,
                qwen3::Encoder::new,
            )?,
            transformer: load.component(
                Part { name: TRANSFORMER, library: Library::Diffusers, phase: 1, passes: passes.denoise, dtype: None },
                &config,
                Transformer::new,
            )?,
            vae: load.component(vae::part(VAE, 2, passes.decode), &decoder, vae::decoder)?,
            tokenizer,
            scheduler,
            text_config,
            config,
            vae_config,
            tokenizer_file: folder.path("tokenizer/tokenizer.json"),
        })
    }

    /// Makes an image. `observe` is told after each pass.
    ///
    /// With guidance, both prompts go through the transformer as one batch: one pass per step.
    ///
    /// # Errors
    /// `Request`: told before anything is computed. `Component`: memory, or weights that can't be read.
    pub fn generate(&self, request: &Request, mut observe: impl FnMut(Progress)) -> Result<Generated, Error> {
        let size = self.check(request)?;
        let schedule = self.scheduler.schedule(request.steps, size.tokens())?;
        let ids = self.tokenize("prompt", &request.prompt)?;
        let negative_ids = match request.guidance > 0.0 {
            true => Some(self.tokenize("negative", &request.negative)?),
            false => None,
        };
        let initial = size.initial_latents(request, self.config.in_channels)?;

        let mut embeds = Vec::with_capacity(2);
        let prompts: Vec<_> = [Some(&ids), negative_ids.as_ref()].into_iter().flatten().collect();
        for (pass, ids) in (1..).zip(&prompts) {
            embeds
                .push(self.text_encoder.run_again(|encoder| encoder.forward(ids)).map_err(in_component(TEXT_ENCODER))?);
            observe(Progress { component: TEXT_ENCODER, pass, passes: prompts.len() as u32 });
        }

        let mut trace = request.trace.then(|| Trace::start(request));
        if let Some(trace) = &mut trace {
            trace.add_ids("input_ids", &ids)?;
            for (name, embeds) in ["prompt_embeds", "negative_prompt_embeds"].into_iter().zip(&embeds) {
                trace.add(name, embeds.to_dtype(DType::F32)?);
            }
            trace.add("initial_latents", initial.clone());
            trace.add("transformer_out_t0.25", self.transform(&initial, 0.25, &embeds[..1])?.squeeze(0)?.unsqueeze(1)?);
            trace.add("timesteps", Tensor::new(&schedule.timesteps[..], &Device::Cpu)?);
            trace.add("sigmas", Tensor::new(&schedule.sigmas[..], &Device::Cpu)?);
        }

        let velocity = |latents: &Tensor, timestep| {
            let out = self.transform(latents, (1000.0 - timestep) / 1000.0, &embeds)?;
            Ok(guide(&out, request.guidance)?.neg()?)
        };
        let latents = denoise(&schedule, initial, trace.as_mut(), velocity, &mut observe)?;
        decode((&self.vae, &self.vae_config), &latents, trace, observe)
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        vec![
            Member { name: TEXT_ENCODER, prefixes: FIRST, rows: &[], component: &self.text_encoder },
            Member { name: TRANSFORMER, prefixes: &[], rows: &[], component: &self.transformer },
        ]
    }

    fn transform(&self, latents: &Tensor, t: f32, captions: &[Tensor]) -> Result<Tensor, Error> {
        self.transformer.run_again(|m| m.forward(latents, t, captions)).map_err(in_component(TRANSFORMER))
    }

    /// Checks what can be checked without computing.
    fn check(&self, request: &Request) -> Result<Size, Error> {
        let [_, rows, columns] = self.config.axes_lens[..] else {
            return Err(Error::request("height", request.height, "the model has no positions for images"));
        };
        let size = Size::of(request, self.vae_config.factor(), Some([rows, columns]))?;
        check_guidance(request)?;
        Ok(size)
    }

    fn tokenize(&self, field: &'static str, prompt: &str) -> Result<Vec<u32>, Error> {
        let ids = self.tokenizer.encode(prompt)?;
        in_vocabulary(&ids, self.text_config.vocab_size, &self.tokenizer_file)?;
        // The caption's positions start at 1, and the image lies behind it.
        let most = self.config.axes_lens[0];
        if ids.len() + padding(ids.len()) + 1 >= most {
            let fits = most.saturating_sub(2) / 32 * 32;
            return Err(Error::request(
                field,
                format!("{} tokens", ids.len()),
                format!("the model has positions for at most {fits} tokens"),
            ));
        }
        Ok(ids)
    }
}

/// Leads away from the negative prompt, which is the second of the batch if there is one.
fn guide(out: &Tensor, guidance: f64) -> candle_core::Result<Tensor> {
    let positive = out.narrow(0, 0, 1)?;
    if out.dim(0)? == 1 {
        return Ok(positive);
    }
    let difference = (&positive - out.narrow(0, 1, 1)?)?;
    positive + (difference * guidance)?
}
