//! The encoder of T5 on `Blocks`: at 4.7 billion parameters it is larger than many a device.

use crate::{Error, check::Check, folder::Folder};
use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Blocks, Embedding, Linear, embedding, linear_no_bias};
use serde::Deserialize;

/// What its `config.json` says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f64,
    feed_forward_proj: String,
}

const fn buckets() -> usize {
    32
}

const fn distance() -> usize {
    128
}

impl Config {
    /// Reads the file in the folder of this component.
    pub(crate) fn open(folder: &Folder, component: &str) -> std::result::Result<Self, Error> {
        let (config, file) = folder.config::<Self>(&format!("{component}/config.json"))?;
        let check = Check(&file);
        for (key, value) in [
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_heads", config.num_heads),
        ] {
            check.size(key, value)?;
        }
        check.layers("num_layers", config.num_layers, 1)?;
        check.positive("layer_norm_epsilon", config.layer_norm_epsilon)?;
        let activation = &config.feed_forward_proj;
        check.supported(activation == "gated-gelu", "feed_forward_proj", activation, "gated-gelu")?;
        let (buckets, distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        let fits = buckets.is_multiple_of(4) && (4..=4096).contains(&buckets);
        let reason = "expected a multiple of 4 up to 4096".to_owned();
        check.holds(fits, "relative_attention_num_buckets", buckets, reason)?;
        let reason = format!("expected more than a quarter of relative_attention_num_buckets, {buckets}");
        check.holds(distance > buckets / 4, "relative_attention_max_distance", distance, reason)?;
        Ok(config)
    }
}

/// All blocks and the norm after them.
pub(crate) struct Encoder {
    embed: Embedding,
    /// The first block's, which all share: it belongs to none.
    bias: Embedding,
    blocks: Blocks<Block>,
    norm: Norm,
    buckets: Buckets,
    dtype: DType,
}

/// What the weights are called.
struct Names {
    embed: &'static str,
    bias: &'static str,
    /// Where the blocks are, and in what stack.
    stack: (&'static str, &'static str),
    norm: &'static str,
    block: BlockNames,
}

struct BlockNames {
    attention_norm: &'static str,
    /// Queries, keys, values, and out.
    attention: [&'static str; 4],
    feed_forward_norm: &'static str,
    /// Gate, up and down.
    feed_forward: [&'static str; 3],
}

/// Transformers' own.
const TRANSFORMERS: Names = Names {
    embed: "shared",
    bias: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    stack: ("encoder", "block"),
    norm: "encoder.final_layer_norm",
    block: BlockNames {
        attention_norm: "layer.0.layer_norm",
        attention: [
            "layer.0.SelfAttention.q",
            "layer.0.SelfAttention.k",
            "layer.0.SelfAttention.v",
            "layer.0.SelfAttention.o",
        ],
        feed_forward_norm: "layer.1.layer_norm",
        feed_forward: ["layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wo"],
    },
};

/// Those of llama.cpp, and so of most GGUF files.
const LLAMA_CPP: Names = Names {
    embed: "token_embd",
    bias: "enc.blk.0.attn_rel_b",
    stack: ("enc", "blk"),
    norm: "enc.output_norm",
    block: BlockNames {
        attention_norm: "attn_norm",
        attention: ["attn_q", "attn_k", "attn_v", "attn_o"],
        feed_forward_norm: "ffn_norm",
        feed_forward: ["ffn_gate", "ffn_up", "ffn_down"],
    },
};

impl Names {
    fn find(vb: &VarBuilder<'_>) -> Self {
        let has = |name: &str| vb.contains_tensor(&format!("{name}.weight"));
        match () {
            () if has(TRANSFORMERS.embed) => TRANSFORMERS,
            () if has("encoder.embed_tokens") => Self { embed: "encoder.embed_tokens", ..TRANSFORMERS },
            () if has(LLAMA_CPP.embed) => LLAMA_CPP,
            () => TRANSFORMERS,
        }
    }
}

impl Encoder {
    pub(crate) fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let names = Names::find(&vb);
        let block = |_, vb: VarBuilder<'_>| Block::new(config, &names.block, &vb);
        Ok(Self {
            embed: embedding(config.vocab_size, config.d_model, vb.pp(names.embed))?,
            bias: embedding(config.relative_attention_num_buckets, config.num_heads, vb.pp(names.bias))?,
            blocks: Blocks::load(&vb.pp(names.stack.0), names.stack.1, config.num_layers, block)?,
            norm: Norm::new(config, &vb.pp(names.norm))?,
            buckets: Buckets::of(config),
            dtype: vb.dtype(),
        })
    }

    /// Token ids in, `[1, tokens, width]` out. All tokens are attended to, padding too: pipelines give no mask.
    pub(crate) fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let device = self.embed.device();
        let mut x = self.embed.forward(&Tensor::new(ids, device)?.unsqueeze(0)?)?;
        if self.dtype == DType::F16 {
            // Its sums overflow in f16: the reference keeps them, and the layers that make them, in f32.
            x = x.to_dtype(DType::F32)?;
        }
        let bias = self.bias.forward(&self.buckets.table(ids.len(), device)?)?.permute((2, 0, 1))?.unsqueeze(0)?;
        for block in self.blocks.iter() {
            x = block?.forward(&x, &bias)?;
        }
        self.norm.forward(&x)
    }
}

/// Which bias a distance has: near ones their own, far ones one for each step of a logarithm.
struct Buckets {
    /// Of each direction.
    count: usize,
    farthest: usize,
}

impl Buckets {
    const fn of(config: &Config) -> Self {
        Self { count: config.relative_attention_num_buckets / 2, farthest: config.relative_attention_max_distance }
    }

