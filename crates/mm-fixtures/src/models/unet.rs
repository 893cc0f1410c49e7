//! The UNets of Stable Diffusion 1.5, 2.1 and XL: levels of residual blocks and transformers, down and up again.

use super::resnet;
use crate::{
    builder::Builder,
    sizes::{Heads, Sizes, groups},
};
use serde_json::{Value, json};

const LATENT: usize = 4;
const RESNETS: usize = 2;
/// Width of each of the six numbers about the picture's size.
const SIZE: usize = 256;

pub(crate) struct Unet {
    heads: Heads,
    /// Channels of each level, of those of the first.
    levels: &'static [usize],
    /// Transformer blocks of each level; 0 where there are none.
    depths: Vec<usize>,
    /// And of the middle.
    middle: usize,
    text: usize,
    /// Of XL, which is told the picture's size too.
    pooled: Option<usize>,
    /// As published, with heads of the same number at each level and projections that are convolutions.
    first: bool,
}

impl Unet {
    /// Of 1.5 and 2.1, with one transformer block each.
    pub(crate) fn one(sizes: Sizes, text: usize, first: bool) -> Unet {
        let depth = sizes.layers(1);
        let depths = vec![depth, depth, depth, 0];
        Unet { heads: sizes.heads(5, 64), levels: &[1, 2, 4, 4], depths, middle: depth, text, pooled: None, first }
    }

    pub(crate) fn xl(sizes: Sizes, text: usize, pooled: usize) -> Unet {
        let deepest = sizes.layers(10);
        // 2 of 10 at the published depth.
        let depths = vec![0, deepest.div_ceil(5), deepest];
        let (heads, pooled) = (sizes.heads(5, 64), Some(pooled));
        Unet { heads, levels: &[1, 2, 4], depths, middle: deepest, text, pooled, first: false }
    }

