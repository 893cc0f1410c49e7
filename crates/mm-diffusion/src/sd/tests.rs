//! The UNet against candle's own, bit for bit, with its GELU; and how far that one is from this with diffusers' GELU.

use super::{config::Config, time::Added, unet::UNet};
use crate::{invented::Invented, latents::noise};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};

const TEXT: usize = 24;
const GROUPS: usize = 32;
const CHANNELS: [usize; 3] = [32, 64, 96];

/// As 1.5 has it, or as 2.1.
fn config(linear: bool) -> serde_json::Value {
    let heads = if linear { serde_json::json!([2, 4, 6]) } else { serde_json::json!(4) };
    serde_json::json!({
        "in_channels": 4, "out_channels": 4, "block_out_channels": CHANNELS, "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": heads, "cross_attention_dim": TEXT, "use_linear_projection": linear,
        "norm_num_groups": GROUPS
    })
}

fn ours(json: serde_json::Value, approximate_gelu: bool, vb: VarBuilder<'_>) -> Result<UNet> {
    let mut config: Config = serde_json::from_value(json).unwrap();
    config.approximate_gelu = approximate_gelu;
    UNet::new(&config, vb)
}

fn theirs(linear: bool) -> Result<UNet2DConditionModel> {
    let heads = if linear { [2, 4, 6] } else { [4; 3] };
    let block = |level: usize| BlockConfig {
        out_channels: CHANNELS[level],
        use_cross_attn: (level < 2).then_some(1),
        attention_head_dim: heads[level],
    };
    let config = UNet2DConditionModelConfig {
        blocks: vec![block(0), block(1), block(2)],
        cross_attention_dim: TEXT,
        use_linear_projection: linear,
        norm_num_groups: GROUPS,
        ..Default::default()
    };
    UNet2DConditionModel::new(small(), 4, 4, false, config)
}

/// Weights that keep convolutions in hand too.
fn small() -> VarBuilder<'static> {
    Invented::named(|name, shape| {
        let made = Invented::tensor(name, shape).ok()?;
        (made / if shape.len() == 4 { shape[2] as f64 } else { 1.0 }).ok()
    })
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Sides that halve to odd ones too.
#[test]
fn it_equals_candles_own_but_for_gelu() {
    for (linear, height, width) in [(false, 8, 12), (true, 6, 10), (false, 5, 7)] {
        let (latents, text) = (noise(1, &[1, 4, height, width]).unwrap(), noise(2, &[1, 9, TEXT]).unwrap());
        let expected = theirs(linear).unwrap().forward(&latents, 370.0, &text).unwrap();
        let spread = expected.flatten_all().unwrap().var(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(spread.is_finite() && spread > 1e-3, "{spread} says little");
        let draw = |approximate| {
            ours(config(linear), approximate, small()).unwrap().forward(&latents, 370.0, &text, None).unwrap()
        };
        assert_eq!(draw(true).dims(), expected.dims());
        assert!(bits(&draw(true)) == bits(&expected), "linear {linear}, {height} by {width}: other bits");
        let square = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let exact = draw(false);
        let error = (square((&exact - &expected).unwrap()) / square(exact)).sqrt();
        println!("linear {linear}, {height} by {width}: candle's is {error:.1e} away");
        assert!(error > 1e-6 && error < 1e-2, "{error}");
    }
}

/// What SDXL is told changes what it draws, each prompt by its own.
#[test]
fn pooled_prompts_and_sizes_count() {
    let mut json = config(true);
    json["addition_embed_type"] = "text_time".into();
    json["addition_time_embed_dim"] = 8.into();
    json["projection_class_embeddings_input_dim"] = (6 * 8 + 20).into();
    let unet = ours(json, false, small()).unwrap();
    let (latents, text) = (noise(1, &[1, 4, 8, 8]).unwrap(), noise(2, &[1, 9, TEXT]).unwrap());
    let pooled = noise(3, &[2, 20]).unwrap();
    let both = Tensor::cat(&[&text, &text], 0).unwrap();
    let sizes = [64.0, 64.0, 0.0, 0.0, 64.0, 64.0];
    let draw = |text: &Tensor, pooled: Tensor, sizes| {
        unet.forward(&latents, 250.0, text, Some(&Added { pooled, sizes })).unwrap()
    };
    let batch = draw(&both, pooled.clone(), sizes);
    let [first, second] = [0, 1].map(|i| batch.narrow(0, i, 1).unwrap());
    assert!(bits(&first) != bits(&second), "the pooled prompt");
    let alone = draw(&text, pooled.narrow(0, 0, 1).unwrap(), sizes);
    let apart = (&alone - &first).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(apart < 1e-4, "{apart}: an item depends on its batch");
    let cropped = draw(&text, pooled.narrow(0, 0, 1).unwrap(), [64.0, 64.0, 8.0, 0.0, 64.0, 64.0]);
    assert!(bits(&alone) != bits(&cropped), "the sizes");
    assert!(unet.forward(&latents, 250.0, &text, None).is_err());
}
