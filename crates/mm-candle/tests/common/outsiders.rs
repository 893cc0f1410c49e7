//! Unmodified models of candle-transformers, small, with random weights and one input each.
#![allow(dead_code, unreachable_pub, missing_docs)]

use super::tensor;
use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{
    bert::{BertModel, Config as BertConfig},
    llama::{Cache, Config as LlamaConfig, Llama},
    qwen3::{Config as Qwen3Config, ModelForCausalLM as Qwen3},
    stable_diffusion::unet_2d::{BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig},
    t5::{Config as T5Config, T5EncoderModel, T5ForConditionalGeneration},
    whisper::{Config as WhisperConfig, model::Whisper},
};
use std::path::Path;

/// Writes random weights for whatever `build` asks for.
pub fn random_checkpoint<M>(file: &Path, build: impl Fn(VarBuilder<'_>) -> Result<M>) {
    let map = VarMap::new();
    drop(build(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu)).unwrap());
    let named = map.data().lock().unwrap();
    for (name, var) in named.iter() {
        let seed = name.bytes().fold(7usize, |seed, b| (seed * 31 + usize::from(b)) % 100_003);
        var.set(&tensor(var.dims(), seed)).unwrap();
    }
    drop(named);
    map.save(file).unwrap();
}

/// An unmodified model, and one way to use it.
pub trait Outsider: Send + Sized + 'static {
    fn build(vb: VarBuilder<'_>) -> Result<Self>;
    fn answer(&mut self) -> Result<Tensor>;
}

fn ids() -> Tensor {
    Tensor::new(&[[1u32, 7, 3, 12, 5]], &Device::Cpu).unwrap()
}

fn t5_config() -> T5Config {
    let config = serde_json::json!({
        "vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_heads": 4,
        "relative_attention_num_buckets": 8, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": true,
        "tie_word_embeddings": true, "use_cache": false, "pad_token_id": 0, "eos_token_id": 1,
    });
    serde_json::from_value(config).unwrap()
}

impl Outsider for T5EncoderModel {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        Self::load(vb, &t5_config())
    }

    fn answer(&mut self) -> Result<Tensor> {
        self.forward(&ids())
    }
}

/// Encoder and decoder, with the embedding used again as its head, outside the span that it was built beside.
impl Outsider for T5ForConditionalGeneration {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        Self::load(vb, &t5_config())
    }

    fn answer(&mut self) -> Result<Tensor> {
        self.forward(&ids(), &ids().i((.., ..2))?.contiguous()?)
    }
}

impl Outsider for UNet2DConditionModel {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        let block = |out_channels, use_cross_attn| BlockConfig { out_channels, use_cross_attn, attention_head_dim: 4 };
        let config = UNet2DConditionModelConfig {
            blocks: vec![block(32, Some(1)), block(64, Some(2)), block(64, None)],
            layers_per_block: 2,
            cross_attention_dim: 16,
            ..UNet2DConditionModelConfig::default()
        };
        Self::new(vb, 4, 4, false, config)
    }

    fn answer(&mut self) -> Result<Tensor> {
        self.forward(&tensor(&[1, 4, 8, 8], 3), 7.0, &tensor(&[1, 6, 16], 4))
    }
}

impl Outsider for BertModel {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        let config: BertConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
            "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
            "max_position_embeddings": 16, "type_vocab_size": 2, "initializer_range": 0.02,
            "layer_norm_eps": 1e-12, "pad_token_id": 0,
        }))
        .unwrap();
        Self::load(vb, &config)
    }

    fn answer(&mut self) -> Result<Tensor> {
        self.forward(&ids(), &ids().zeros_like()?, None)
    }
}

/// Llama with the configuration that its forward asks for.
pub struct Chat(Llama, LlamaConfig);

impl Outsider for Chat {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        let config = LlamaConfig {
            hidden_size: 32,
            intermediate_size: 64,
            vocab_size: 40,
            num_hidden_layers: 9,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 32,
            tie_word_embeddings: true,
        };
        Ok(Self(Llama::load(vb, &config)?, config))
    }

    fn answer(&mut self) -> Result<Tensor> {
        let mut cache = Cache::new(true, DType::F32, &self.1, &Device::Cpu)?;
        let prompt = self.0.forward(&ids(), 0, &mut cache)?;
        let next = self.0.forward(&Tensor::new(&[[9u32]], &Device::Cpu)?, 5, &mut cache)?;
        Tensor::cat(&[prompt, next], 0)
    }
}

/// Its layers have spans, and its blocks have none.
impl Outsider for Qwen3 {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        let config: Qwen3Config = serde_json::from_value(serde_json::json!({
            "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5,
            "num_attention_heads": 4, "head_dim": 8, "attention_bias": false, "num_key_value_heads": 2,
            "max_position_embeddings": 32, "sliding_window": null, "max_window_layers": 5,
            "tie_word_embeddings": true, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
            "use_sliding_window": false, "hidden_act": "silu",
        }))
        .unwrap();
        Self::new(&config, vb)
    }

    fn answer(&mut self) -> Result<Tensor> {
        self.clear_kv_cache();
        self.forward(&ids(), 0)
    }
}

impl Outsider for Whisper {
    fn build(vb: VarBuilder<'_>) -> Result<Self> {
        let config: WhisperConfig = serde_json::from_value(serde_json::json!({
            "num_mel_bins": 8, "max_source_positions": 10, "d_model": 32, "encoder_attention_heads": 4,
            "encoder_layers": 3, "vocab_size": 40, "max_target_positions": 12, "decoder_attention_heads": 4,
            "decoder_layers": 3,
        }))
        .unwrap();
        Self::load(&vb, config)
    }

    fn answer(&mut self) -> Result<Tensor> {
        let sound = self.encoder.forward(&tensor(&[1, 8, 20], 6), true)?;
        let words = self.decoder.forward(&ids(), &sound, true)?;
        self.decoder.final_linear(&words)
    }
}
