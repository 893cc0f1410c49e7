//! Würstchen: a prior of equal blocks, a decoder of levels, a VQ model, and a text encoder for each of the first two.

use super::{Part, Pipeline, clip::Clip, diffusers};
use crate::{
    Component,
    builder::Builder,
    sizes::{Heads, Sizes},
};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Channels of the prior's image, and of latents.
const IMAGE: usize = 16;
const LATENT: usize = 4;
/// Width of the sinusoids of a noise level.
const LEVEL: usize = 64;
/// Channels of each level of the decoder, of those of the first, and the steps of a block.
const LEVELS: [usize; 4] = [1, 2, 4, 4];
const STEPS: [&str; 4] = ["CT", "CTA", "CTA", "CTA"];
const BLOCKS: [usize; 4] = [4, 4, 14, 4];

struct Wuerstchen {
    prior: Heads,
    depth: usize,
    prior_text: usize,
    decoder: Heads,
    blocks: [usize; 4],
    text: usize,
    condition: usize,
    vq: usize,
}

/// There are no files in other names.
pub(crate) fn build(sizes: Sizes, single: bool) -> (Vec<Component>, Option<Pipeline>) {
    let (prior_clip, clip) = (Clip::giant(sizes), Clip::huge(sizes));
    let model = Wuerstchen {
        prior: sizes.heads(24, 64),
        depth: sizes.layers(32),
        prior_text: prior_clip.dim(),
        decoder: sizes.heads(5, 64),
        blocks: BLOCKS.map(|full| sizes.layers(full)),
        text: clip.dim(),
        condition: sizes.beside().other(1024),
        vq: sizes.beside().other(384),
    };
    let at = |name: &str| single.then(|| name.to_owned());
    let component = |name: &'static str, config: Value, build: &dyn Fn(&mut Builder)| {
        diffusers(name, config, Dtype::F32, |b| under(b, at(name), build))
    };
    let text = |name: &'static str, clip: &Clip| {
        super::transformers(name, clip.config(), Dtype::F32, |b| under(b, at(name), &|b| clip.tensors(b)))
    };
    let components = vec![
        text("prior_text_encoder", &prior_clip),
        text("text_encoder", &clip),
        component("prior_prior", model.prior_config(), &|b| model.prior(b)),
        component("decoder", model.decoder_config(), &|b| model.decoder(b)),
        component("vqgan", model.vq_config(), &|b| model.vq(b)),
    ];
    let schedule = |name: &'static str| Part {
        name,
        library: "diffusers",
        class: "DDPMWuerstchenScheduler",
        files: vec![(
            "scheduler_config.json",
            json!({ "_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0 }),
        )],
    };
    let pipeline = Pipeline {
        class: "WuerstchenCombinedPipeline",
        parts: vec![
            schedule("prior_scheduler"),
            schedule("scheduler"),
            prior_clip.tokenizer("prior_tokenizer"),
            clip.tokenizer("tokenizer"),
        ],
        extra: json!({}),
    };
    (components, (!single).then_some(pipeline))
}

impl Wuerstchen {
    fn prior_config(&self) -> Value {
        json!({
            "_class_name": "WuerstchenPrior",
            "c": self.prior.dim(),
            "c_cond": self.prior_text,
            "c_in": IMAGE,
            "c_r": LEVEL,
            "depth": self.depth,
            "dropout": 0.1,
            "nhead": self.prior.count
        })
    }

    fn prior(&self, b: &mut Builder) {
        let dim = self.prior.dim();
        b.conv("projection", IMAGE, dim, &[1, 1]);
        b.linear("cond_mapper.0", self.prior_text, dim);
        b.linear("cond_mapper.2", dim, dim);
        b.stack("blocks", 3 * self.depth, |b, index| step(b, b"CTA"[index % 3], dim, 0, dim));
        b.conv("out.1", dim, 2 * IMAGE, &[1, 1]);
    }

    fn decoder_config(&self) -> Value {
        let count = self.decoder.count;
        json!({
            "_class_name": "WuerstchenDiffNeXt",
            "blocks": self.blocks,
            "c_cond": self.condition,
            "c_hidden": self.hidden(),
            "c_in": LATENT,
            "c_out": LATENT,
            "c_r": LEVEL,
            "clip_embd": self.text,
            "dropout": 0.1,
            "effnet_embd": IMAGE,
            "inject_effnet": [false, true, true, true],
            "kernel_size": 3,
            "level_config": STEPS,
            "nhead": [-1, 2 * count as i64, 4 * count as i64, 4 * count as i64],
            "patch_size": 2
        })
    }

