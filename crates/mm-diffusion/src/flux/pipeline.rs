//! The pipeline: encode, denoise, decode.

use super::{config::Config, transformer::Transformer};
use crate::{
    Error, Folder, Generated, LoadOptions, Loader, Progress, Request, Scheduler,
    check::Check,
    clip,
    denoise::{TRANSFORMER, VAE, decode, denoise},
    lora::{self, FIRST, Member, SECOND_OR_THIRD},
    padded::PaddedTokenizer,
    part::{Load, Part, check_dtype, in_component},
    size::{PATCH, Size, check_guidance},
    t5,
    trace::Trace,
    vae::{self, Decoder},
};
use candle_core::{DType, Device, Tensor};
use mm_candle::Component;
use mm_probe::Library;

const TEXT_ENCODER: &str = "text_encoder";
const TEXT_ENCODER_2: &str = "text_encoder_2";

/// Tokens of a prompt for T5, padding included, as in the reference pipeline.
const T5_TOKENS: usize = 512;

/// A loaded FLUX.1 checkpoint, dev or schnell.
///
/// dev is told how strongly to follow the prompt ([`Request::guidance`], 3.5 is usual) and computes one pass a step all the
/// same; to schnell it is nothing. Neither can be led away from a prompt.
pub struct Flux {
    tokenizer: PaddedTokenizer,
    tokenizer_2: PaddedTokenizer,
    scheduler: Scheduler,
    text_encoder: Component<clip::Encoder>,
    clip_config: clip::Config,
    text_encoder_2: Component<t5::Encoder>,
    t5_config: t5::Config,
    transformer: Component<Transformer>,
    vae: Component<Decoder>,
    vae_config: vae::Config,
}

impl Flux {
    /// Loads a Diffusers folder whose pipeline is `FluxPipeline`. Components are called `text_encoder` and `text_encoder_2`
    /// (phase 0), `transformer` (1) and `vae` (2). The transformer's weights may have their original names.
    /// A component that is the same in another pipeline of the same manager is loaded once, wherever the two lie.
    ///
    /// # Errors
    /// A file is missing or broken, something in it is not supported, or the weights don't fit the
    /// configuration: the message names the file and the tensor.
    pub fn load(folder: &Folder, options: &LoadOptions, loader: &impl Loader) -> Result<Self, Error> {
        let class = folder.pipeline_class()?;
        let index = folder.path("model_index.json");
        Check(&index).supported(class == "FluxPipeline", "_class_name", class, "FluxPipeline")?;
        folder.expect("scheduler", &["FlowMatchEulerDiscreteScheduler"])?;
        folder.expect(TEXT_ENCODER, &["CLIPTextModel"])?;
        folder.expect(TEXT_ENCODER_2, &["T5EncoderModel"])?;
        folder.expect(TRANSFORMER, &["FluxTransformer2DModel"])?;
        folder.expect(VAE, &["AutoencoderKL"])?;

        check_dtype(options)?;
        let scheduler = Scheduler::open(folder)?;
        let clip_config = clip::Config::open(folder, TEXT_ENCODER, false)?;
        let t5_config = t5::Config::open(folder, TEXT_ENCODER_2)?;
        let tokenizer = PaddedTokenizer::open(folder, "tokenizer", clip_config.max_position_embeddings)?;
        let tokenizer_2 = PaddedTokenizer::open(folder, "tokenizer_2", T5_TOKENS)?;
        let (config, file) = Config::open(folder)?;
        let vae_config = vae::Config::open(folder)?;
        let values = vae_config.latent_channels * PATCH * PATCH;
        for (key, found, expected, whose) in [
            ("pooled_projection_dim", config.pooled_projection_dim, clip_config.pooled_width(), "CLIP's hidden_size"),
            ("joint_attention_dim", config.joint_attention_dim, t5_config.d_model, "T5's d_model"),
            ("in_channels", config.in_channels, values, "four times the VAE's latent_channels"),
        ] {
            Check(&file).holds(found == expected, key, found, format!("expected {whose}, {expected}"))?;
        }

        let load = Load { folder, loader, options };
        let (passes, decoder) = (options.passes, vae_config.decoder());
        let encoder = |name| Part { name, library: Library::Transformers, phase: 0, passes: 1, dtype: None };
        Ok(Self {
            text_encoder: load.component(encoder(TEXT_ENCODER), &clip_config, clip::Encoder::new)?,
            text_encoder_2: load.component(encoder(TEXT_ENCODER_2), &t5_config, t5::Encoder::new)?,
            transformer: load.component(
                Part { name: TRANSFORMER, library: Library::Diffusers, phase: 1, passes: passes.denoise, dtype: None },
                &config,
                Transformer::new,
            )?,
            vae: load.component(vae::part(VAE, 2, passes.decode), &decoder, vae::decoder)?,
            tokenizer,
            tokenizer_2,
            scheduler,
            clip_config,
            t5_config,
            vae_config,
        })
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        vec![
            Member { name: TEXT_ENCODER, prefixes: FIRST, rows: &[], component: &self.text_encoder },
            Member { name: TEXT_ENCODER_2, prefixes: SECOND_OR_THIRD, rows: &[], component: &self.text_encoder_2 },
            Member { name: TRANSFORMER, prefixes: &[], rows: lora::FLUX, component: &self.transformer },
        ]
    }

