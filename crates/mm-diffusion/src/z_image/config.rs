//! What `transformer/config.json` says.

use crate::{Error, check::Check, folder::Folder, size::PATCH};
use serde::Deserialize;
use std::path::PathBuf;

/// The timestep's embedding is as wide as the model, up to this.
const TIMESTEP_WIDTH: usize = 256;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) in_channels: usize,
    pub(crate) dim: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_refiner_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) norm_eps: f64,
    pub(crate) qk_norm: bool,
    pub(crate) cap_feat_dim: usize,
    pub(crate) rope_theta: f64,
    pub(crate) t_scale: f32,
    pub(crate) axes_dims: Vec<usize>,
    pub(crate) axes_lens: Vec<usize>,
    all_patch_size: Vec<usize>,
    all_f_patch_size: Vec<usize>,
    siglip_feat_dim: Option<usize>,
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> Result<(Self, PathBuf), Error> {
        let (config, file) = folder.config::<Self>("transformer/config.json")?;
        let check = Check(&file);
        let siglip = config.siglip_feat_dim;
        check.supported(
            siglip.is_none(),
            "siglip_feat_dim",
            siglip,
            "null: editing by reference images is not written",
        )?;
        let patches: Vec<_> = config.all_patch_size.iter().zip(&config.all_f_patch_size).collect();
        check.supported(
            patches.contains(&(&PATCH, &1)),
            "all_patch_size",
            &config.all_patch_size,
            "2, with all_f_patch_size 1",
        )?;
        for (key, value) in [
            ("in_channels", config.in_channels),
            ("dim", config.dim),
            ("n_heads", config.n_heads),
            ("cap_feat_dim", config.cap_feat_dim),
        ] {
            check.size(key, value)?;
        }
        check.layers("n_layers", config.n_layers, 0)?;
        check.layers("n_refiner_layers", config.n_refiner_layers, 0)?;
        check.positive("norm_eps", config.norm_eps)?;
        check.positive("rope_theta", config.rope_theta)?;
        check.positive("t_scale", f64::from(config.t_scale))?;
        let reason = format!("expected a divisor of dim, {}", config.dim);
        check.holds(config.dim.is_multiple_of(config.n_heads), "n_heads", config.n_heads, reason)?;
        let dims = &config.axes_dims;
        let sum = dims.iter().fold(0usize, |sum, &dim| sum.saturating_add(dim));
        let fits = dims.len() == 3 && dims.iter().all(|dim| dim.is_multiple_of(2)) && sum == config.head_dim();
        let reason = format!("expected three even numbers that add up to dim / n_heads = {}", config.head_dim());
        check.holds(fits, "axes_dims", dims, reason)?;
        check.holds(config.axes_lens.len() == 3, "axes_lens", &config.axes_lens, "expected three numbers".into())?;
        config.axes_lens.iter().try_for_each(|&len| check.size("axes_lens", len))?;
        Ok((config, file))
    }

    pub(crate) const fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }

    pub(crate) fn timestep_width(&self) -> usize {
        self.dim.min(TIMESTEP_WIDTH)
    }

    /// Rounded down from 8/3 of the width, in floating point as the checkpoints were made.
    pub(crate) fn feed_forward_width(&self) -> usize {
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    /// Values in a patch.
    pub(crate) const fn patch_values(&self) -> usize {
        PATCH * PATCH * self.in_channels
    }
}
