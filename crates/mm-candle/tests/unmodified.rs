//! Models of candle-transformers, as they are: what they compute does not depend on who manages their memory.
//!
//! Sizes are small where the model lets one choose them. Its Stable Diffusion CLIP and Wuerstchen's decoder don't:
//! `cargo test --release -p mm-candle --test unmodified -- --ignored` runs them at their real sizes, 0.5 and 4 GB.

mod common;

use candle_core::{D, DType, Device, IndexOp, Module, Tensor};
use candle_transformers::models::{
    bert, clip, flux, flux::WithForward, llama, mmdit::model as mmdit, openclip::text_model as openclip,
    stable_diffusion, stable_diffusion::unet_2d as unet, t5, whisper, wuerstchen, z_image,
};
use common::{matrix::Case, tensor};
use serde_json::{from_value, json};

fn ids(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_vec((0..count as u32).map(|i| (i * 7 + 3) % 40).collect(), shape, &Device::Cpu).unwrap()
}

#[test]
fn bert() {
    let config: bert::Config = from_value(json!({
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "max_position_embeddings": 16, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }))
    .unwrap();
    let ids = ids(&[2, 5]);
    for stored in [DType::F32, DType::BF16] {
        Case { stored, ..Case::default() }
            .check(|vb| bert::BertModel::load(vb, &config), |model, _| model.forward(&ids, &ids.zeros_like()?, None));
    }
}

/// Its decoder keeps what it computed from the audio from one run to the next.
#[test]
fn whisper() {
    let config: whisper::Config = from_value(json!({
        "num_mel_bins": 8, "max_source_positions": 12, "d_model": 32, "encoder_attention_heads": 4, "encoder_layers": 2,
        "vocab_size": 40, "max_target_positions": 16, "decoder_attention_heads": 4, "decoder_layers": 2,
    }))
    .unwrap();
    let (mel, ids) = (tensor(&[1, 8, 20], 5), ids(&[1, 6]));
    Case { steps: 3, ..Case::default() }.check(
        |vb| Ok((whisper::model::Whisper::load(&vb, config.clone())?, None)),
        |(model, audio), step| {
            if step == 0 {
                *audio = Some(model.encoder.forward(&mel, true)?);
            }
            let audio = audio.as_ref().expect("encoded first");
            let y = model.decoder.forward(&ids.i((.., ..step + 4))?, audio, step == 0)?;
            model.decoder.final_linear(&y)
        },
    );
}

/// The caller's cache of keys and values grows from run to run, and begins anew with each request.
#[test]
fn llama() {
    for tied in [false, true] {
        let config: llama::LlamaConfig = from_value(json!({
            "hidden_size": 32, "intermediate_size": 64, "vocab_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
            "tie_word_embeddings": tied,
        }))
        .unwrap();
        let config = config.into_config(false);
        let ids = ids(&[1, 7]);
        for dtype in [DType::F32, DType::BF16] {
            Case { steps: 3, stored: DType::BF16, dtype, ..Case::default() }.check(
                |vb| Ok((llama::Llama::load(vb, &config)?, None)),
                |(model, cache), step| {
                    if step == 0 {
                        *cache = Some(llama::Cache::new(true, dtype, &config, &Device::Cpu)?);
                    }
                    let cache = cache.as_mut().expect("begun");
                    let (from, count) = if step == 0 { (0, 5) } else { (4 + step, 1) };
                    model.forward(&ids.narrow(1, from, count)?, from, cache)
                },
            );
        }
    }
}

#[test]
fn t5() {
    let config = t5::Config {
        vocab_size: 40,
        d_model: 32,
        d_kv: 8,
        d_ff: 64,
        num_layers: 2,
        num_heads: 4,
        feed_forward_proj: t5::ActivationWithOptionalGating { gated: true, activation: candle_nn::Activation::NewGelu },
        ..Default::default()
    };
    let ids = ids(&[1, 9]);
    Case { present: &["shared.weight"], ..Case::default() }
        .check(|vb| t5::T5EncoderModel::load(vb, &config), |model, _| model.forward(&ids));
}

/// Stable Diffusion 1.5, 2.1 and XL: where there is attention, how deep, and by which projection.
fn small_unet(attention: &[Option<usize>], heads: &[usize], use_linear_projection: bool) {
    let level = |(i, depth): (usize, &Option<usize>)| unet::BlockConfig {
        out_channels: [32, 64, 64, 64][i],
        use_cross_attn: *depth,
        attention_head_dim: heads[i],
    };
    let config = unet::UNet2DConditionModelConfig {
        blocks: attention.iter().enumerate().map(level).collect(),
        cross_attention_dim: 24,
        norm_num_groups: 8,
        use_linear_projection,
        ..Default::default()
    };
    let (latents, text) = (tensor(&[1, 4, 8, 8], 5), tensor(&[1, 7, 24], 6));
    Case { steps: 2, ..Case::default() }.check(
        |vb| unet::UNet2DConditionModel::new(vb, 4, 4, false, config.clone()),
        |model, step| model.forward(&latents, 500.0 - 100.0 * step as f64, &text),
    );
}

#[test]
fn stable_diffusion_1_5_unet() {
    small_unet(&[Some(1), Some(1), Some(1), None], &[8; 4], false);
}

#[test]
fn stable_diffusion_2_1_unet() {
    small_unet(&[Some(1), Some(1), Some(1), None], &[4, 8, 8, 8], true);
}