    /// Makes an image. `observe` is told after each pass.
    ///
    /// # Errors
    /// `Request`: told before anything is computed. `Component`: memory, or weights that can't be read.
    pub fn generate(&self, request: &Request, mut observe: impl FnMut(Progress)) -> Result<Generated, Error> {
        let size = Size::of(request, self.vae_config.factor(), None)?;
        check_guidance(request)?;
        if !request.negative.is_empty() {
            let reason = "FLUX.1 can't be led away from a prompt: leave it empty";
            return Err(Error::request("negative", format!("{:?}", request.negative), reason));
        }
        let schedule = self.scheduler.schedule(request.steps, size.tokens())?;
        let ids = self.tokenizer.encode(&request.prompt, self.clip_config.vocab_size)?;
        let ids_2 = self.tokenizer_2.encode(&request.prompt, self.t5_config.vocab_size)?;
        let initial = size.initial_latents(request, self.vae_config.latent_channels)?;

        let pooled = self.text_encoder.run_again(|clip| Ok(clip.forward(&ids)?.pooled));
        let pooled = pooled.map_err(in_component(TEXT_ENCODER))?;
        observe(Progress { component: TEXT_ENCODER, pass: 1, passes: 1 });
        let text = self.text_encoder_2.run_again(|t5| t5.forward(&ids_2)).map_err(in_component(TEXT_ENCODER_2))?;
        observe(Progress { component: TEXT_ENCODER_2, pass: 1, passes: 1 });

        let transform = |latents: &Tensor, timestep: f32| {
            let forward = |m: &mut Transformer| m.forward(latents, timestep, request.guidance as f32, &text, &pooled);
            self.transformer.run_again(forward).map_err(in_component(TRANSFORMER))
        };
        let mut trace = request.trace.then(|| Trace::start(request));
        if let Some(trace) = &mut trace {
            trace.add_ids("input_ids", &ids)?;
            trace.add_ids("input_ids_2", &ids_2)?;
            trace.add("pooled_prompt_embeds", pooled.to_dtype(DType::F32)?);
            trace.add("prompt_embeds", text.to_dtype(DType::F32)?);
            trace.add("initial_latents", initial.clone());
            trace.add("transformer_out_t0.25", transform(&initial, 250.0)?);
            trace.add("timesteps", Tensor::new(&schedule.timesteps[..], &Device::Cpu)?);
            trace.add("sigmas", Tensor::new(&schedule.sigmas[..], &Device::Cpu)?);
        }

        let latents = denoise(&schedule, initial, trace.as_mut(), transform, &mut observe)?;
        decode((&self.vae, &self.vae_config), &latents, trace, observe)
    }
}
