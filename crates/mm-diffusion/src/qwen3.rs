//! The Qwen3 language model as a text encoder: the hidden state before its last layer.

use crate::{Error, check::Check, folder::Folder, layers::attention};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear, RmsNorm, VarBuilder, embedding, linear_b, linear_no_bias, rms_norm};
use candle_transformers::utils::repeat_kv;
use mm_candle::Blocks;
use serde::Deserialize;

/// What `text_encoder/config.json` says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    /// Older files keep what isn't the default here.
    rope_scaling: Option<Rope>,
    #[serde(default)]
    use_sliding_window: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

fn silu() -> String {
    "silu".to_owned()
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> std::result::Result<Self, Error> {
        let (config, file) = folder.config::<Self>("text_encoder/config.json")?;
        let check = Check(&file);
        check.size("vocab_size", config.vocab_size)?;
        check.size("hidden_size", config.hidden_size)?;
        check.size("intermediate_size", config.intermediate_size)?;
        check.layers("num_hidden_layers", config.num_hidden_layers, 1)?;
        check.size("num_attention_heads", config.num_attention_heads)?;
        check.size("num_key_value_heads", config.num_key_value_heads)?;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let reason = format!("expected a divisor of num_attention_heads, {heads}");
        check.holds(heads.is_multiple_of(kv_heads), "num_key_value_heads", kv_heads, reason)?;
        check.size("head_dim", config.head_dim())?;
        check.holds(
            config.head_dim().is_multiple_of(2),
            "head_dim",
            config.head_dim(),
            "expected an even number".into(),
        )?;
        check.positive("rms_norm_eps", config.rms_norm_eps)?;
        check.positive("rope_theta", config.rope_theta())?;
        check.supported(config.hidden_act == "silu", "hidden_act", &config.hidden_act, "silu")?;
        check.supported(!config.use_sliding_window, "use_sliding_window", config.use_sliding_window, "false")?;
        for (key, rope) in [("rope_parameters", &config.rope_parameters), ("rope_scaling", &config.rope_scaling)] {
            let kind = rope.as_ref().and_then(|r| r.rope_type.as_deref()).unwrap_or("default");
            check.supported(kind == "default", &format!("{key}.rope_type"), kind, "default")?;
        }
        Ok(config)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn rope_theta(&self) -> f64 {
        let nested = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        // The class's default.
        nested.or(self.rope_theta).unwrap_or(10_000.0)
    }
}

/// All but the last layer; the final norm is never asked for either.
pub(crate) struct Encoder {
    embed: Embedding,
    layers: Blocks<Layer>,
    inverse_frequencies: Vec<f32>,
    dtype: DType,
}

impl Encoder {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        // A causal language model keeps its body under this name.
        let vb = if vb.contains_tensor("model.embed_tokens.weight") { vb.pp("model") } else { vb };
        let half = config.head_dim() / 2;
        let frequency = |i| (1.0 / config.rope_theta().powf(i as f64 / half as f64)) as f32;
        Ok(Self {
            embed: embedding(config.vocab_size, config.hidden_size, vb.pp("embed_tokens"))?,
            layers: Blocks::load(&vb, "layers", config.num_hidden_layers - 1, |_, vb| Layer::new(config, vb))?,
            inverse_frequencies: (0..half).map(frequency).collect(),
            dtype: vb.dtype(),
        })
    }

    /// Token ids in, `[tokens, width]` out. Attention is causal, so padding to the right, which the
    /// reference masks out and drops, could not change anything.
    pub(crate) fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let device = self.embed.embeddings().device();
        let ids = Tensor::new(ids, device)?.unsqueeze(0)?;
        let mut x = self.embed.forward(&ids)?;
        let context = Context::new(&self.inverse_frequencies, x.dim(1)?, self.dtype, device)?;
        for layer in self.layers.iter() {
            x = layer?.forward(&x, &context)?;
        }
        x.squeeze(0)
    }
}

/// What all layers of a pass share.
struct Context {
    cos: Tensor,
    sin: Tensor,
    causal: Tensor,
}

impl Context {
    fn new(inverse_frequencies: &[f32], tokens: usize, dtype: DType, device: &Device) -> Result<Self> {
        let angles: Vec<f32> =
            (0..tokens).flat_map(|t| inverse_frequencies.iter().map(move |f| t as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (tokens, inverse_frequencies.len()), device)?;
        let causal: Vec<f32> = (0..tokens)
            .flat_map(|query| (0..tokens).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let causal = Tensor::from_vec(causal, (1, 1, tokens, tokens), device)?;
        // The reference rounds the tables to the compute dtype.
        let table = |t: Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32);
        Ok(Self { cos: table(angles.cos()?)?, sin: table(angles.sin()?)?, causal })
    }

    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let rotated = candle_nn::rotary_emb::rope(&x.to_dtype(DType::F32)?.contiguous()?, &self.cos, &self.sin)?;
        rotated.to_dtype(x.dtype())
    }
}

struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        Ok(Self {
            input_norm: rms_norm(width, eps, vb.pp("input_layernorm"))?,
            attention: Attention::new(config, vb.pp("self_attn"))?,
            post_attention_norm: rms_norm(width, eps, vb.pp("post_attention_layernorm"))?,
            gate: linear_no_bias(width, inner, vb.pp("mlp.gate_proj"))?,
            up: linear_no_bias(width, inner, vb.pp("mlp.up_proj"))?,
            down: linear_no_bias(inner, width, vb.pp("mlp.down_proj"))?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.input_norm.forward(x)?, context)?)?;
        let h = self.post_attention_norm.forward(&x)?;
        let h = (self.gate.forward(&h)?.silu()? * self.up.forward(&h)?)?;
        x + self.down.forward(&h)?
    }
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    heads: usize,
    kv_heads: usize,
}

impl Attention {
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim());
        let (width, bias) = (config.hidden_size, config.attention_bias);
        Ok(Self {
            q: linear_b(width, heads * head_dim, bias, vb.pp("q_proj"))?,
            k: linear_b(width, kv_heads * head_dim, bias, vb.pp("k_proj"))?,
            v: linear_b(width, kv_heads * head_dim, bias, vb.pp("v_proj"))?,
            out: linear_b(heads * head_dim, width, bias, vb.pp("o_proj"))?,
            q_norm: rms_norm(head_dim, config.rms_norm_eps, vb.pp("q_norm"))?,
            k_norm: rms_norm(head_dim, config.rms_norm_eps, vb.pp("k_norm"))?,
            heads,
            kv_heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let split = |x: Tensor, heads| x.reshape((batch, tokens, heads, ()));
        let q = self.q_norm.forward(&split(self.q.forward(x)?, self.heads)?)?.transpose(1, 2)?;
        let k = self.k_norm.forward(&split(self.k.forward(x)?, self.kv_heads)?)?.transpose(1, 2)?;
        let v = split(self.v.forward(x)?, self.kv_heads)?.transpose(1, 2)?.contiguous()?;
        let groups = self.heads / self.kv_heads;
        let (q, k) = (context.rotate(&q)?, repeat_kv(context.rotate(&k)?, groups)?);
        let h = attention(&q, &k, &repeat_kv(v, groups)?, Some(&context.causal))?;
        self.out.forward(&h)
    }
}
