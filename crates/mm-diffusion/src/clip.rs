//! CLIP's text models on `Blocks`: candle's own has fixed sizes and one activation, and keeps what lies before the last layer to itself.

use crate::{Error, check::Check, folder::Folder};
use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, VarBuilder, embedding, layer_norm, linear, linear_no_bias};
use mm_candle::Blocks;
use serde::Deserialize;

/// The end of a prompt, where the configuration says nothing.
const EOS: u32 = 49_407;

/// What files say that were written before transformers knew the end of a prompt: it is the largest id.
const UNKNOWN_EOS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    QuickGelu,
    Gelu,
}

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
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    eos_token_id: Option<u32>,
    #[serde(default = "width")]
    projection_dim: usize,
    /// Whether the class is the one whose pooled output is projected.
    #[serde(skip)]
    projected: bool,
}

const fn eps() -> f64 {
    1e-5
}

const fn width() -> usize {
    512
}

impl Config {
    /// Reads the file in the folder of this component.
    pub(crate) fn open(folder: &Folder, component: &str, projected: bool) -> std::result::Result<Self, Error> {
        let (config, file) = folder.config::<Self>(&format!("{component}/config.json"))?;
        let check = Check(&file);
        for (key, value) in [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("num_attention_heads", config.num_attention_heads),
            ("projection_dim", config.projection_dim),
        ] {
            check.size(key, value)?;
        }
        // Pipelines take what lies before the last.
        check.layers("num_hidden_layers", config.num_hidden_layers, 2)?;
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let reason = format!("expected a divisor of hidden_size, {width}");
        check.holds(width.is_multiple_of(heads), "num_attention_heads", heads, reason)?;
        let known = config.activation().is_some();
        check.supported(known, "hidden_act", &config.hidden_act, "quick_gelu, gelu")?;
        check.positive("layer_norm_eps", config.layer_norm_eps)?;
        Ok(Self { projected, ..config })
    }

    fn activation(&self) -> Option<Activation> {
        match self.hidden_act.as_str() {
            "quick_gelu" => Some(Activation::QuickGelu),
            "gelu" => Some(Activation::Gelu),
            _ => None,
        }
    }

    /// Width of the pooled prompt.
    pub(crate) const fn pooled_width(&self) -> usize {
        if self.projected { self.projection_dim } else { self.hidden_size }
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

/// What a prompt is to pipelines.
pub(crate) struct Encoded {
    /// What the last layer is given, `[1, tokens, width]`.
    pub(crate) hidden: Tensor,
    /// What comes of it, normalized, `[1, tokens, width]`.
    pub(crate) last: Tensor,
    /// The same at the prompt's end, projected where the class does that, `[1, width]`.
    pub(crate) pooled: Tensor,
}

/// The whole model.
pub(crate) struct Encoder {
    config: Config,
    tokens: Embedding,
    positions: Embedding,
    layers: Blocks<Layer>,
    norm: LayerNorm,
    projection: Option<Linear>,
}

impl Encoder {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (width, body) = (config.hidden_size, vb.pp("text_model"));
        let projection = || linear_no_bias(width, config.projection_dim, vb.pp("text_projection"));
        let embeddings = body.pp("embeddings");
        Ok(Self {
            config: config.clone(),
            tokens: embedding(config.vocab_size, width, embeddings.pp("token_embedding"))?,
            positions: embedding(config.max_position_embeddings, width, embeddings.pp("position_embedding"))?,
            layers: Blocks::load(&body.pp("encoder"), "layers", config.num_hidden_layers, |_, vb| {
                Layer::new(config, &vb)
            })?,
            norm: layer_norm(width, config.layer_norm_eps, body.pp("final_layer_norm"))?,
            projection: config.projected.then(projection).transpose()?,
        })
    }

    /// At most as many ids as there are positions.
    pub(crate) fn forward(&self, ids: &[u32]) -> Result<Encoded> {
        self.forward_first(ids, ids.len())
    }

    /// The same, with only the first `seen` ids attended to.
    pub(crate) fn forward_first(&self, ids: &[u32], seen: usize) -> Result<Encoded> {
        let count = ids.len();
        let device = self.tokens.embeddings().device();
        let positions = Tensor::arange(0, count as u32, device)?.unsqueeze(0)?;
        let tokens = self.tokens.forward(&Tensor::new(ids, device)?.unsqueeze(0)?)?;
        let mut x = tokens.broadcast_add(&self.positions.forward(&positions)?)?;
        let mut hidden = x.clone();
        let hidden_from = |query: usize| move |key: usize| if key > query || key >= seen { f32::MIN } else { 0.0 };
        let unseen: Vec<f32> = (0..count).flat_map(|query| (0..count).map(hidden_from(query))).collect();
        let causal = Tensor::from_vec(unseen, (1, 1, count, count), device)?;
        for layer in self.layers.iter() {
            hidden = x;
            x = layer?.forward(&hidden, &causal)?;
        }
        let last = self.norm.forward(&x)?;
        let pooled = last.narrow(1, self.config.end(ids), 1)?.squeeze(1)?;
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok(Encoded { hidden, last, pooled })
    }
}

struct Layer {
    attention_norm: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    feed_forward_norm: LayerNorm,
    up: Linear,
    down: Linear,
    heads: usize,
    activation: Activation,
}

impl Layer {
    fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let project = |name: &str| linear(width, width, vb.pp("self_attn").pp(name));
        Ok(Self {
            attention_norm: layer_norm(width, eps, vb.pp("layer_norm1"))?,
            q: project("q_proj")?,
            k: project("k_proj")?,
            v: project("v_proj")?,
            out: project("out_proj")?,
            feed_forward_norm: layer_norm(width, eps, vb.pp("layer_norm2"))?,
            up: linear(width, inner, vb.pp("mlp.fc1"))?,
            down: linear(inner, width, vb.pp("mlp.fc2"))?,
            heads: config.num_attention_heads,
            activation: config.activation().unwrap_or(Activation::QuickGelu),
        })
    }

