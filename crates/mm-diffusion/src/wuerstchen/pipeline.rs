//! The pipeline: encode, draw the prior's image, draw latents from it, decode.

use super::{
    config::{self, Vq as VqConfig},
    decoder::Decoder,
    prior::Prior,
    schedule::Schedule,
    text::Text,
    vq::Vq,
};
use crate::{
    Error, Folder, Generated, LoadOptions, Loader, Progress, Request,
    check::Check,
    guidance::{guide, is_guided},
    latents::noise,
    lora::{FIRST, Member},
    part::{Load, Part, check_dtype, in_component},
    size::check_guidance,
    trace::Trace,
};
use candle_core::{DType, Device, Tensor};
use mm_candle::Component;
use mm_probe::Library;

const CLASS: &str = "WuerstchenCombinedPipeline";
const PRIOR_TEXT: &str = "prior_text_encoder";
const TEXT: &str = "text_encoder";
const PRIOR: &str = "prior_prior";
const DECODER: &str = "decoder";
const VQ: &str = "vqgan";

/// Pixels along a side of one of the prior's, and its sides in latents: of the reference pipeline, whatever the checkpoint.
const RESOLUTION: f64 = 42.67;
const LATENTS: f64 = 10.67;

/// Sides of images are multiples of this: three of the prior's pixels are exactly 32 latents, of four pixels each.
const MULTIPLE: u32 = 128;
const LARGEST_SIDE: u32 = 16_384;

/// Of the prior's image, before it leads the decoder.
const MEAN: f64 = 42.0;
const SPREAD: f64 = 1.0;

/// The decoder's steps for one request: the reference makes 12 for the prior's 60.
const PRIOR_STEPS: u32 = 5;

/// What tells the decoder's noise from the prior's.
const DECODER_SEED: u64 = 0x5157_4552_5354_4348;

/// A loaded checkpoint of Würstchen.
///
/// Guidance leads the prior, as in the reference pipeline: `negative + guidance × (positive − negative)`, and up to one makes no negative
/// pass. The decoder has none. A request's steps are the prior's; the decoder makes a fifth as many.
pub struct Wuerstchen {
    prior_text: Text,
    text: Text,
    prior_schedule: Schedule,
    schedule: Schedule,
    prior: Component<Prior>,
    prior_config: config::Prior,
    decoder: Component<Decoder>,
    decoder_config: config::Decoder,
    vq: Component<Vq>,
    vq_config: VqConfig,
}

/// Sides of the prior's image, and of the latents.
struct Sides {
    prior: [usize; 2],
    latents: [usize; 2],
}

