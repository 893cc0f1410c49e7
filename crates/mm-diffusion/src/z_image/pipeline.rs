//! The pipeline: encode, denoise, decode.

use super::{
    config::{Config, PATCH},
    transformer::{Transformer, padding},
    vae,
};
use crate::{
    Error, Folder, Generated, LoadOptions, Loader, Progress, Request, Scheduler, Tokenizer, check::Check,
    latents::noise, qwen3, trace::Trace,
};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::z_image::vae::Decoder;
use mm_candle::{Component, LoadSpec};
use mm_probe::Library;
use std::{fmt::Debug, path::PathBuf};

const TEXT_ENCODER: &str = "text_encoder";
const TRANSFORMER: &str = "transformer";
const VAE: &str = "vae";

/// The decoder's compute dtype: half precision overflows in it, and candle has no bf16 convolution on the CPU.
const VAE_DTYPE: DType = DType::F32;

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

        if !matches!(options.dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::request("dtype", options.dtype.as_str(), "expected f32, bf16 or f16"));
        }
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
                Part { name: TEXT_ENCODER, library: Library::Transformers, phase: 0, passes: passes.encode },
                &text_config,
                qwen3::Encoder::new,
            )?,
            transformer: load.component(
                Part { name: TRANSFORMER, library: Library::Diffusers, phase: 1, passes: passes.denoise },
                &config,
                Transformer::new,
            )?,
            vae: load.component(
                Part { name: VAE, library: Library::Diffusers, phase: 2, passes: passes.decode },
                &decoder,
                |config, vb| Decoder::new(config, vb.pp("decoder")),
            )?,
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
        let initial = self.initial_latents(request, &size)?;

        let mut embeds = Vec::with_capacity(2);
        let prompts: Vec<_> = [Some(&ids), negative_ids.as_ref()].into_iter().flatten().collect();
        for (pass, ids) in (1..).zip(&prompts) {
            embeds
                .push(self.text_encoder.run_again(|encoder| encoder.forward(ids)).map_err(in_component(TEXT_ENCODER))?);
            observe(Progress { component: TEXT_ENCODER, pass, passes: prompts.len() as u32 });
        }

        let mut trace = request.trace.then(|| start_trace(request));
        if let Some(trace) = &mut trace {
            let count = ids.len();
            trace.add(
                "input_ids",
                Tensor::from_vec(ids.iter().map(|&id| i64::from(id)).collect(), count, &Device::Cpu)?,
            );
            for (name, embeds) in ["prompt_embeds", "negative_prompt_embeds"].into_iter().zip(&embeds) {
                trace.add(name, embeds.to_dtype(DType::F32)?);
            }
            trace.add("initial_latents", initial.clone());
            trace.add("transformer_out_t0.25", self.transform(&initial, 0.25, &embeds[..1])?.squeeze(0)?.unsqueeze(1)?);
            trace.add("timesteps", Tensor::new(&schedule.timesteps[..], &Device::Cpu)?);
            trace.add("sigmas", Tensor::new(&schedule.sigmas[..], &Device::Cpu)?);
        }

        let mut latents = initial;
        let mut steps = Vec::new();
        for (pass, (timestep, sigmas)) in (1..).zip(schedule.timesteps.iter().zip(schedule.sigmas.windows(2))) {
            let out = self.transform(&latents, (1000.0 - timestep) / 1000.0, &embeds)?;
            let velocity = guide(&out, request.guidance)?.neg()?;
            latents = (latents + (velocity * f64::from(sigmas[1] - sigmas[0]))?)?;
            if trace.is_some() {
                steps.push(latents.squeeze(0)?);
            }
            observe(Progress { component: TRANSFORMER, pass, passes: request.steps });
        }

        let decode = |decoder: &mut Decoder| self.vae_config.decode(decoder, &latents);
        let image = self.vae.run_again(decode).map_err(in_component(VAE))?;
        observe(Progress { component: VAE, pass: 1, passes: 1 });
        if let Some(trace) = &mut trace {
            trace.add("latents", Tensor::stack(&steps, 0)?);
            trace.add("image", image.clone());
        }
        Ok(Generated { image, trace })
    }

    fn transform(&self, latents: &Tensor, t: f32, captions: &[Tensor]) -> Result<Tensor, Error> {
        self.transformer.run_again(|m| m.forward(latents, t, captions)).map_err(in_component(TRANSFORMER))
    }

    /// Checks what can be checked without computing.
    fn check(&self, request: &Request) -> Result<Size, Error> {
        let multiple = self.vae_config.factor() * PATCH;
        let latents = |field, pixels: u32, axis: usize| {
            let pixels = pixels as usize;
            if pixels == 0 || !pixels.is_multiple_of(multiple) {
                return Err(Error::request(field, pixels, format!("expected a multiple of {multiple} pixels")));
            }
            let most = self.config.axes_lens[axis];
            if pixels / multiple > most {
                let reason = format!("the model has positions for at most {} pixels", most * multiple);
                return Err(Error::request(field, pixels, reason));
            }
            Ok(pixels / self.vae_config.factor())
        };
        let size = Size { height: latents("height", request.height, 1)?, width: latents("width", request.width, 2)? };
        if !request.guidance.is_finite() || request.guidance < 0.0 {
            return Err(Error::request("guidance", request.guidance, "expected zero (off) or a positive number"));
        }
        Ok(size)
    }

    fn tokenize(&self, field: &'static str, prompt: &str) -> Result<Vec<u32>, Error> {
        let ids = self.tokenizer.encode(prompt)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.text_config.vocab_size) {
            return Err(Error::Tokenizer {
                file: self.tokenizer_file.clone(),
                reason: format!("token {id} is beyond the text encoder's vocab_size, {}", self.text_config.vocab_size),
            });
        }
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

    fn initial_latents(&self, request: &Request, size: &Size) -> Result<Tensor, Error> {
        let expected = [1, self.config.in_channels, size.height, size.width];
        match &request.initial_latents {
            None => Ok(noise(request.seed, &expected)?),
            Some(latents) if latents.dims() == expected => {
                Ok(latents.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
            }
            Some(latents) => {
                let found = format!("{:?}", latents.dims());
                Err(Error::request("initial_latents", found, format!("expected the shape {expected:?}")))
            }
        }
    }
}