#[test]
fn stable_diffusion_xl_unet() {
    small_unet(&[None, Some(2), Some(3)], &[4, 8, 8], true);
}

#[test]
fn stable_diffusion_vae() {
    use stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![16, 32],
        norm_num_groups: 8,
        layers_per_block: 1,
        ..Default::default()
    };
    let latents = tensor(&[1, 4, 4, 4], 5);
    // Of what it encodes to it only gives away samples, which differ each time.
    Case::default().check(|vb| AutoEncoderKL::new(vb, 3, 3, config.clone()), |vae, _| vae.decode(&latents));
}

#[test]
fn clip() {
    use clip::{ClipConfig, ClipModel, text_model::ClipTextConfig, vision_model::ClipVisionConfig};
    let text_config = ClipTextConfig {
        vocab_size: 40,
        embed_dim: 32,
        intermediate_size: 64,
        max_position_embeddings: 9,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        projection_dim: 16,
        ..ClipTextConfig::vit_base_patch32()
    };
    let vision_config = ClipVisionConfig {
        embed_dim: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        projection_dim: 16,
        image_size: 16,
        patch_size: 4,
        ..ClipVisionConfig::vit_base_patch32()
    };
    let config = ClipConfig { text_config, vision_config, logit_scale_init_value: 2.6592, image_size: 16 };
    let (ids, image) = (ids(&[1, 7]), tensor(&[1, 3, 16, 16], 5));
    Case { steps: 2, present: &["logit_scale", "class_embedding"], ..Case::default() }.check(
        |vb| ClipModel::new(vb, &config),
        |model, step| if step == 0 { model.get_text_features(&ids) } else { model.get_image_features(&image) },
    );
}

/// Its layers hold a third of a stored tensor each.
#[test]
fn openclip() {
    let config = openclip::Config {
        vocab_size: 40,
        embed_dim: 32,
        intermediate_size: 64,
        max_position_embeddings: 9,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        ..openclip::Config::vit_base_patch32()
    };
    let ids = ids(&[1, 7]);
    Case::default().check(|vb| openclip::OpenClipTextTransformer::new(vb, &config), |model, _| model.forward(&ids));
}

#[test]
fn wuerstchen_prior() {
    let (x, r, c) = (tensor(&[1, 16, 6, 6], 5), tensor(&[1], 6), tensor(&[1, 7, 24], 7));
    Case { steps: 2, ..Case::default() }.check(
        |vb| wuerstchen::prior::WPrior::new(16, 32, 24, 16, 2, 4, false, vb),
        |model, step| model.forward(&x, &(&r + step as f64)?, &c),
    );
}

/// Copies the weights of its batch norm while it is built, and computes with its gammas there: it can't be loaded lazily.
#[test]
fn wuerstchen_paella_vq() {
    let (latents, image) = (tensor(&[1, 4, 4, 4], 5), tensor(&[1, 3, 16, 16], 6));
    Case { steps: 2, lazy: false, ..Case::default() }.check(wuerstchen::paella_vq::PaellaVQ::new, |model, step| {
        if step == 0 { model.decode(&latents) } else { model.encode(&image) }
    });
}

#[test]
fn flux() {
    let config = flux::model::Config {
        hidden_size: 64,
        num_heads: 2,
        context_in_dim: 24,
        vec_in_dim: 16,
        depth: 1,
        depth_single_blocks: 2,
        axes_dim: vec![4, 14, 14],
        ..flux::model::Config::dev()
    };
    let (text, pooled) = (tensor(&[1, 5, 24], 5), tensor(&[1, 16], 6));
    let state = flux::sampling::State::new(&text, &pooled, &tensor(&[1, 16, 4, 4], 7)).unwrap();
    let time = tensor(&[1], 8);
    Case { steps: 2, ..Case::default() }.check(
        |vb| flux::model::Flux::new(&config, vb),
        |model, step| {
            let time = (&time + step as f64 / 4.0)?;
            model.forward(&state.img, &state.img_ids, &state.txt, &state.txt_ids, &time, &state.vec, Some(&time))
        },
    );
}

/// Which of its blocks has a second attention it decides by the names in its checkpoint.
#[test]
fn mmdit() {
    let config = mmdit::Config {
        depth: 2,
        head_size: 16,
        adm_in_channels: 24,
        context_embed_size: 24,
        pos_embed_max_size: 8,
        ..mmdit::Config::sd3_5_medium()
    };
    let (latents, text, pooled) = (tensor(&[1, 16, 8, 8], 5), tensor(&[1, 5, 24], 6), tensor(&[1, 24], 7));
    let time = Tensor::new(&[0.7f32], &Device::Cpu).unwrap();
    // It computes its timestep in f16, whatever its weights.
    Case {
        stored: DType::F16,
        dtype: DType::F16,
        present: &["joint_blocks.0.x_block.attn2.qkv.weight"],
        ..Case::default()
    }
    .check_local(
        |vb| mmdit::MMDiT::new(&config, false, vb),
        |model, _| {
            let half = |x: &Tensor| x.to_dtype(DType::F16);
            model.forward(&half(&latents)?, &time, &half(&pooled)?, &half(&text)?, None)?.sum_keepdim(D::Minus1)
        },
    );
}

#[test]
fn z_image_vae() {
    let config = z_image::vae::VaeConfig {
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 4,
        ..z_image::vae::VaeConfig::z_image()
    };
    let latents = tensor(&[1, 4, 4, 4], 5);
    Case::default().check(|vb| z_image::vae::Decoder::new(&config, vb), |model, _| model.forward(&latents));
}
