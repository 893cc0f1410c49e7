//! The forward against candle's own, bit for bit.

use super::{config::Config, transformer::Transformer};
use crate::{invented::Invented, latents::noise};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::flux::{self, WithForward, sampling::State};

const CHANNELS: usize = 4;

/// Of a prompt. With fewer than eight rows the rounding of a product depends on its width, and so on the set of names.
const TOKENS: usize = 15;

fn config(guidance: bool) -> Config {
    let json = serde_json::json!({
        "in_channels": 4 * CHANNELS, "num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2,
        "attention_head_dim": 16, "joint_attention_dim": 24, "pooled_projection_dim": 20, "guidance_embeds": guidance,
        "axes_dims_rope": [4, 6, 6]
    });
    serde_json::from_value(json).unwrap()
}

fn of_candle(config: &Config) -> flux::model::Config {
    flux::model::Config {
        in_channels: config.in_channels,
        vec_in_dim: config.pooled_projection_dim,
        context_in_dim: config.joint_attention_dim,
        hidden_size: config.width(),
        mlp_ratio: 4.0,
        num_heads: config.num_attention_heads,
        depth: config.num_layers,
        depth_single_blocks: config.num_single_layers,
        axes_dim: config.axes_dims_rope.clone(),
        theta: 10_000,
        qkv_bias: true,
        guidance_embed: config.guidance_embeds,
    }
}

/// Where a tensor of Diffusers' names lies in the original files: a name, and which rows of it in units of the width.
fn original(name: &str) -> Option<(String, Option<(usize, usize)>)> {
    let (head, last) = name.rsplit_once('.')?;
    let top = [
        ("x_embedder", "img_in"),
        ("context_embedder", "txt_in"),
        ("proj_out", "final_layer.linear"),
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
        ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ];
    if let Some((_, to)) = top.iter().find(|(from, _)| *from == head) {
        return Some((format!("{to}.{last}"), None));
    }
    let (stack, rest) = head.split_once('.')?;
    let (index, part) = rest.split_once('.')?;
    let whole = |to: &str| Some((to.to_owned(), None));
    let rows = |to: &str, from: usize, count: usize| Some((to.to_owned(), Some((from, count))));
    let (block, found) = match stack {
        "transformer_blocks" => (
            "double_blocks",
            match part {
                "norm1.linear" => whole("img_mod.lin"),
                "norm1_context.linear" => whole("txt_mod.lin"),
                "attn.to_q" => rows("img_attn.qkv", 0, 1),
                "attn.to_k" => rows("img_attn.qkv", 1, 1),
                "attn.to_v" => rows("img_attn.qkv", 2, 1),
                "attn.add_q_proj" => rows("txt_attn.qkv", 0, 1),
                "attn.add_k_proj" => rows("txt_attn.qkv", 1, 1),
                "attn.add_v_proj" => rows("txt_attn.qkv", 2, 1),
                "attn.norm_q" => whole("img_attn.norm.query_norm"),
                "attn.norm_k" => whole("img_attn.norm.key_norm"),
                "attn.norm_added_q" => whole("txt_attn.norm.query_norm"),
                "attn.norm_added_k" => whole("txt_attn.norm.key_norm"),
                "attn.to_out.0" => whole("img_attn.proj"),
                "attn.to_add_out" => whole("txt_attn.proj"),
                "ff.net.0.proj" => whole("img_mlp.0"),
                "ff.net.2" => whole("img_mlp.2"),
                "ff_context.net.0.proj" => whole("txt_mlp.0"),
                "ff_context.net.2" => whole("txt_mlp.2"),
                _ => None,
            },
        ),
        "single_transformer_blocks" => (
            "single_blocks",
            match part {
                "norm.linear" => whole("modulation.lin"),
                "attn.to_q" => rows("linear1", 0, 1),
                "attn.to_k" => rows("linear1", 1, 1),
                "attn.to_v" => rows("linear1", 2, 1),
                "proj_mlp" => rows("linear1", 3, 4),
                "proj_out" => whole("linear2"),
                "attn.norm_q" => whole("norm.query_norm"),
                "attn.norm_k" => whole("norm.key_norm"),
                _ => None,
            },
        ),
        _ => return None,
    };
    let (to, rows) = found?;
    let last = if to.contains("_norm") { "scale" } else { last };
    Some((format!("{block}.{index}.{to}.{last}"), rows))
}

