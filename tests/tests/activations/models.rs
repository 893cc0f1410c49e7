//! candle's models at medium sizes, run once each under the counting allocator.

use crate::measure::{Measured, measure};
use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_transformers::models::{
    flux::{self, WithForward},
    mmdit::model as mmdit,
    stable_diffusion::{clip, unet_2d as unet, vae as sd_vae},
    t5, z_image,
};
use serde_json::json;

const CPU: Device = Device::Cpu;

fn values(shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::full(0.01f32, shape, &CPU)?.to_dtype(dtype)
}

fn ids(batch: usize, tokens: usize) -> Result<Tensor> {
    Tensor::ones((batch, tokens), DType::U32, &CPU)
}

/// Heads of 128 values; 512 tokens of text.
pub(crate) fn flux(side: usize, batch: usize, dtype: DType) -> Result<Measured> {
    let config = flux::model::Config {
        hidden_size: 512,
        num_heads: 4,
        context_in_dim: 64,
        vec_in_dim: 64,
        depth: 2,
        depth_single_blocks: 2,
        ..flux::model::Config::dev()
    };
    let (text, pooled) = (values(&[1, 512, 64], dtype)?, values(&[1, 64], dtype)?);
    let state = flux::sampling::State::new(&text, &pooled, &values(&[batch, 16, side / 8, side / 8], dtype)?)?;
    let time = values(&[batch], dtype)?;
    measure(
        dtype,
        &[],
        |vb| flux::model::Flux::new(&config, vb),
        |model| model.forward(&state.img, &state.img_ids, &state.txt, &state.txt_ids, &time, &state.vec, Some(&time)),
    )
}

/// candle's computes its timestep in f16 whatever the weights. `present`: what decides for one of the variants.
pub(crate) fn sd3(side: usize, batch: usize, present: &[&str]) -> Result<Measured> {
    let config = mmdit::Config {
        depth: 6,
        adm_in_channels: 64,
        context_embed_size: 64,
        pos_embed_max_size: 64,
        ..mmdit::Config::sd3_5_medium()
    };
    let dtype = DType::F16;
    let latents = values(&[batch, 16, side / 8, side / 8], dtype)?;
    let (time, pooled, text) =
        (values(&[batch], DType::F32)?, values(&[batch, 64], dtype)?, values(&[batch, 333, 64], dtype)?);
    measure(
        dtype,
        present,
        |vb| mmdit::MMDiT::new(&config, false, vb),
        |model| model.forward(&latents, &time, &pooled, &text, None),
    )
}

/// `attention`: for each level its heads, if it has attention.
pub(crate) fn unet(side: usize, batch: usize, attention: [Option<usize>; 3], dtype: DType) -> Result<Measured> {
    let level = |(out_channels, heads): (usize, Option<usize>)| unet::BlockConfig {
        out_channels,
        use_cross_attn: heads.map(|_| 1),
        attention_head_dim: heads.unwrap_or(2),
    };
    let config = unet::UNet2DConditionModelConfig {
        blocks: [64, 128, 128].into_iter().zip(attention).map(level).collect(),
        cross_attention_dim: 64,
        use_linear_projection: true,
        ..Default::default()
    };
    let heads: Vec<_> = config.blocks.iter().map(|block| block.attention_head_dim).collect();
    let (latents, text) = (values(&[batch, 4, side / 8, side / 8], dtype)?, values(&[batch, 77, 64], dtype)?);
    let measured = measure(
        dtype,
        &[],
        |vb| unet::UNet2DConditionModel::new(vb, 4, 4, false, config.clone()),
        |model| model.forward(&latents, 500.0, &text),
    )?;
    Ok(Measured { config: Some(json!({ "attention_head_dim": heads })), ..measured })
}