    fn decoder(&self, b: &mut Builder) {
        let hidden = self.hidden();
        b.linear("clip_mapper", self.text, self.condition);
        for mapper in [1, 2, 3, 4, 5, 6] {
            b.conv(&format!("effnet_mappers.{mapper}"), IMAGE, self.condition, &[1, 1]);
        }
        b.conv("embedding.1", 4 * LATENT, hidden[0], &[1, 1]);
        let led = |level: usize| if level > 0 { self.condition } else { 0 };
        for (level, &width) in hidden.iter().enumerate() {
            let (steps, first) = (STEPS[level].as_bytes(), usize::from(level > 0));
            let count = first + self.blocks[level] * steps.len();
            b.stack(&format!("down_blocks.{level}"), count, |b, index| match index.checked_sub(first) {
                None => b.conv("1", hidden[level - 1], width, &[2, 2]),
                Some(index) => step(b, steps[index % steps.len()], width, led(level), self.condition),
            });
        }
        for (level, &width) in hidden.iter().enumerate().rev() {
            let (steps, last) = (STEPS[level].as_bytes(), usize::from(level > 0));
            let blocks = self.blocks[level] * steps.len();
            b.stack(&format!("up_blocks.{}", LEVELS.len() - 1 - level), blocks + last, |b, index| {
                if index == blocks {
                    // Transposed: inputs come first.
                    b.param("1.weight", &[width, hidden[level - 1], 2, 2]);
                    b.param("1.bias", &[hidden[level - 1]]);
                    return;
                }
                let skip = if level + 1 < LEVELS.len() && index == 0 { width } else { 0 };
                step(b, steps[index % steps.len()], width, skip + led(level), self.condition);
            });
        }
        b.conv("clf.1", hidden[0], 2 * 4 * LATENT, &[1, 1]);
    }

    fn vq_config(&self) -> Value {
        json!({
            "_class_name": "PaellaVQModel",
            "bottleneck_blocks": 12,
            "embed_dim": self.vq,
            "in_channels": 3,
            "latent_channels": LATENT,
            "levels": 2,
            "num_vq_embeddings": 8192,
            "out_channels": 3,
            "scale_factor": 0.3764,
            "up_down_scale_factor": 2
        })
    }

    fn vq(&self, b: &mut Builder) {
        let [outer, inner] = [self.vq / 2, self.vq];
        b.conv("in_block.1", 12, outer, &[1, 1]);
        b.at("down_blocks.0", |b| mix(b, outer));
        b.conv("down_blocks.1", outer, inner, &[4, 4]);
        b.at("down_blocks.2", |b| mix(b, inner));
        b.param("down_blocks.3.0.weight", &[LATENT, inner, 1, 1]);
        b.norm("down_blocks.3.1", LATENT);
        for name in ["running_mean", "running_var"] {
            b.at("down_blocks.3.1", |b| b.param(name, &[LATENT]));
        }
        b.embedding("vquantizer.embedding", 8192, LATENT);
        b.stack("up_blocks", 15, |b, index| match index {
            0 => b.conv("0", LATENT, inner, &[1, 1]),
            13 => {
                b.param("weight", &[inner, outer, 4, 4]);
                b.param("bias", &[outer]);
            }
            14 => mix(b, outer),
            _ => mix(b, inner),
        });
        b.conv("out_block.0", outer, 12, &[1, 1]);
    }

    fn hidden(&self) -> [usize; 4] {
        LEVELS.map(|level| level * self.decoder.dim())
    }
}

/// The tensors of a component, in a file of its own or in one with others.
fn under(b: &mut Builder, prefix: Option<String>, build: &dyn Fn(&mut Builder)) {
    match prefix {
        Some(prefix) => b.at(&prefix, build),
        None => build(b),
    }
}

/// A residual block, a noise level's scale, or attention.
fn step(b: &mut Builder, kind: u8, dim: usize, skip: usize, text: usize) {
    match kind {
        b'C' => {
            b.conv("depthwise", 1, dim, &[3, 3]);
            b.linear("channelwise.0", dim + skip, 4 * dim);
            b.param("channelwise.2.gamma", &[1, 1, 1, 4 * dim]);
            b.param("channelwise.2.beta", &[1, 1, 1, 4 * dim]);
            b.linear("channelwise.4", 4 * dim, dim);
        }
        b'T' => b.linear("mapper", LEVEL, 2 * dim),
        _ => {
            for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                b.linear(&format!("attention.{name}"), dim, dim);
            }
            b.linear("kv_mapper.1", text, dim);
        }
    }
}

fn mix(b: &mut Builder, dim: usize) {
    b.conv("depthwise.1", 1, dim, &[3, 3]);
    b.linear("channelwise.0", dim, 4 * dim);
    b.linear("channelwise.2", 4 * dim, dim);
    b.param("gammas", &[6]);
}
