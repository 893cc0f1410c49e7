//! One CLIP, or two: a prompt as a sequence, and in SDXL as one vector too.

use crate::{
    Error, Loader, Progress, clip,
    lora::{FIRST, Member, SECOND},
    padded::PaddedTokenizer,
    part::{Load, Part, in_component},
};
use candle_core::{D, DType, Tensor};
use mm_candle::Component;
use mm_probe::Library;

pub(crate) const TEXT_ENCODER: &str = "text_encoder";
pub(crate) const TEXT_ENCODER_2: &str = "text_encoder_2";

/// An encoder, and how prompts become its tokens.
struct Clip {
    name: &'static str,
    tokenizer: PaddedTokenizer,
    vocabulary: usize,
    width: usize,
    pooled: usize,
    model: Component<clip::Encoder>,
}

/// All of a pipeline's text encoders.
pub(crate) struct Encoders {
    first: Clip,
    second: Option<Clip>,
}

/// A prompt's tokens, for each encoder.
pub(crate) struct Ids(pub(crate) Vec<Vec<u32>>);

/// What prompts are to the UNet.
pub(crate) struct Prompts {
    /// `[prompts, tokens, width]`.
    pub(crate) text: Tensor,
    /// `[prompts, width]` in f32, where there is a second encoder.
    pub(crate) pooled: Option<Tensor>,
}

impl Encoders {
    /// `two`: of SDXL.
    pub(crate) fn load<L: Loader>(load: &Load<'_, L>, passes: u32, two: bool) -> Result<Self, Error> {
        let clip = |name, tokenizer, class| {
            load.folder.expect(name, &[class])?;
            let config = clip::Config::open(load.folder, name, class == "CLIPTextModelWithProjection")?;
            Ok::<_, Error>(Clip {
                name,
                tokenizer: PaddedTokenizer::open(load.folder, tokenizer, config.max_position_embeddings)?,
                vocabulary: config.vocab_size,
                width: config.hidden_size,
                pooled: config.pooled_width(),
                model: load.component(
                    Part { name, library: Library::Transformers, phase: 0, passes, dtype: None },
                    &config,
                    clip::Encoder::new,
                )?,
            })
        };
        let second = || clip(TEXT_ENCODER_2, "tokenizer_2", "CLIPTextModelWithProjection");
        Ok(Self { first: clip(TEXT_ENCODER, "tokenizer", "CLIPTextModel")?, second: two.then(second).transpose()? })
    }

    fn all(&self) -> impl Iterator<Item = &Clip> {
        [Some(&self.first), self.second.as_ref()].into_iter().flatten()
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        let clips = self.all().zip([FIRST, SECOND]);
        clips.map(|(clip, prefixes)| Member { name: clip.name, prefixes, rows: &[], component: &clip.model }).collect()
    }

    /// Of the sequence: of both, side by side.
    pub(crate) fn width(&self) -> usize {
        self.all().map(|clip| clip.width).sum()
    }

    /// Of the vector.
    pub(crate) fn pooled_width(&self) -> Option<usize> {
        self.second.as_ref().map(|clip| clip.pooled)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        1 + u32::from(self.second.is_some())
    }

    pub(crate) fn tokenize(&self, prompt: &str) -> Result<Ids, Error> {
        let ids = self.all().map(|clip| clip.tokenizer.encode(prompt, clip.vocabulary));
        Ok(Ids(ids.collect::<Result<_, _>>()?))
    }

    /// Encoder by encoder, each all prompts.
    pub(crate) fn encode(&self, prompts: &[Ids], mut observe: impl FnMut(Progress)) -> Result<Prompts, Error> {
        let (passes, mut sequences, mut pooled) = (prompts.len() as u32, Vec::new(), None);
        for (index, clip) in self.all().enumerate() {
            let mut encoded = Vec::new();
            for (pass, Ids(ids)) in (1..).zip(prompts) {
                let ids = ids.get(index).map_or(&[][..], Vec::as_slice);
                encoded.push(clip.model.run_again(|model| model.forward(ids)).map_err(in_component(clip.name))?);
                observe(Progress { component: clip.name, pass, passes });
            }
            // With two encoders both stop before their last layer.
            let sequence =
                |one: &clip::Encoded| if self.second.is_some() { one.hidden.clone() } else { one.last.clone() };
            sequences.push(Tensor::cat(&encoded.iter().map(sequence).collect::<Vec<_>>(), 0)?);
            if self.second.is_some() {
                // The last encoder's counts.
                let vectors: Vec<_> = encoded.into_iter().map(|one| one.pooled).collect();
                pooled = Some(Tensor::cat(&vectors, 0)?.to_dtype(DType::F32)?);
            }
        }
        Ok(Prompts { text: Tensor::cat(&sequences, D::Minus1)?, pooled })
    }
}

impl Prompts {
    /// With one more of zeros.
    pub(crate) fn and_zeros(self) -> candle_core::Result<Self> {
        let longer = |tensor: Tensor| tensor.pad_with_zeros(0, 0, 1);
        Ok(Self { text: longer(self.text)?, pooled: self.pooled.map(longer).transpose()? })
    }
}
