//! Two CLIPs and T5: a prompt as a sequence and as one vector.

use crate::{
    Error, Folder, Loader, Progress, clip,
    lora::{Adapt, FIRST, Member, SECOND, THIRD},
    padded::PaddedTokenizer,
    part::{Load, Part, in_component},
    t5,
};
use candle_core::{D, DType, Tensor};
use mm_candle::Component;
use mm_probe::Library;

pub(crate) const TEXT_ENCODER: &str = "text_encoder";
pub(crate) const TEXT_ENCODER_2: &str = "text_encoder_2";
pub(crate) const TEXT_ENCODER_3: &str = "text_encoder_3";

/// Tokens of a prompt for T5, padding included, as in the reference pipeline.
const T5_TOKENS: usize = 256;

/// An encoder, and how prompts become its tokens.
pub(super) struct With<M> {
    name: &'static str,
    tokenizer: PaddedTokenizer,
    vocabulary: usize,
    pub(super) width: usize,
    pub(super) pooled: usize,
    model: Component<M>,
}

/// All of a pipeline's text encoders. Without T5 its tokens are zeros.
pub(crate) struct Encoders {
    clips: [With<clip::Encoder>; 2],
    t5: Option<With<t5::Encoder>>,
    /// Of the sequence.
    width: usize,
}

/// A prompt's tokens, for each encoder.
pub(crate) struct Ids {
    pub(crate) clips: [Vec<u32>; 2],
    pub(crate) t5: Option<Vec<u32>>,
}

impl Encoders {
    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        let [first, second] = &self.clips;
        let member = |name, prefixes, component| Member { name, prefixes, rows: &[], component };
        let mut all =
            vec![member(first.name, FIRST, &first.model as &dyn Adapt), member(second.name, SECOND, &second.model)];
        all.extend(self.t5.as_ref().map(|t5| member(t5.name, THIRD, &t5.model as &dyn Adapt)));
        all
    }

    /// `width` is what the transformer is given, and of T5.
    pub(crate) fn load<L: Loader>(load: &Load<'_, L>, passes: u32, width: usize) -> Result<Self, Error> {
        let clip = |name, tokenizer| {
            load.folder.expect(name, &["CLIPTextModelWithProjection"])?;
            let config = clip::Config::open(load.folder, name, true)?;
            Ok::<_, Error>(With {
                name,
                tokenizer: PaddedTokenizer::open(load.folder, tokenizer, config.max_position_embeddings)?,
                vocabulary: config.vocab_size,
                width: config.hidden_size,
                pooled: config.pooled_width(),
                model: load.component(part(name, passes), &config, clip::Encoder::new)?,
            })
        };
        let t5 = || {
            load.folder.expect(TEXT_ENCODER_3, &["T5EncoderModel"])?;
            let config = t5::Config::open(load.folder, TEXT_ENCODER_3)?;
            Ok::<_, Error>(With {
                name: TEXT_ENCODER_3,
                tokenizer: PaddedTokenizer::open(load.folder, "tokenizer_3", T5_TOKENS)?,
                vocabulary: config.vocab_size,
                width: config.d_model,
                pooled: 0,
                model: load.component(part(TEXT_ENCODER_3, passes), &config, t5::Encoder::new)?,
            })
        };
        Ok(Self {
            clips: [clip(TEXT_ENCODER, "tokenizer")?, clip(TEXT_ENCODER_2, "tokenizer_2")?],
            t5: has_t5(load.folder).then(t5).transpose()?,
            width,
        })
    }

    /// Of both CLIPs.
    pub(crate) fn pooled_width(&self) -> usize {
        self.clips.iter().map(|clip| clip.pooled).sum()
    }

    /// Of both CLIPs' sequences, side by side.
    pub(crate) fn clip_width(&self) -> usize {
        self.clips.iter().map(|clip| clip.width).sum()
    }

    pub(crate) fn t5_width(&self) -> Option<usize> {
        self.t5.as_ref().map(|t5| t5.width)
    }

    pub(crate) fn tokenize(&self, prompt: &str) -> Result<Ids, Error> {
        let [one, two] = &self.clips;
        let clip = |clip: &With<clip::Encoder>| clip.tokenizer.encode(prompt, clip.vocabulary);
        let t5 = self.t5.as_ref().map(|t5| t5.tokenizer.encode(prompt, t5.vocabulary)).transpose()?;
        Ok(Ids { clips: [clip(one)?, clip(two)?], t5 })
    }

    /// Each prompt's sequence `[prompts, tokens, width]` and vector `[prompts, width]`, encoder by encoder.
    pub(crate) fn encode(&self, prompts: &[Ids], mut observe: impl FnMut(Progress)) -> Result<(Tensor, Tensor), Error> {
        let passes = prompts.len() as u32;
        let mut seen = |component, pass| observe(Progress { component, pass, passes });
        let mut clip = |index: usize| {
            let With { name, model, .. } = &self.clips[index];
            let mut encode = |(pass, ids): (u32, &Ids)| {
                let encoded = model.run_again(|m| m.forward(&ids.clips[index])).map_err(in_component(name))?;
                seen(name, pass);
                Ok(encoded)
            };
            (1..).zip(prompts).map(&mut encode).collect::<Result<Vec<_>, Error>>()
        };
        let (first, second) = (clip(0)?, clip(1)?);
        let (mut sequences, mut vectors) = (Vec::new(), Vec::new());
        for ((pass, ids), (one, two)) in (1..).zip(prompts).zip(first.iter().zip(&second)) {
            let both = Tensor::cat(&[&one.hidden, &two.hidden], D::Minus1)?;
            let both = both.pad_with_zeros(D::Minus1, 0, self.width.saturating_sub(both.dim(D::Minus1)?))?;
            let t5 = match (&self.t5, &ids.t5) {
                (Some(t5), Some(ids)) => {
                    let out = t5.model.run_again(|m| m.forward(ids)).map_err(in_component(t5.name))?;
                    seen(t5.name, pass);
                    out
                }
                _ => Tensor::zeros((1, T5_TOKENS, self.width), both.dtype(), both.device())?,
            };
            sequences.push(Tensor::cat(&[both, t5], 1)?);
            vectors.push(Tensor::cat(&[&one.pooled, &two.pooled], D::Minus1)?);
        }
        Ok((Tensor::cat(&sequences, 0)?, Tensor::cat(&vectors, 0)?.to_dtype(DType::F32)?))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        2 + u32::from(self.t5.is_some())
    }
}

fn part(name: &'static str, passes: u32) -> Part {
    Part { name, library: Library::Transformers, phase: 0, passes, dtype: None }
}

/// The largest part by far is often left out: then the document says null.
fn has_t5(folder: &Folder) -> bool {
    !folder.lacks(TEXT_ENCODER_3)
}
