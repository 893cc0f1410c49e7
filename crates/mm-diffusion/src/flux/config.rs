//! What `transformer/config.json` says.

use crate::{Error, check::Check, folder::Folder};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) in_channels: usize,
    out_channels: Option<usize>,
    #[serde(default = "one")]
    patch_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_single_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) attention_head_dim: usize,
    pub(crate) joint_attention_dim: usize,
    pub(crate) pooled_projection_dim: usize,
    /// Whether the strength of guidance is an input, as in FLUX.1-dev.
    #[serde(default)]
    pub(crate) guidance_embeds: bool,
    /// Older files keep the class's default to themselves.
    #[serde(default = "axes")]
    pub(crate) axes_dims_rope: Vec<usize>,
}

const fn one() -> usize {
    1
}

fn axes() -> Vec<usize> {
    vec![16, 56, 56]
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> Result<(Self, PathBuf), Error> {
        let (config, file) = folder.config::<Self>("transformer/config.json")?;
        let check = Check(&file);
        check.supported(config.patch_size == 1, "patch_size", config.patch_size, "1")?;
        for (key, value) in [
            ("in_channels", config.in_channels),
            ("num_attention_heads", config.num_attention_heads),
            ("attention_head_dim", config.attention_head_dim),
            ("joint_attention_dim", config.joint_attention_dim),
            ("pooled_projection_dim", config.pooled_projection_dim),
        ] {
            check.size(key, value)?;
        }
        let (channels, same) = (config.in_channels, config.out_channels.is_none_or(|out| out == config.in_channels));
        check.supported(same, "out_channels", config.out_channels, &format!("null, or in_channels, {channels}"))?;
        check.layers("num_layers", config.num_layers, 0)?;
        check.layers("num_single_layers", config.num_single_layers, 0)?;
        let (dims, head) = (&config.axes_dims_rope, config.attention_head_dim);
        let sum = dims.iter().fold(0usize, |sum, &dim| sum.saturating_add(dim));
        let fits = dims.len() == 3 && dims.iter().all(|dim| dim.is_multiple_of(2)) && sum == head;
        let reason = format!("expected three even numbers that add up to attention_head_dim, {head}");
        check.holds(fits, "axes_dims_rope", dims, reason)?;
        Ok((config, file))
    }

    /// How many there are, and how wide.
    pub(crate) const fn heads(&self) -> (usize, usize) {
        (self.num_attention_heads, self.attention_head_dim)
    }

    pub(crate) const fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}