    pub(crate) fn config(&self) -> Value {
        let kinds: Vec<_> = self.depths.iter().map(|depth| if *depth > 0 { "CrossAttn" } else { "" }).collect();
        let down: Vec<_> = kinds.iter().map(|kind| format!("{kind}DownBlock2D")).collect();
        let up: Vec<_> = kinds.iter().rev().map(|kind| format!("{kind}UpBlock2D")).collect();
        let mut config = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.19.0.dev0",
            "act_fn": "silu",
            "attention_head_dim": if self.first { json!(8) } else { self.levels.iter().map(|n| n * self.heads.count).collect() },
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
            "norm_eps": 1e-5,
            "norm_num_groups": groups(self.heads.dim()),
            "out_channels": LATENT,
            "sample_size": match (self.pooled, self.first) { (Some(_), _) => 128, (None, true) => 64, (None, false) => 96 },
            "up_block_types": up
        });
        if !self.first {
            config["use_linear_projection"] = true.into();
        }
        if self.pooled.is_some() {
            config["addition_embed_type"] = "text_time".into();
            config["addition_embed_type_num_heads"] = 64.into();
            config["addition_time_embed_dim"] = SIZE.into();
            config["mid_block_type"] = "UNetMidBlock2DCrossAttn".into();
            config["projection_class_embeddings_input_dim"] = self.added().into();
            config["resnet_time_scale_shift"] = "default".into();
            config["transformer_layers_per_block"] = self.depths.iter().map(|depth| (*depth).max(1)).collect();
        }
        config
    }

    pub(crate) fn tensors(&self, b: &mut Builder) {
        let channels = self.channels();
        let (first, last) = self.ends();
        let mut skips = vec![first];
        let mut input = first;
        b.conv("conv_in", LATENT, first, &[3, 3]);
        for (name, width) in [("time_embedding", first), ("add_embedding", self.added())].into_iter().take(self.told())
        {
            b.linear(&format!("{name}.linear_1"), width, self.time());
            b.linear(&format!("{name}.linear_2"), self.time(), self.time());
        }
        for (level, output) in channels.iter().copied().enumerate() {
            b.at(&format!("down_blocks.{level}"), |b| {
                self.attentions(b, RESNETS, output, self.depths[level]);
                b.stack("resnets", RESNETS, |b, _| {
                    resnet::DIFFUSERS.build(b, input, output, Some(self.time()));
                    skips.push(output);
                    input = output;
                });
                if level + 1 < self.levels.len() {
                    b.conv("downsamplers.0.conv", output, output, &[3, 3]);
                    skips.push(output);
                }
            });
        }
        b.at("mid_block", |b| {
            b.at("attentions.0", |b| self.attention(b, last, self.middle));
            b.stack("resnets", 2, |b, _| resnet::DIFFUSERS.build(b, last, last, Some(self.time())));
        });
        for (index, level) in (0..self.levels.len()).rev().enumerate() {
            let output = channels[level];
            b.at(&format!("up_blocks.{index}"), |b| {
                self.attentions(b, RESNETS + 1, output, self.depths[level]);
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
        let (first, last) = self.ends();
        let (mut skips, mut input, mut step) = (vec![first], first, 1);
        for (name, width) in [("time_embed", first), ("label_emb.0", self.added())].into_iter().take(self.told()) {
            b.linear(&format!("{name}.0"), width, self.time());
            b.linear(&format!("{name}.2"), self.time(), self.time());
        }
        b.conv("input_blocks.0.0", LATENT, first, &[3, 3]);
        for (level, output) in channels.iter().copied().enumerate() {
            for _ in 0..RESNETS {
                b.at(&format!("input_blocks.{step}"), |b| self.step(b, input, output, level));
                skips.push(output);
                (input, step) = (output, step + 1);
            }
            if level + 1 < self.levels.len() {
                b.conv(&format!("input_blocks.{step}.0.op"), output, output, &[3, 3]);
                skips.push(output);
                step += 1;
            }
        }
        b.at("middle_block", |b| {
            b.at("0", |b| resnet::LDM_UNET.build(b, last, last, Some(self.time())));
            b.at("1", |b| self.attention(b, last, self.middle));
            b.at("2", |b| resnet::LDM_UNET.build(b, last, last, Some(self.time())));
        });
        step = 0;
        for level in (0..self.levels.len()).rev() {
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

    /// Transformers of a level: those of one block are blocks themselves.
    fn attentions(&self, b: &mut Builder, count: usize, dim: usize, depth: usize) {
        match depth {
            0 => {}
            1 => b.stack("attentions", count, |b, _| self.attention(b, dim, depth)),
            _ => (0..count).for_each(|index| b.at(&format!("attentions.{index}"), |b| self.attention(b, dim, depth))),
        }
    }

    /// A transformer; both codes use the same names.
    fn attention(&self, b: &mut Builder, dim: usize, depth: usize) {
        let place: &[usize] = if self.first { &[1, 1] } else { &[] };
        b.norm("norm", dim);
        b.conv("proj_in", dim, dim, place);
        match depth {
            1 => b.at("transformer_blocks.0", |b| self.block(b, dim)),
            _ => b.stack("transformer_blocks", depth, |b, _| self.block(b, dim)),
        }
        b.conv("proj_out", dim, dim, place);
    }

    fn block(&self, b: &mut Builder, dim: usize) {
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
    }

    fn channels(&self) -> Vec<usize> {
        self.levels.iter().map(|level| level * self.heads.dim()).collect()
    }

    /// Channels of the first and the last level.
    fn ends(&self) -> (usize, usize) {
        (self.heads.dim(), self.levels.last().map_or(0, |level| level * self.heads.dim()))
    }

    /// Of the timestep alone, or of more.
    fn told(&self) -> usize {
        1 + usize::from(self.pooled.is_some())
    }

    fn time(&self) -> usize {
        4 * self.heads.dim()
    }

    fn added(&self) -> usize {
        self.pooled.unwrap_or(0) + 6 * SIZE
    }
}
