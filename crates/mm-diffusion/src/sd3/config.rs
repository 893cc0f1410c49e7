//! What `transformer/config.json` says.

use crate::{Error, check::Check, folder::Folder, joint::QkNorm, size::PATCH};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) in_channels: usize,
    out_channels: Option<usize>,
    patch_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) attention_head_dim: usize,
    pub(crate) joint_attention_dim: usize,
    caption_projection_dim: usize,
    pub(crate) pooled_projection_dim: usize,
    /// Patches along a side of the table of positions.
    pub(crate) pos_embed_max_size: usize,
    /// Of Stable Diffusion 3.5; older files don't have the key.
    qk_norm: Option<String>,
    /// Blocks in which the image attends to itself too: MMDiT-X.
    #[serde(default)]
    pub(crate) dual_attention_layers: Vec<usize>,
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> Result<(Self, PathBuf), Error> {
        let (config, file) = folder.config::<Self>("transformer/config.json")?;
        let check = Check(&file);
        check.supported(config.patch_size == PATCH, "patch_size", config.patch_size, &PATCH.to_string())?;
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
        check.layers("num_layers", config.num_layers, 1)?;
        let side = config.pos_embed_max_size;
        check.holds((1..=4096).contains(&side), "pos_embed_max_size", side, "expected 1 to 4096".into())?;
        let width = config.width();
        let reason = format!("expected num_attention_heads × attention_head_dim, {width}");
        check.holds(
            config.caption_projection_dim == width,
            "caption_projection_dim",
            config.caption_projection_dim,
            reason,
        )?;
        let norm = config.qk_norm.as_deref();
        check.supported(matches!(norm, None | Some("rms_norm")), "qk_norm", norm, "null, rms_norm")?;
        Ok((config, file))
    }

    pub(crate) const fn qk_norm(&self) -> QkNorm {
        if self.qk_norm.is_some() { QkNorm::Fused } else { QkNorm::None }
    }

    /// How many there are, and how wide.
    pub(crate) const fn heads(&self) -> (usize, usize) {
        (self.num_attention_heads, self.attention_head_dim)
    }

    pub(crate) const fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}