impl Wuerstchen {
    /// Loads a Diffusers folder whose pipeline is `WuerstchenCombinedPipeline`. Components are called `prior_text_encoder` and
    /// `text_encoder` (phase 0), `prior_prior` (1), `decoder` (2) and `vqgan` (3).
    /// A component that is the same in another pipeline of the same manager is loaded once, wherever the two lie.
    ///
    /// # Errors
    /// A file is missing or broken, something in it is not supported, or the weights don't fit the
    /// configuration: the message names the file and the tensor.
    pub fn load(folder: &Folder, options: &LoadOptions, loader: &impl Loader) -> Result<Self, Error> {
        let class = folder.pipeline_class()?;
        let index = folder.path("model_index.json");
        Check(&index).supported(class == CLASS, "_class_name", class, CLASS)?;
        folder.expect(PRIOR, &["WuerstchenPrior"])?;
        folder.expect(DECODER, &["WuerstchenDiffNeXt"])?;
        folder.expect(VQ, &["PaellaVQModel"])?;

        check_dtype(options)?;
        let (prior_schedule, schedule) =
            (Schedule::open(folder, "prior_scheduler")?, Schedule::open(folder, "scheduler")?);
        let (prior_config, prior_file) = config::Prior::open(folder, PRIOR)?;
        let (decoder_config, decoder_file) = config::Decoder::open(folder, DECODER)?;
        let vq_config = VqConfig::open(folder, VQ)?;
        let (load, passes) = (Load { folder, loader, options }, options.passes);
        let prior_text = Text::load(&load, PRIOR_TEXT, "prior_tokenizer", passes.encode)?;
        let text = Text::load(&load, TEXT, "tokenizer", 1)?;

        let fits = |file, key, found: usize, expected: usize, of: &str| {
            Check(file).holds(found == expected, key, found, format!("expected {of}, {expected}"))
        };
        let of_text = format!("{PRIOR_TEXT}'s hidden_size");
        fits(&prior_file, "c_cond", prior_config.c_cond, prior_text.width, &of_text)?;
        fits(&decoder_file, "clip_embd", decoder_config.clip_embd, text.width, &format!("{TEXT}'s hidden_size"))?;
        fits(&decoder_file, "effnet_embd", decoder_config.effnet_embd, prior_config.c_in, &format!("{PRIOR}'s c_in"))?;
        let of_vq = format!("{VQ}'s latent_channels");
        fits(&decoder_file, "c_in", decoder_config.c_in, vq_config.latent_channels, &of_vq)?;
        let multiple = decoder_config.multiple();
        let reason = "expected levels and patches that 32 latents can be cut into".to_owned();
        Check(&decoder_file).holds(32usize.is_multiple_of(multiple), "patch_size", multiple, reason)?;

        let part = |name, phase, passes, dtype| Part { name, library: Library::Diffusers, phase, passes, dtype };
        Ok(Self {
            prior: load.component(part(PRIOR, 1, passes.denoise, None), &prior_config, Prior::new)?,
            decoder: load.component(
                part(DECODER, 2, passes.denoise.div_ceil(PRIOR_STEPS), None),
                &decoder_config,
                Decoder::new,
            )?,
            vq: load.component(part(VQ, 3, passes.decode, Some(DType::F32)), &vq_config, Vq::new)?,
            prior_text,
            text,
            prior_schedule,
            schedule,
            prior_config,
            decoder_config,
            vq_config,
        })
    }

    /// Makes an image. `observe` is told after each pass.
    ///
    /// With guidance, both prompts go through the prior as one batch: one pass per step.
    ///
    /// # Errors
    /// `Request`: told before anything is computed. `Component`: memory, or weights that can't be read.
    pub fn generate(&self, request: &Request, mut observe: impl FnMut(Progress)) -> Result<Generated, Error> {
        let sides = self.sides(request)?;
        check_guidance(request)?;
        let (prior_levels, levels) = (Schedule::levels(request.steps)?, Schedule::levels(decoder_steps(request))?);
        let mut prior_ids = vec![self.prior_text.tokenize(&request.prompt)?];
        if is_guided(request) {
            prior_ids.push(self.prior_text.tokenize(&request.negative)?);
        }
        let ids = [self.text.tokenize(&request.prompt)?];
        let shape = |channels, [height, width]: [usize; 2], count: usize| [count, channels, height, width];
        // The first of each is what it begins with, the others come on the way.
        let prior_noise = noise(request.seed, &shape(self.prior_config.c_in, sides.prior, prior_levels.len()))?;
        let decoder_shape = shape(self.decoder_config.c_in, sides.latents, levels.len());
        let decoder_noise = noise(request.seed ^ DECODER_SEED, &decoder_shape)?;
        let initial = initial(request, prior_noise.narrow(0, 0, 1)?)?;

        let prior_text = self.prior_text.encode(&prior_ids, &mut observe)?;
        let text = self.text.encode(&ids, &mut observe)?;
        let mut trace = request.trace.then(|| Trace::start(request));
        if let Some(trace) = &mut trace {
            trace.add_ids("input_ids", &prior_ids[0].0)?;
            trace.add_ids("input_ids_2", &ids[0].0)?;
            trace.add("prompt_embeds", prior_text.narrow(0, 0, 1)?);
            trace.add("prompt_embeds_2", text.clone());
            trace.add("initial_latents", initial.clone());
            trace.add("prior_noise", prior_noise.clone());
            trace.add("decoder_noise", decoder_noise.clone());
        }

        let prior = |image: &Tensor, level: f32| {
            let forward = |prior: &mut Prior| prior.forward(image, level, &prior_text);
            let out = self.prior.run_again(forward).map_err(in_component(PRIOR))?;
            Ok(guide(&out, request.guidance)?)
        };
        let along =
            Along { component: PRIOR, schedule: &self.prior_schedule, levels: &prior_levels, noise: &prior_noise };
        let drawn = along.follow(initial, prior, &mut observe)?;
        let image = ((drawn * MEAN)? - SPREAD)?;
        if let Some(trace) = &mut trace {
            trace.add("image_embeddings", image.clone());
        }

        let decoder = |latents: &Tensor, level: f32| {
            let forward = |decoder: &mut Decoder| decoder.forward(latents, level, &image, &text);
            self.decoder.run_again(forward).map_err(in_component(DECODER))
        };
        let along = Along { component: DECODER, schedule: &self.schedule, levels: &levels, noise: &decoder_noise };
        let latents = along.follow(decoder_noise.narrow(0, 0, 1)?, decoder, &mut observe)?;
        if let Some(trace) = &mut trace {
            trace.add("latents", latents.clone());
        }

        let latents = (latents * self.vq_config.scale_factor)?;
        let pixels = self.vq.run_again(|vq| vq.forward(&latents)).map_err(in_component(VQ))?;
        let image = pixels.squeeze(0)?.permute((1, 2, 0))?.clamp(0f32, 1f32)?.contiguous()?;
        observe(Progress { component: VQ, pass: 1, passes: 1 });
        if let Some(trace) = &mut trace {
            trace.add("image", image.clone());
        }
        Ok(Generated { image, trace })
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        let prior = Member { name: PRIOR, prefixes: &[], rows: &[], component: &self.prior };
        let decoder = Member { name: DECODER, prefixes: &["decoder."], rows: &[], component: &self.decoder };
        vec![self.prior_text.member(&["prior_text_encoder."]), self.text.member(FIRST), prior, decoder]
    }

