//! The VAE of images.

use super::{diffusers, resnet};
use crate::{
    Component,
    builder::Builder,
    sizes::{Sizes, groups},
};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Channels of each level, of those of the first.
const LEVELS: [usize; 4] = [1, 2, 4, 4];
const RESNETS: usize = 2;

pub(crate) struct Vae {
    channels: [usize; 4],
    latent: usize,
    /// Whether convolutions stand between the latents and both halves.
    quant: bool,
    scaling: f64,
    shift: Option<f64>,
    /// Side of the pictures that it was made for.
    side: usize,
}

impl Vae {
    /// Of FLUX, SD3 and Z-Image.
    pub(crate) fn sixteen(sizes: Sizes) -> Vae {
        Vae { channels: channels(sizes), latent: 16, quant: false, scaling: 0.3611, shift: Some(0.1159), side: 1024 }
    }

    /// Of Stable Diffusion 1.5, 2.1 and XL.
    pub(crate) fn four(sizes: Sizes, scaling: f64, side: usize) -> Vae {
        Vae { channels: channels(sizes), latent: 4, quant: true, scaling, shift: None, side }
    }

    pub(crate) fn component(&self, dtype: Dtype) -> Component {
        diffusers("vae", self.config(), dtype, |b| self.tensors(b))
    }

    pub(crate) fn config(&self) -> Value {
        let (down, up) = (["DownEncoderBlock2D"; 4], ["UpDecoderBlock2D"; 4]);
        json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.30.0.dev0",
            "act_fn": "silu",
            "block_out_channels": self.channels,
            "down_block_types": down,
            "force_upcast": true,
            "in_channels": 3,
            "latent_channels": self.latent,
            "layers_per_block": RESNETS,
            "mid_block_add_attention": true,
            "norm_num_groups": groups(self.channels[0]),
            "out_channels": 3,
            "sample_size": self.side,
            "scaling_factor": self.scaling,
            "shift_factor": self.shift,
            "up_block_types": up,
            "use_post_quant_conv": self.quant,
            "use_quant_conv": self.quant
        })
    }

    pub(crate) fn tensors(&self, b: &mut Builder) {
        let [first, .., last] = self.channels;
        let mid = |b: &mut Builder| {
            b.at("mid_block.attentions.0", |b| {
                b.norm("group_norm", last);
                for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                    b.linear(name, last, last);
                }
            });
            b.stack("mid_block.resnets", 2, |b, _| resnet::DIFFUSERS.build(b, last, last, None));
        };
        b.at("encoder", |b| {
            b.conv("conv_in", 3, first, &[3, 3]);
            for (level, (input, output)) in self.down().enumerate() {
                b.at(&format!("down_blocks.{level}"), |b| {
                    resnets(b, "resnets", &resnet::DIFFUSERS, RESNETS, input, output);
                    if level + 1 < LEVELS.len() {
                        b.conv("downsamplers.0.conv", output, output, &[3, 3]);
                    }
                });
            }
            mid(b);
            b.norm("conv_norm_out", last);
            b.conv("conv_out", last, 2 * self.latent, &[3, 3]);
        });
        b.at("decoder", |b| {
            b.conv("conv_in", self.latent, last, &[3, 3]);
            for (level, (input, output)) in self.up().enumerate() {
                b.at(&format!("up_blocks.{level}"), |b| {
                    resnets(b, "resnets", &resnet::DIFFUSERS, RESNETS + 1, input, output);
                    if level + 1 < LEVELS.len() {
                        b.conv("upsamplers.0.conv", output, output, &[3, 3]);
                    }
                });
            }
            mid(b);
            b.norm("conv_norm_out", first);
            b.conv("conv_out", first, 3, &[3, 3]);
        });
        self.quant_convs(b);
    }

    /// The names of the original repository: levels count from the outside, attention is a convolution.
    pub(crate) fn original(&self, b: &mut Builder) {
        let [first, .., last] = self.channels;
        let mid = |b: &mut Builder| {
            b.at("mid.block_1", |b| resnet::LDM_VAE.build(b, last, last, None));
            b.at("mid.attn_1", |b| {
                b.norm("norm", last);
                for name in ["q", "k", "v", "proj_out"] {
                    b.conv(name, last, last, &[1, 1]);
                }
            });
            b.at("mid.block_2", |b| resnet::LDM_VAE.build(b, last, last, None));
        };
        b.at("encoder", |b| {
            b.conv("conv_in", 3, first, &[3, 3]);
            for (level, (input, output)) in self.down().enumerate() {
                b.at(&format!("down.{level}"), |b| {
                    resnets(b, "block", &resnet::LDM_VAE, RESNETS, input, output);
                    if level + 1 < LEVELS.len() {
                        b.conv("downsample.conv", output, output, &[3, 3]);
                    }
                });
            }
            mid(b);
            b.norm("norm_out", last);
            b.conv("conv_out", last, 2 * self.latent, &[3, 3]);
        });
        b.at("decoder", |b| {
            b.conv("conv_in", self.latent, last, &[3, 3]);
            mid(b);
            for (level, (input, output)) in self.up().enumerate() {
                b.at(&format!("up.{}", LEVELS.len() - 1 - level), |b| {
                    resnets(b, "block", &resnet::LDM_VAE, RESNETS + 1, input, output);
                    if level + 1 < LEVELS.len() {
                        b.conv("upsample.conv", output, output, &[3, 3]);
                    }
                });
            }
            b.norm("norm_out", first);
            b.conv("conv_out", first, 3, &[3, 3]);
        });
        self.quant_convs(b);
    }

    fn quant_convs(&self, b: &mut Builder) {
        if self.quant {
            b.conv("quant_conv", 2 * self.latent, 2 * self.latent, &[1, 1]);
            b.conv("post_quant_conv", self.latent, self.latent, &[1, 1]);
        }
    }

    /// Channels into and out of each level on the way down.
    fn down(&self) -> impl Iterator<Item = (usize, usize)> {
        let inputs = [self.channels[0]].into_iter().chain(self.channels);
        inputs.zip(self.channels)
    }

    /// Channels into and out of each level on the way up.
    fn up(&self) -> impl Iterator<Item = (usize, usize)> {
        let inputs = [self.channels[3]].into_iter().chain(self.channels.into_iter().rev());
        inputs.zip(self.channels.into_iter().rev())
    }
}

fn channels(sizes: Sizes) -> [usize; 4] {
    let first = sizes.beside().channels(128);
    LEVELS.map(|level| level * first)
}

fn resnets(b: &mut Builder, list: &str, names: &resnet::Names, count: usize, input: usize, output: usize) {
    b.stack(list, count, |b, index| names.build(b, if index == 0 { input } else { output }, output, None));
}