pub(crate) fn t5(batch: usize, gated: bool, dtype: DType) -> Result<Measured> {
    let config = t5::Config {
        vocab_size: 64,
        num_layers: 2,
        feed_forward_proj: t5::ActivationWithOptionalGating { gated, activation: candle_nn::Activation::NewGelu },
        ..Default::default()
    };
    let ids = ids(batch, 512)?;
    measure(
        dtype,
        &["shared.weight"],
        |vb| t5::T5EncoderModel::load(vb, &config).map(std::cell::RefCell::new),
        |model| model.borrow_mut().forward(&ids),
    )
}

/// candle's mask fits one prompt, or as many as there are heads.
pub(crate) fn clip() -> Result<Measured> {
    let ids = ids(12, 77)?;
    measure(
        DType::F32,
        &[],
        |vb| clip::ClipTextTransformer::new(vb, &clip::Config::v1_5()),
        |model| model.forward(&ids),
    )
}

pub(crate) fn candle_z_image(side: usize, batch: usize, dtype: DType) -> Result<Measured> {
    let config = z_image::Config {
        dim: 384,
        n_layers: 2,
        n_refiner_layers: 1,
        n_heads: 6,
        n_kv_heads: 6,
        cap_feat_dim: 64,
        axes_dims: vec![16, 24, 24],
        ..z_image::Config::z_image_turbo()
    };
    let latents = values(&[batch, 16, 1, side / 8, side / 8], dtype)?;
    let (time, text) = (values(&[batch], dtype)?, values(&[batch, 512, 64], dtype)?);
    let mask = Tensor::ones((batch, 512), DType::U8, &CPU)?;
    measure(
        dtype,
        &[],
        |vb| z_image::ZImageTransformer2DModel::new(&config, vb),
        |model| model.forward(&latents, &time, &text, &mask),
    )
}

/// Z-Image's text encoder as candle has it.
pub(crate) fn candle_qwen3(batch: usize) -> Result<Measured> {
    let config = z_image::TextEncoderConfig {
        vocab_size: 64,
        hidden_size: 512,
        intermediate_size: 1536,
        num_hidden_layers: 3,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 128,
        max_position_embeddings: 1024,
        ..z_image::TextEncoderConfig::z_image()
    };
    let ids = ids(batch, 512)?;
    measure(DType::F32, &[], |vb| z_image::ZImageTextEncoder::new(&config, vb), |model| model.forward(&ids))
}

/// Decoding, with candle's three forms of the same VAE.
pub(crate) fn z_image_vae(side: usize, batch: usize) -> Result<Measured> {
    let config = z_image::VaeConfig {
        block_out_channels: vec![32, 64, 128, 128],
        latent_channels: 4,
        ..z_image::VaeConfig::z_image()
    };
    let latents = values(&[batch, 4, side / 8, side / 8], DType::F32)?;
    measure(
        DType::F32,
        &[],
        |vb| z_image::vae::Decoder::new(&config, vb.pp("decoder")),
        |model| model.forward(&latents),
    )
}

pub(crate) fn flux_vae(side: usize) -> Result<Measured> {
    let config = flux::autoencoder::Config {
        ch: 32,
        ch_mult: vec![1, 2, 4, 4],
        z_channels: 4,
        ..flux::autoencoder::Config::dev()
    };
    let latents = values(&[1, 4, side / 8, side / 8], DType::F32)?;
    measure(
        DType::F32,
        &[],
        |vb| flux::autoencoder::Decoder::new(&config, vb.pp("decoder")),
        |model| model.forward(&latents),
    )
}

pub(crate) fn stable_diffusion_vae(side: usize) -> Result<Measured> {
    let config = sd_vae::AutoEncoderKLConfig {
        block_out_channels: vec![32, 64, 128, 128],
        layers_per_block: 2,
        latent_channels: 4,
        norm_num_groups: 32,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let latents = values(&[1, 4, side / 8, side / 8], DType::F32)?;
    let build = |vb: candle_nn::VarBuilder<'_>| sd_vae::AutoEncoderKL::new(vb, 3, 3, config.clone());
    measure(DType::F32, &["attentions.0.to_q.weight"], build, |model| model.decode(&latents)?.i(0))
}