    /// How often `observe` will be told, for this request.
    pub(crate) fn passes(&self, request: &Request) -> u64 {
        let encode = if is_guided(request) { 3 } else { 2 };
        encode + u64::from(request.steps) + u64::from(decoder_steps(request)) + 1
    }

    fn sides(&self, request: &Request) -> Result<Sides, Error> {
        let side = |field, pixels: u32| {
            if pixels == 0 || !pixels.is_multiple_of(MULTIPLE) || pixels > LARGEST_SIDE {
                let reason = format!("expected a multiple of {MULTIPLE} pixels, at most {LARGEST_SIDE}");
                return Err(Error::request(field, pixels, reason));
            }
            let prior = (f64::from(pixels) / RESOLUTION).ceil();
            let latents = (prior * LATENTS) as usize;
            if latents * self.vq_config.factor() != pixels as usize {
                let reason = format!("the model makes {} of it", latents * self.vq_config.factor());
                return Err(Error::request(field, pixels, reason));
            }
            Ok((prior as usize, latents))
        };
        let (height, width) = (side("height", request.height)?, side("width", request.width)?);
        Ok(Sides { prior: [height.0, width.0], latents: [height.1, width.1] })
    }
}

/// A component's way from noise.
struct Along<'a> {
    component: &'static str,
    schedule: &'a Schedule,
    levels: &'a [f32],
    noise: &'a Tensor,
}

impl Along<'_> {
    fn follow(
        &self,
        mut sample: Tensor,
        ask: impl Fn(&Tensor, f32) -> Result<Tensor, Error>,
        mut observe: impl FnMut(Progress),
    ) -> Result<Tensor, Error> {
        let passes = self.levels.len() as u32 - 1;
        for (index, levels) in self.levels.windows(2).enumerate() {
            let out = ask(&sample, levels[0])?;
            let noise = self.noise.narrow(0, index + 1, 1)?;
            sample = self.schedule.step((levels[0], levels[1]), &sample, &out, &noise)?;
            observe(Progress { component: self.component, pass: index as u32 + 1, passes });
        }
        Ok(sample)
    }
}

fn initial(request: &Request, noise: Tensor) -> Result<Tensor, Error> {
    match &request.initial_latents {
        None => Ok(noise),
        Some(latents) if latents.dims() == noise.dims() => {
            Ok(latents.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
        }
        Some(latents) => {
            let (found, expected) = (format!("{:?}", latents.dims()), noise.dims());
            Err(Error::request("initial_latents", found, format!("expected the shape {expected:?}")))
        }
    }
}

const fn decoder_steps(request: &Request) -> u32 {
    request.steps.div_ceil(PRIOR_STEPS)
}
