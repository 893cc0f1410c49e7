//! The forward against candle's own, bit for bit.

use super::{
    block::{Block, Streams},
    config::Config,
    transformer::Transformer,
};
use crate::{
    invented::Invented,
    latents::noise,
    layers::{Embedder, sinusoids},
    projection::Names,
};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::linear;
use candle_transformers::models::mmdit::{
    blocks::{JointBlock, MMDiTJointBlock, MMDiTXJointBlock},
    embedding::{PatchEmbedder, PositionEmbedder, Unpatchifier, VectorEmbedder},
    model::MMDiTCore,
};

const CHANNELS: usize = 4;
const TOKENS: usize = 15;
const SIDE: usize = 9;

fn config(norm: Option<&str>, dual: &[usize]) -> Config {
    let json = serde_json::json!({
        "in_channels": CHANNELS, "patch_size": 2, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16,
        "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 20, "pos_embed_max_size": SIDE,
        "qk_norm": norm, "dual_attention_layers": dual
    });
    serde_json::from_value(json).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Has no tensor of these.
fn without(absent: &'static [&'static str]) -> candle_nn::VarBuilder<'static> {
    Invented::named(move |name, shape| {
        let is_absent = absent.iter().any(|part| name.contains(part));
        (!is_absent).then(|| Invented::tensor(name, shape).ok()).flatten()
    })
}

/// candle's whole model computes sinusoids in f16 whatever its weights are, so here it is put together from its parts.
fn whole(dual: &'static [usize], absent: &'static [&'static str]) -> Result<()> {
    let config = config(None, dual);
    let vb = || without(absent);
    let (latents, text, pooled) = (noise(1, &[1, CHANNELS, 6, 10])?, noise(2, &[2, TOKENS, 24])?, noise(3, &[2, 20])?);

    let core = MMDiTCore::new(3, 32, 2, 2, CHANNELS, false, vb())?;
    let image = PatchEmbedder::new(2, CHANNELS, 32, vb().pp("x_embedder"))?.forward(&latents)?;
    let places = PositionEmbedder::new(32, 2, SIDE, vb())?.get_cropped_pos_embed(6, 10)?;
    let image = image.broadcast_add(&places)?.repeat((2, 1, 1))?;
    let timestep = sinusoids(&Tensor::new(&[370f32], &Device::Cpu)?, DType::F32)?;
    let timestep = Embedder::new(256, 32, ("mlp.0", "mlp.2"), &vb().pp("t_embedder"))?.forward(&timestep)?;
    let vector = VectorEmbedder::new(20, 32, vb().pp("y_embedder"))?.forward(&pooled)?;
    let context = linear(24, 32, vb().pp("context_embedder"))?.forward(&text)?;
    let out = core.forward(&context, &image, &vector.broadcast_add(&timestep)?, None)?;
    let expected = Unpatchifier::new(2, CHANNELS)?.unpatchify(&out, 6, 10)?;
    let spread = expected.flatten_all()?.var(0)?.to_scalar::<f32>()?;
    assert!(spread.is_finite() && spread > 1e-3, "{spread} says little");

    let out = Transformer::new(&config, vb())?.forward(&latents, 370.0, &text, &pooled)?;
    assert_eq!(out.dims(), expected.dims());
    assert!(bits(&out) == bits(&expected), "blocks {dual:?} with attention of their own: other bits");
    Ok(())
}

#[test]
fn mmdit_equals_candles_own() {
    whole(&[], &[".ln_", ".attn2."]).unwrap();
}

#[test]
fn mmdit_x_equals_candles_own() {
    // candle looks for attn2 by name; the last block has none.
    whole(&[0, 1], &[".ln_", "joint_blocks.2.x_block.attn2."]).unwrap();
}

/// With norms, as in 3.5. Block by block: candle leaves the norms of the last block's text out.
#[test]
fn blocks_with_norms_equal_candles_own() {
    let (image, text) = (noise(1, &[2, 15, 32]).unwrap(), noise(2, &[2, TOKENS, 32]).unwrap());
    let conditioning = noise(3, &[2, 32]).unwrap();
    let vb = || Invented::original().pp("joint_blocks.0");
    for dual in [&[][..], &[0]] {
        let theirs: Box<dyn JointBlock> = match dual.is_empty() {
            true => Box::new(MMDiTJointBlock::new(32, 2, false, vb()).unwrap()),
            false => Box::new(MMDiTXJointBlock::new(32, 2, false, vb()).unwrap()),
        };
        let (expected_text, expected_image) = theirs.forward(&text, &image, &conditioning).unwrap();
        let ours = Block::new(&config(Some("rms_norm"), dual), Names::Original, 0, &vb()).unwrap();
        let Streams { image, text } = ours.forward(&image, &text, &conditioning.silu().unwrap()).unwrap();
        assert!(bits(&image) == bits(&expected_image), "{dual:?}: other bits of the image");
        assert!(bits(&text.unwrap()) == bits(&expected_text), "{dual:?}: other bits of the text");
    }
}