    /// `[queries, keys]`.
    fn table(&self, tokens: usize, device: &Device) -> Result<Tensor> {
        let bucket = |query: usize, key: usize| {
            let later = if key > query { self.count } else { 0 };
            (later + self.of_distance(query.abs_diff(key))) as u32
        };
        let all: Vec<u32> = (0..tokens).flat_map(|query| (0..tokens).map(move |key| bucket(query, key))).collect();
        Tensor::from_vec(all, (tokens, tokens), device)
    }

    fn of_distance(&self, distance: usize) -> usize {
        let near = self.count / 2;
        if distance < near {
            return distance;
        }
        // In single precision, as in the reference: it decides at the edges of a bucket.
        let share = f32::log(distance as f32 / near as f32, self.farthest as f32 / near as f32);
        (near + (share * (self.count - near) as f32) as usize).min(self.count - 1)
    }
}

/// Scales to a mean square of one, in f32; the result has the dtype of the weights.
struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get(config.d_model, "weight")?, eps: config.layer_norm_epsilon })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(square + self.eps)?.sqrt()?)?;
        x.to_dtype(self.weight.dtype())?.broadcast_mul(&self.weight)
    }
}

struct Block {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(config: &Config, names: &BlockNames, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, inner, [gate, up, down]) = (config.d_model, config.d_ff, names.feed_forward);
        let down_dtype = if vb.dtype() == DType::F16 { DType::F32 } else { vb.dtype() };
        Ok(Self {
            attention_norm: Norm::new(config, &vb.pp(names.attention_norm))?,
            attention: Attention::new(config, names.attention, vb)?,
            feed_forward_norm: Norm::new(config, &vb.pp(names.feed_forward_norm))?,
            gate: linear_no_bias(width, inner, vb.pp(gate))?,
            up: linear_no_bias(width, inner, vb.pp(up))?,
            down: linear_no_bias(inner, width, vb.pp(down).to_dtype(down_dtype))?,
        })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let h = self.attention.forward(&self.attention_norm.forward(x)?, bias)?;
        let x = (x + h.to_dtype(x.dtype())?)?;
        let h = self.feed_forward_norm.forward(&x)?;
        let h = (self.gate.forward(&h)?.gelu()? * self.up.forward(&h)?)?;
        &x + self.down.forward(&h.to_dtype(x.dtype())?)?
    }
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn new(config: &Config, [q, k, v, out]: [&str; 4], vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        Ok(Self {
            q: linear_no_bias(width, inner, vb.pp(q))?,
            k: linear_no_bias(width, inner, vb.pp(k))?,
            v: linear_no_bias(width, inner, vb.pp(v))?,
            out: linear_no_bias(inner, width, vb.pp(out))?,
            heads: config.num_heads,
        })
    }

    /// Scores are not scaled; the bias is added in the compute dtype, weights are computed in f32.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let split = |x: Tensor| x.reshape((batch, tokens, self.heads, ()))?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (split(self.q.forward(x)?)?, split(self.k.forward(x)?)?, split(self.v.forward(x)?)?);
        let scores = q.matmul(&k.t()?)?.broadcast_add(bias)?.to_dtype(DType::F32)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        self.out.forward(&weights.matmul(&v)?.transpose(1, 2)?.flatten_from(2)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invented::Invented;
    use candle_transformers::models::t5;

    fn compare(tokens: usize) {
        let json = serde_json::json!({
            "vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 2,
            "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1, "initializer_factor": 1.0,
            "is_encoder_decoder": true, "pad_token_id": 0, "eos_token_id": 1, "relative_attention_num_buckets": 32
        });
        let ids: Vec<u32> = (0..tokens as u32).map(|i| (i * 7 + 3) % 50).collect();
        let theirs: t5::Config = serde_json::from_value(json.clone()).unwrap();
        let mut theirs = t5::T5EncoderModel::load(Invented::original(), &theirs).unwrap();
        let expected = theirs.forward(&Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap()).unwrap();
        let ours: Config = serde_json::from_value(json).unwrap();
        let out = Encoder::new(&ours, Invented::original()).unwrap().forward(&ids).unwrap();
        assert_eq!(out.dims(), expected.dims());
        let bits = |t: &Tensor| -> Vec<u32> {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        assert!(bits(&out) == bits(&expected), "{tokens} tokens: other bits");
    }

    #[test]
    fn it_equals_candles_own_bit_for_bit() {
        // One; fewer than have a bias of their own; beyond the farthest.
        for tokens in [1, 7, 300] {
            compare(tokens);
        }
    }

    #[test]
    fn half_precision_keeps_its_sums() {
        let json = serde_json::json!({
            "vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 2,
            "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu"
        });
        let config: Config = serde_json::from_value(json).unwrap();
        // Layers that make sums beyond f16's largest number, as the real checkpoint's do.
        let large = || {
            Invented::named(|name, shape| {
                let tensor = Invented::tensor(name, shape).ok()?;
                if name.contains(".wo.") { (tensor * 20_000.0).ok() } else { Some(tensor) }
            })
        };
        let forward = |dtype| {
            let out = Encoder::new(&config, large().to_dtype(dtype)).unwrap().forward(&[3, 1, 4, 1, 5]).unwrap();
            (out.dtype(), out.to_dtype(DType::F32).unwrap())
        };
        let (_, exact) = forward(DType::F32);
        for dtype in [DType::F16, DType::BF16] {
            let (computed, out) = forward(dtype);
            assert_eq!(computed, dtype);
            let square = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let error = (square((&out - &exact).unwrap()) / square(exact.clone())).sqrt();
            println!("{dtype:?}: {error:.1e}");
            assert!(error < if dtype == DType::F16 { 0.01 } else { 0.05 }, "{dtype:?}: {error}");
        }
    }
}