/// Height and width in latents.
struct Size {
    height: usize,
    width: usize,
}

impl Size {
    const fn tokens(&self) -> usize {
        (self.height / PATCH) * (self.width / PATCH)
    }
}

/// What loading the components has in common.
struct Load<'a, L> {
    folder: &'a Folder,
    loader: &'a L,
    options: &'a LoadOptions,
}

/// A component of the pipeline, and its part in a request.
struct Part {
    name: &'static str,
    library: Library,
    phase: u32,
    passes: u32,
}

impl<L: Loader> Load<'_, L> {
    fn component<C: Debug, M: Send + 'static>(
        &self,
        Part { name, library, phase, passes }: Part,
        config: &C,
        build: impl Fn(&C, VarBuilder<'_>) -> candle_core::Result<M>,
    ) -> Result<Component<M>, Error> {
        let files = self.folder.weights(name, library)?;
        let full_name = self.options.name.as_ref().map_or_else(|| name.to_owned(), |of| format!("{of}.{name}"));
        let spec = LoadSpec {
            dtype: if name == VAE { VAE_DTYPE } else { self.options.dtype },
            // Phases are numbers of the whole manager: another pipeline's transformer is not active beside this one's.
            phase: self.options.name.is_none().then_some(phase),
            passes,
            lazy: true,
            // As parsed: what a configuration file says beside that decides nothing here.
            config: Some(format!("{config:?}")),
            ..LoadSpec::new(full_name, files)
        };
        self.loader.load(&spec, |vb| build(config, vb)).map_err(in_component(name))
    }
}

fn in_component(component: &'static str) -> impl Fn(mm_candle::Error) -> Error {
    move |source| Error::Component { component, source }
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

fn start_trace(request: &Request) -> Trace {
    let metadata = [
        ("prompt", request.prompt.clone()),
        ("negative_prompt", request.negative.clone()),
        ("guidance_scale", format!("{:?}", request.guidance)),
        ("steps", request.steps.to_string()),
        ("seed", request.seed.to_string()),
        ("width", request.width.to_string()),
        ("height", request.height.to_string()),
    ];
    Trace { metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(), ..Default::default() }
}
