//! A CLIP of the pipeline's two: a prompt as a sequence, of which padding is not attended to.

use crate::{
    Error, Loader, Progress, clip,
    lora::Member,
    padded::PaddedTokenizer,
    part::{Load, Part, in_component},
};
use candle_core::{DType, Tensor};
use mm_candle::Component;
use mm_probe::Library;

pub(crate) struct Text {
    name: &'static str,
    tokenizer: PaddedTokenizer,
    vocabulary: usize,
    pub(crate) width: usize,
    model: Component<clip::Encoder>,
}

/// A prompt's tokens, and how many are not padding.
pub(crate) struct Ids(pub(crate) Vec<u32>, usize);

impl Text {
    pub(crate) fn member(&self, prefixes: &'static [&'static str]) -> Member<'_> {
        Member { name: self.name, prefixes, rows: &[], component: &self.model }
    }

    pub(crate) fn load<L: Loader>(
        load: &Load<'_, L>,
        name: &'static str,
        tokenizer: &str,
        passes: u32,
    ) -> Result<Self, Error> {
        load.folder.expect(name, &["CLIPTextModel"])?;
        let config = clip::Config::open(load.folder, name, false)?;
        Ok(Self {
            name,
            tokenizer: PaddedTokenizer::open(load.folder, tokenizer, config.max_position_embeddings)?,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            model: load.component(
                Part { name, library: Library::Transformers, phase: 0, passes, dtype: None },
                &config,
                clip::Encoder::new,
            )?,
        })
    }

    pub(crate) fn tokenize(&self, prompt: &str) -> Result<Ids, Error> {
        let (ids, count) = self.tokenizer.encode_counted(prompt, self.vocabulary)?;
        Ok(Ids(ids, count))
    }

    /// `[prompts, tokens, width]`, in f32.
    pub(crate) fn encode(&self, prompts: &[Ids], mut observe: impl FnMut(Progress)) -> Result<Tensor, Error> {
        let (passes, mut sequences) = (prompts.len() as u32, Vec::new());
        for (pass, Ids(ids, count)) in (1..).zip(prompts) {
            let forward = |model: &mut clip::Encoder| model.forward_first(ids, *count);
            sequences.push(self.model.run_again(forward).map_err(in_component(self.name))?.last);
            observe(Progress { component: self.name, pass, passes });
        }
        Ok(Tensor::cat(&sequences, 0)?.to_dtype(DType::F32)?)
    }
}
