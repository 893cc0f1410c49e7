//! CLIP's text model, candle's own and managed whole, and what it is asked for: the prompt as one vector.

use crate::{Error, check::Check, folder::Folder};
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
use serde::Deserialize;

/// The end of a prompt, where the configuration says nothing.
const EOS: u32 = 49_407;

/// What files say that were written before transformers knew the end of a prompt: it is the largest id.
const UNKNOWN_EOS: u32 = 2;

/// What its `config.json` says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) max_position_embeddings: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: Option<f64>,
    eos_token_id: Option<u32>,
}

impl Config {
    /// Reads the file in the folder of this component.
    pub(crate) fn open(folder: &Folder, component: &str) -> std::result::Result<Self, Error> {
        let (config, file) = folder.config::<Self>(&format!("{component}/config.json"))?;
        let check = Check(&file);
        for (key, value) in [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("num_attention_heads", config.num_attention_heads),
        ] {
            check.size(key, value)?;
        }
        check.layers("num_hidden_layers", config.num_hidden_layers, 1)?;
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let reason = format!("expected a divisor of hidden_size, {width}");
        check.holds(width.is_multiple_of(heads), "num_attention_heads", heads, reason)?;
        check.supported(config.hidden_act == "quick_gelu", "hidden_act", &config.hidden_act, "quick_gelu")?;
        let eps = config.layer_norm_eps.unwrap_or(1e-5);
        check.supported(eps == 1e-5, "layer_norm_eps", eps, "1e-5")?;
        Ok(config)
    }

    /// Builds the model.
    pub(crate) fn build(&self, vb: VarBuilder<'_>) -> Result<ClipTextTransformer> {
        let config = ClipTextConfig {
            vocab_size: self.vocab_size,
            embed_dim: self.hidden_size,
            activation: Activation::QuickGelu,
            intermediate_size: self.intermediate_size,
            max_position_embeddings: self.max_position_embeddings,
            pad_with: None,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            projection_dim: self.hidden_size,
        };
        ClipTextTransformer::new(vb.pp("text_model"), &config)
    }

    /// The hidden state at the prompt's end, `[1, width]`.
    pub(crate) fn pooled(&self, model: &ClipTextTransformer, ids: &[u32]) -> Result<Tensor> {
        let hidden = model.forward_with_mask(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, usize::MAX)?;
        hidden.narrow(1, self.end(ids), 1)?.squeeze(1)
    }

    /// Where the prompt ends: padding may be the same token, so the first counts.
    fn end(&self, ids: &[u32]) -> usize {
        let end = match self.eos_token_id.unwrap_or(EOS) {
            UNKNOWN_EOS => ids.iter().copied().max(),
            eos => Some(eos),
        };
        ids.iter().position(|id| Some(*id) == end).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(eos: Option<u32>, ids: &[u32]) -> usize {
        let json = serde_json::json!({
            "vocab_size": 50_000, "hidden_size": 8, "max_position_embeddings": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "quick_gelu", "eos_token_id": eos
        });
        serde_json::from_value::<Config>(json).unwrap().end(ids)
    }

    #[test]
    fn the_first_of_equal_ends_counts() {
        assert_eq!(end(None, &[49_406, 5, 49_407, 49_407]), 2);
        assert_eq!(end(Some(2), &[49_406, 5, 49_407, 49_407]), 2, "the largest id");
        assert_eq!(end(Some(9), &[8, 5, 49_407, 9, 0]), 3);
        assert_eq!(end(Some(9), &[8, 5]), 0, "as the reference has it");
    }
}