/// The original weights under Diffusers' names.
fn renamed(config: &Config) -> VarBuilder<'static> {
    let width = config.width();
    Invented::named(move |name, shape| {
        let (to, rows) = original(name)?;
        let Some((from, count)) = rows else {
            let made = Invented::tensor(&to, shape).ok()?;
            if !to.starts_with("final_layer.adaLN") {
                return Some(made);
            }
            // Diffusers has scale and shift the other way round.
            let halves = made.chunk(2, 0).ok()?;
            return Tensor::cat(&[&halves[1], &halves[0]], 0).ok();
        };
        let all = width * if to.contains("linear1") { 7 } else { 3 };
        let mut fused = shape.to_vec();
        fused[0] = all;
        Invented::tensor(&to, &fused).ok()?.narrow(0, from * width, count * width).ok()?.contiguous().ok()
    })
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn compare(guidance: bool) -> Result<()> {
    let config = config(guidance);
    let latents = noise(1, &[1, CHANNELS, 6, 10])?;
    let (text, pooled) = (noise(2, &[1, TOKENS, 24])?, noise(3, &[1, 20])?);

    let theirs = flux::model::Flux::new(&of_candle(&config), Invented::original())?;
    let state = State::new(&text, &pooled, &latents)?;
    let at = |value: f32| Tensor::new(&[value], &Device::Cpu);
    let (t, strength) = (at(0.37)?, at(3.5)?);
    let State { img, img_ids, txt, txt_ids, vec } = &state;
    let out = theirs.forward(img, img_ids, txt, txt_ids, &t, vec, guidance.then_some(&strength))?;
    let expected = flux::sampling::unpack(&out, 6 * 8, 10 * 8)?;
    let spread = expected.flatten_all()?.var(0)?.to_scalar::<f32>()?;
    assert!(spread.is_finite() && spread > 1e-3, "{spread} says little");

    for (names, vb) in [("original", Invented::original()), ("Diffusers", renamed(&config))] {
        let ours = Transformer::new(&config, vb)?;
        let out = ours.forward(&latents, 370.0, 3.5, &text, &pooled)?;
        assert_eq!(out.dims(), expected.dims());
        assert!(bits(&out) == bits(&expected), "{names} names, guidance {guidance}: other bits");
        let stronger = ours.forward(&latents, 370.0, 5.0, &text, &pooled)?;
        assert_eq!(bits(&stronger) != bits(&out), guidance, "whether guidance is looked at");
    }
    Ok(())
}

#[test]
fn dev_equals_candles_own_under_either_names() {
    compare(true).unwrap();
}

#[test]
fn schnell_equals_candles_own_under_either_names() {
    compare(false).unwrap();
}

/// candle computes positions in the compute dtype, and softmax; here, as in diffusers, they are f32.
#[test]
fn half_precision_is_nearer_to_f32_than_candles_own() {
    let config = config(true);
    let (latents, text, pooled) =
        (noise(1, &[1, CHANNELS, 32, 40]).unwrap(), noise(2, &[1, TOKENS, 24]).unwrap(), noise(3, &[1, 20]).unwrap());
    let ours = |dtype| {
        let model = Transformer::new(&config, Invented::original().to_dtype(dtype)).unwrap();
        model.forward(&latents, 500.0, 4.0, &text, &pooled).unwrap()
    };
    let exact = ours(DType::F32);
    let error = |out: &Tensor| {
        let square = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        (square((out - &exact).unwrap()) / square(exact.clone())).sqrt()
    };
    let theirs = {
        let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
        let model = flux::model::Flux::new(&of_candle(&config), Invented::original().to_dtype(DType::BF16)).unwrap();
        let state = State::new(&half(&text), &half(&pooled), &half(&latents)).unwrap();
        let at = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
        let State { img, img_ids, txt, txt_ids, vec } = &state;
        let out = model.forward(img, img_ids, txt, txt_ids, &at(0.5), vec, Some(&at(4.0))).unwrap();
        flux::sampling::unpack(&out, 32 * 8, 40 * 8).unwrap().to_dtype(DType::F32).unwrap()
    };
    let (ours, theirs) = (error(&ours(DType::BF16)), error(&theirs));
    println!("bf16 against f32: {ours:.1e}, candle's own {theirs:.1e}");
    assert!(ours < 0.1 && ours < theirs, "{ours} against candle's {theirs}");
}
