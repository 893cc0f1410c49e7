//! The VAE of Wan: convolutions over frames as well.

use super::diffusers;
use crate::{Component, Init, builder::Builder, sizes::Sizes};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Channels of each level, of those of the first.
const LEVELS: [usize; 4] = [1, 2, 4, 4];
const LATENT: usize = 16;
const RESNETS: usize = 2;
/// The levels that halve the frames too on the way down.
const TEMPORAL: [bool; 3] = [false, true, true];
const CUBE: [usize; 3] = [3, 3, 3];

pub(crate) struct WanVae {
    channels: usize,
}

impl WanVae {
    pub(crate) fn new(sizes: Sizes) -> WanVae {
        WanVae { channels: sizes.beside().channels(96) }
    }

    pub(crate) fn component(&self, dtype: Dtype) -> Component {
        diffusers("vae", self.config(), dtype, |b| self.tensors(b))
    }

    fn config(&self) -> Value {
        json!({
            "_class_name": "AutoencoderKLWan",
            "_diffusers_version": "0.33.0.dev0",
            "attn_scales": [],
            "base_dim": self.channels,
            "dim_mult": LEVELS,
            "dropout": 0.0,
            "num_res_blocks": RESNETS,
            "temperal_downsample": TEMPORAL,
            "z_dim": LATENT
        })
    }

    fn tensors(&self, b: &mut Builder) {
        let first = self.channels;
        let last = LEVELS[3] * first;
        b.at("encoder", |b| {
            b.conv("conv_in", 3, first, &CUBE);
            self.down(b);
            mid(b, last);
            gamma(b, "norm_out", last);
            b.conv("conv_out", last, 2 * LATENT, &CUBE);
        });
        b.conv("quant_conv", 2 * LATENT, 2 * LATENT, &[1, 1, 1]);
        b.conv("post_quant_conv", LATENT, LATENT, &[1, 1, 1]);
        b.at("decoder", |b| {
            b.conv("conv_in", LATENT, last, &CUBE);
            mid(b, last);
            self.up(b);
            gamma(b, "norm_out", first);
            b.conv("conv_out", first, 3, &CUBE);
        });
    }

    /// One flat list of residual blocks and samplers: no stack of equal blocks.
    fn down(&self, b: &mut Builder) {
        let (mut index, mut input) = (0, self.channels);
        for (level, factor) in LEVELS.into_iter().enumerate() {
            let output = factor * self.channels;
            for _ in 0..RESNETS {
                b.at(&format!("down_blocks.{index}"), |b| resnet(b, input, output));
                (index, input) = (index + 1, output);
            }
            if let Some(temporal) = TEMPORAL.get(level) {
                b.at(&format!("down_blocks.{index}"), |b| {
                    b.conv("resample.1", output, output, &[3, 3]);
                    if *temporal {
                        b.conv("time_conv", output, output, &[3, 1, 1]);
                    }
                });
                index += 1;
            }
        }
    }

    fn up(&self, b: &mut Builder) {
        let mut input = LEVELS[3] * self.channels;
        for (level, factor) in LEVELS.into_iter().rev().enumerate() {
            let output = factor * self.channels;
            b.at(&format!("up_blocks.{level}"), |b| {
                b.stack("resnets", RESNETS + 1, |b, i| resnet(b, if i == 0 { input } else { output }, output));
                if let Some(temporal) = TEMPORAL.iter().rev().nth(level) {
                    b.conv("upsamplers.0.resample.1", output, output / 2, &[3, 3]);
                    if *temporal {
                        b.conv("upsamplers.0.time_conv", output, 2 * output, &[3, 1, 1]);
                    }
                }
            });
            input = output / 2;
        }
    }
}

fn mid(b: &mut Builder, dim: usize) {
    b.at("mid_block.attentions.0", |b| {
        b.tensor("norm.gamma", &[dim, 1, 1], Init::Ones);
        b.conv("to_qkv", dim, 3 * dim, &[1, 1]);
        b.conv("proj", dim, dim, &[1, 1]);
    });
    b.stack("mid_block.resnets", 2, |b, _| resnet(b, dim, dim));
}

fn resnet(b: &mut Builder, input: usize, output: usize) {
    gamma(b, "norm1", input);
    b.conv("conv1", input, output, &CUBE);
    gamma(b, "norm2", output);
    b.conv("conv2", output, output, &CUBE);
    if input != output {
        b.conv("conv_shortcut", input, output, &[1, 1, 1]);
    }
}

fn gamma(b: &mut Builder, name: &str, dim: usize) {
    b.tensor(&format!("{name}.gamma"), &[dim, 1, 1, 1], Init::Ones);
}
