//! What the configuration files of the prior, the decoder and the VQ model say.

use crate::{Error, check::Check, folder::Folder};
use serde::Deserialize;
use std::path::PathBuf;

/// Of `WuerstchenPrior`; defaults are those of the class.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Prior {
    pub(crate) c_in: usize,
    pub(crate) c: usize,
    pub(crate) c_cond: usize,
    pub(crate) c_r: usize,
    pub(crate) depth: usize,
    pub(crate) nhead: usize,
}

impl Default for Prior {
    fn default() -> Self {
        Self { c_in: 16, c: 1280, c_cond: 1024, c_r: 64, depth: 16, nhead: 16 }
    }
}

impl Prior {
    pub(crate) fn open(folder: &Folder, component: &str) -> Result<(Self, PathBuf), Error> {
        let (config, file) = folder.config::<Self>(&format!("{component}/config.json"))?;
        let check = Check(&file);
        let Self { c_in, c, c_cond, c_r, depth, nhead } = config;
        for (key, value) in [("c_in", c_in), ("c", c), ("c_cond", c_cond), ("c_r", c_r), ("nhead", nhead)] {
            check.size(key, value)?;
        }
        check.layers("depth", depth, 1)?;
        check.holds(c.is_multiple_of(nhead), "nhead", nhead, format!("expected a divisor of c, {c}"))?;
        Ok((config, file))
    }
}

/// Of `WuerstchenDiffNeXt`; defaults are those of the class.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Decoder {
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) c_r: usize,
    pub(crate) patch_size: usize,
    pub(crate) c_cond: usize,
    pub(crate) c_hidden: Vec<usize>,
    nhead: Vec<i64>,
    pub(crate) blocks: Vec<usize>,
    pub(crate) level_config: Vec<String>,
    pub(crate) inject_effnet: Vec<bool>,
    pub(crate) effnet_embd: usize,
    pub(crate) clip_embd: usize,
    pub(crate) kernel_size: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            c_in: 4,
            c_out: 4,
            c_r: 64,
            patch_size: 2,
            c_cond: 1024,
            c_hidden: vec![320, 640, 1280, 1280],
            nhead: vec![-1, 10, 20, 20],
            blocks: vec![4, 4, 14, 4],
            level_config: ["CT", "CTA", "CTA", "CTA"].map(String::from).into(),
            inject_effnet: vec![false, true, true, true],
            effnet_embd: 16,
            clip_embd: 1024,
            kernel_size: 3,
        }
    }
}

impl Decoder {
    pub(crate) fn open(folder: &Folder, component: &str) -> Result<(Self, PathBuf), Error> {
        let (config, file) = folder.config::<Self>(&format!("{component}/config.json"))?;
        let check = Check(&file);
        for (key, value) in [
            ("c_in", config.c_in),
            ("c_r", config.c_r),
            ("c_cond", config.c_cond),
            ("effnet_embd", config.effnet_embd),
            ("clip_embd", config.clip_embd),
        ] {
            check.size(key, value)?;
        }
        let (c_in, c_out) = (config.c_in, config.c_out);
        check.supported(c_in == c_out, "c_out", c_out, &format!("c_in, {c_in}"))?;
        let (patch, kernel) = (config.patch_size, config.kernel_size);
        check.holds((1..=16).contains(&patch), "patch_size", patch, "expected 1 to 16".into())?;
        check.supported(kernel % 2 == 1 && kernel < 16, "kernel_size", kernel, "odd numbers below 16")?;
        let count = config.c_hidden.len();
        check.holds((1..=8).contains(&count), "c_hidden", &config.c_hidden, "expected 1 to 8 numbers".into())?;
        for (key, found) in [
            ("nhead", config.nhead.len()),
            ("blocks", config.blocks.len()),
            ("level_config", config.level_config.len()),
            ("inject_effnet", config.inject_effnet.len()),
        ] {
            check.holds(found == count, key, found, format!("expected one for each of c_hidden, {count}"))?;
        }
        for level in 0..count {
            let (width, kinds) = (config.c_hidden[level], &config.level_config[level]);
            check.size("c_hidden", width)?;
            check.layers("blocks", config.blocks[level], 1)?;
            // The residual block is what takes the skip of a level and the prior's image.
            let known = kinds.starts_with('C') && kinds.len() <= 8 && kinds.bytes().all(|kind| b"CTA".contains(&kind));
            check.supported(known, "level_config", kinds, "C, followed by C, T and A")?;
            let heads = config.heads(level);
            let divides = !kinds.contains('A') || (heads > 0 && width.is_multiple_of(heads));
            let reason = format!("expected divisors of c_hidden, {:?}", config.c_hidden);
            check.holds(divides, "nhead", &config.nhead, reason)?;
        }
        Ok((config, file))
    }

    /// Zero where there is no attention.
    pub(crate) fn heads(&self, level: usize) -> usize {
        self.nhead.get(level).and_then(|&heads| usize::try_from(heads).ok()).unwrap_or(0)
    }

    /// What the sides of latents must be multiples of.
    pub(crate) const fn multiple(&self) -> usize {
        self.patch_size << (self.c_hidden.len() - 1)
    }
}

/// Of `PaellaVQModel`; defaults are those of the class.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Vq {
    pub(crate) out_channels: usize,
    pub(crate) up_down_scale_factor: usize,
    pub(crate) levels: usize,
    pub(crate) bottleneck_blocks: usize,
    embed_dim: usize,
    pub(crate) latent_channels: usize,
    pub(crate) scale_factor: f64,
}

impl Default for Vq {
    fn default() -> Self {
        Self {
            out_channels: 3,
            up_down_scale_factor: 2,
            levels: 2,
            bottleneck_blocks: 12,
            embed_dim: 384,
            latent_channels: 4,
            scale_factor: 0.3764,
        }
    }
}

impl Vq {
    pub(crate) fn open(folder: &Folder, component: &str) -> Result<Self, Error> {
        let (config, file) = folder.config::<Self>(&format!("{component}/config.json"))?;
        let check = Check(&file);
        check.supported(config.out_channels == 3, "out_channels", config.out_channels, "3")?;
        check.size("embed_dim", config.embed_dim)?;
        check.size("latent_channels", config.latent_channels)?;
        check.layers("bottleneck_blocks", config.bottleneck_blocks, 1)?;
        check.positive("scale_factor", config.scale_factor)?;
        let (patch, levels) = (config.up_down_scale_factor, config.levels);
        check.holds((1..=16).contains(&patch), "up_down_scale_factor", patch, "expected 1 to 16".into())?;
        check.holds((1..=8).contains(&levels), "levels", levels, "expected 1 to 8".into())?;
        let reason = format!("expected a multiple of {}, which is halved between levels", 1 << (levels - 1));
        check.holds(config.embed_dim.is_multiple_of(1 << (levels - 1)), "embed_dim", config.embed_dim, reason)?;
        Ok(config)
    }

    /// Channels of a level, from the outside in.
    pub(crate) const fn width(&self, level: usize) -> usize {
        self.embed_dim >> (self.levels - 1 - level)
    }

    /// Pixels along a latent's side.
    pub(crate) const fn factor(&self) -> usize {
        self.up_down_scale_factor << (self.levels - 1)
    }
}