    fn forward(&self, x: &Tensor, causal: &Tensor) -> Result<Tensor> {
        let x = (self.attend(&self.attention_norm.forward(x)?, causal)? + x)?;
        let h = self.up.forward(&self.feed_forward_norm.forward(&x)?)?;
        let h = match self.activation {
            Activation::QuickGelu => (&h * candle_nn::ops::sigmoid(&(&h * 1.702)?)?)?,
            Activation::Gelu => h.gelu_erf()?,
        };
        self.down.forward(&h)? + x
    }

    /// Attention in f32, as candle's own computes it: queries are scaled, and softmax is composed.
    fn attend(&self, x: &Tensor, causal: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let split =
            |x: Tensor| x.reshape((batch, tokens, self.heads, ()))?.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32);
        let (q, k) = (split((self.q.forward(x)? * scale)?)?, split(self.k.forward(x)?)?);
        let v = split(self.v.forward(x)?)?;
        let weights = candle_nn::ops::softmax(&q.matmul(&k.t()?)?.broadcast_add(causal)?, D::Minus1)?;
        let attended = weights.matmul(&v)?.to_dtype(x.dtype())?.transpose(1, 2)?.flatten_from(2)?;
        self.out.forward(&attended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invented::Invented;
    use candle_transformers::models::clip::text_model::{Activation as Theirs, ClipTextConfig, ClipTextTransformer};

    fn config(eos: Option<u32>) -> Config {
        let json = serde_json::json!({
            "vocab_size": 50, "hidden_size": 24, "max_position_embeddings": 16, "intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 3, "hidden_act": "quick_gelu", "eos_token_id": eos
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_first_of_equal_ends_counts() {
        let end = |eos, ids| config(eos).end(ids);
        assert_eq!(end(None, &[49_406, 5, 49_407, 49_407]), 2);
        assert_eq!(end(Some(2), &[49_406, 5, 49_407, 49_407]), 2, "the largest id");
        assert_eq!(end(Some(9), &[8, 5, 49_407, 9, 0]), 3);
        assert_eq!(end(Some(9), &[8, 5]), 0, "as the reference has it");
    }

    #[test]
    fn it_equals_candles_own_bit_for_bit() {
        let ids = [48, 3, 1, 4, 1, 5, 9, 2, 6, 49, 49, 49, 49, 49, 49, 49];
        let theirs = ClipTextConfig {
            vocab_size: 50,
            embed_dim: 24,
            activation: Theirs::QuickGelu,
            intermediate_size: 40,
            max_position_embeddings: 16,
            pad_with: None,
            num_hidden_layers: 3,
            num_attention_heads: 3,
            projection_dim: 24,
        };
        let theirs = ClipTextTransformer::new(Invented::original().pp("text_model"), &theirs).unwrap();
        let out =
            theirs.forward_with_mask(&Tensor::new(&[ids], &candle_core::Device::Cpu).unwrap(), usize::MAX).unwrap();
        let expected = out.narrow(1, 9, 1).unwrap();
        let ours = Encoder::new(&config(Some(49)), Invented::original()).unwrap().forward(&ids).unwrap();
        let bits = |t: &Tensor| -> Vec<u32> {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        assert!(bits(&ours.pooled) == bits(&expected), "other bits");
        assert_eq!(ours.hidden.dims(), [1, 16, 24]);
    }
}
