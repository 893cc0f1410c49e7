//! The UNet of SDXL: levels of residual blocks and transformers, down and up again.

use super::resnet;
use crate::{
    builder::Builder,
    sizes::{Heads, Sizes, groups},
};
use serde_json::{Value, json};

const LATENT: usize = 4;
const RESNETS: usize = 2;
/// Channels of each level, of those of the first.
const LEVELS: [usize; 3] = [1, 2, 4];
/// Width of each of the six numbers about the picture's size.
const SIZE: usize = 256;

pub(crate) struct Unet {
    heads: Heads,
    /// Transformer blocks of each level; of the first none.
    depths: [usize; 3],
    text: usize,
    pooled: usize,
}

impl Unet {
    pub(crate) fn new(sizes: Sizes, text: usize, pooled: usize) -> Unet {
        let deepest = sizes.layers(10);
        // 2 of 10 at the published depth.
        Unet { heads: sizes.heads(5, 64), depths: [0, deepest.div_ceil(5), deepest], text, pooled }
    }

    pub(crate) fn config(&self) -> Value {
        let kinds = ["", "CrossAttn", "CrossAttn"];
        let down = kinds.map(|kind| format!("{kind}DownBlock2D"));
        let up = [kinds[2], kinds[1], kinds[0]].map(|kind| format!("{kind}UpBlock2D"));
        json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.19.0.dev0",
            "act_fn": "silu",
            "addition_embed_type": "text_time",
            "addition_embed_type_num_heads": 64,
            "addition_time_embed_dim": SIZE,
            "attention_head_dim": LEVELS.map(|level| level * self.heads.count),
            "block_out_channels": self.channels(),
            "center_input_sample": false,
            "cross_attention_dim": self.text,
            "down_block_types": down,
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": LATENT,
            "layers_per_block": RESNETS,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-5,
            "norm_num_groups": groups(self.heads.dim()),
            "out_channels": LATENT,
            "projection_class_embeddings_input_dim": self.added(),
            "resnet_time_scale_shift": "default",
            "sample_size": 128,
            "transformer_layers_per_block": self.depths.map(|depth| depth.max(1)),
            "up_block_types": up,
            "use_linear_projection": true
        })
    }

    pub(crate) fn tensors(&self, b: &mut Builder) {
        let channels = self.channels();
        let [first, .., last] = channels;
        let mut skips = vec![first];
        let mut input = first;
        b.conv("conv_in", LATENT, first, &[3, 3]);
        for (name, width) in [("time_embedding", first), ("add_embedding", self.added())] {
            b.linear(&format!("{name}.linear_1"), width, self.time());
            b.linear(&format!("{name}.linear_2"), self.time(), self.time());
        }
        for (level, output) in channels.into_iter().enumerate() {
            b.at(&format!("down_blocks.{level}"), |b| {
                for index in 0..RESNETS * self.depths[level].min(1) {
                    b.at(&format!("attentions.{index}"), |b| self.attention(b, output, self.depths[level]));
                }
                b.stack("resnets", RESNETS, |b, _| {
                    resnet::DIFFUSERS.build(b, input, output, Some(self.time()));
                    skips.push(output);
                    input = output;
                });
                if level + 1 < LEVELS.len() {
                    b.conv("downsamplers.0.conv", output, output, &[3, 3]);
                    skips.push(output);
                }
            });
        }
        b.at("mid_block", |b| {
            b.at("attentions.0", |b| self.attention(b, last, self.depths[2]));
            b.stack("resnets", 2, |b, _| resnet::DIFFUSERS.build(b, last, last, Some(self.time())));
        });
        for (index, level) in (0..LEVELS.len()).rev().enumerate() {
            let output = channels[level];
            b.at(&format!("up_blocks.{index}"), |b| {
                for index in 0..(RESNETS + 1) * self.depths[level].min(1) {
                    b.at(&format!("attentions.{index}"), |b| self.attention(b, output, self.depths[level]));
                }
                b.stack("resnets", RESNETS + 1, |b, _| {
                    let skip = skips.pop().unwrap_or_default();
                    resnet::DIFFUSERS.build(b, input + skip, output, Some(self.time()));
                    input = output;
                });
                if level > 0 {
                    b.conv("upsamplers.0.conv", output, output, &[3, 3]);
                }
            });
        }
        b.norm("conv_norm_out", first);
        b.conv("conv_out", first, LATENT, &[3, 3]);
    }

    /// The names of the original repository: one flat list of steps down, one up.
    pub(crate) fn original(&self, b: &mut Builder) {
        let channels = self.channels();
        let [first, .., last] = channels;
        let (mut skips, mut input, mut step) = (vec![first], first, 1);
        for (name, width) in [("time_embed", first), ("label_emb.0", self.added())] {
            b.linear(&format!("{name}.0"), width, self.time());
            b.linear(&format!("{name}.2"), self.time(), self.time());
        }
        b.conv("input_blocks.0.0", LATENT, first, &[3, 3]);
        for (level, output) in channels.into_iter().enumerate() {
            for _ in 0..RESNETS {
                b.at(&format!("input_blocks.{step}"), |b| self.step(b, input, output, level));
                skips.push(output);
                (input, step) = (output, step + 1);
            }
            if level + 1 < LEVELS.len() {
                b.conv(&format!("input_blocks.{step}.0.op"), output, output, &[3, 3]);
                skips.push(output);
                step += 1;
            }
        }
        b.at("middle_block", |b| {
            b.at("0", |b| resnet::LDM_UNET.build(b, last, last, Some(self.time())));
            b.at("1", |b| self.attention(b, last, self.depths[2]));
            b.at("2", |b| resnet::LDM_UNET.build(b, last, last, Some(self.time())));
        });
        step = 0;
        for level in (0..LEVELS.len()).rev() {
            let output = channels[level];
            for index in 0..=RESNETS {
                let skip = skips.pop().unwrap_or_default();
                b.at(&format!("output_blocks.{step}"), |b| {
                    self.step(b, input + skip, output, level);
                    if level > 0 && index == RESNETS {
                        b.conv("2.conv", output, output, &[3, 3]);
                    }
                });
                (input, step) = (output, step + 1);
            }
        }
        b.norm("out.0", first);
        b.conv("out.2", first, LATENT, &[3, 3]);
    }

    /// A residual block, and the transformer where the level has one.
    fn step(&self, b: &mut Builder, input: usize, output: usize, level: usize) {
        b.at("0", |b| resnet::LDM_UNET.build(b, input, output, Some(self.time())));
        if self.depths[level] > 0 {
            b.at("1", |b| self.attention(b, output, self.depths[level]));
        }
    }

    /// A transformer; both codes use the same names.
    fn attention(&self, b: &mut Builder, dim: usize, depth: usize) {
        b.norm("norm", dim);
        b.linear("proj_in", dim, dim);
        b.stack("transformer_blocks", depth, |b, _| {
            for (attention, source) in [("attn1", dim), ("attn2", self.text)] {
                b.at(attention, |b| {
                    b.matrix("to_q", dim, dim);
                    b.matrix("to_k", source, dim);
                    b.matrix("to_v", source, dim);
                    b.linear("to_out.0", dim, dim);
                });
            }
            b.linear("ff.net.0.proj", dim, 8 * dim);
            b.linear("ff.net.2", 4 * dim, dim);
            for name in ["norm1", "norm2", "norm3"] {
                b.norm(name, dim);
            }
        });
        b.linear("proj_out", dim, dim);
    }

    fn channels(&self) -> [usize; 3] {
        LEVELS.map(|level| level * self.heads.dim())
    }

    fn time(&self) -> usize {
        4 * self.heads.dim()
    }

    fn added(&self) -> usize {
        self.pooled + 6 * SIZE
    }
}
