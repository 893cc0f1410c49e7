//! What `unet/config.json` says.

use crate::{Error, check::Check, folder::Folder};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// The numbers about an image's size that SDXL is told: height and width before cropping, what was cropped, height and width.
pub(crate) const SIZES: usize = 6;

const DOWN: [&str; 2] = ["DownBlock2D", "CrossAttnDownBlock2D"];
const UP: [&str; 2] = ["UpBlock2D", "CrossAttnUpBlock2D"];

/// A number for all levels, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PerLevel {
    All(usize),
    Each(Vec<usize>),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    pub(crate) layers_per_block: usize,
    /// In spite of its name how many heads there are.
    attention_head_dim: PerLevel,
    num_attention_heads: Option<PerLevel>,
    #[serde(default = "one")]
    transformer_layers_per_block: PerLevel,
    pub(crate) cross_attention_dim: usize,
    #[serde(default)]
    pub(crate) use_linear_projection: bool,
    #[serde(default = "groups")]
    pub(crate) norm_num_groups: usize,
    #[serde(default = "eps")]
    pub(crate) norm_eps: f64,
    #[serde(default = "yes")]
    pub(crate) flip_sin_to_cos: bool,
    #[serde(default)]
    pub(crate) freq_shift: f64,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    /// As candle's own has it, for comparison with it.
    #[serde(skip)]
    pub(crate) approximate_gelu: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

const fn one() -> PerLevel {
    PerLevel::All(1)
}

const fn groups() -> usize {
    32
}

const fn eps() -> f64 {
    1e-5
}

const fn yes() -> bool {
    true
}

/// One level of the way down, and of the way up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    pub(crate) channels: usize,
    pub(crate) heads: usize,
    /// Transformer blocks after each residual block.
    pub(crate) depth: usize,
    /// Whether it has transformers; the middle has some whatever the deepest level says.
    pub(crate) attends: bool,
}

/// What SDXL is told beside the timestep: how wide the pooled prompt is, and each number about the size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addition {
    pub(crate) pooled: usize,
    pub(crate) number: usize,
}

impl Config {
    pub(crate) fn open(folder: &Folder) -> Result<(Self, PathBuf), Error> {
        let (mut config, file) = folder.config::<Self>("unet/config.json")?;
        config.check(&Check(&file))?;
        // What decides nothing here makes no other component.
        config.others.clear();
        Ok((config, file))
    }

    fn check(&self, check: &Check<'_>) -> Result<(), Error> {
        for (key, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("cross_attention_dim", self.cross_attention_dim),
            ("norm_num_groups", self.norm_num_groups),
        ] {
            check.size(key, value)?;
        }
        check.layers("layers_per_block", self.layers_per_block, 1)?;
        check.positive("norm_eps", self.norm_eps)?;
        let (channels, groups) = (&self.block_out_channels, self.norm_num_groups);
        let reason = "expected 1 to 8 numbers".to_owned();
        check.holds((1..=8).contains(&channels.len()), "block_out_channels", channels, reason)?;
        for &width in channels {
            check.size("block_out_channels", width)?;
            let reason = format!("expected even multiples of norm_num_groups, {groups}");
            let fits = width.is_multiple_of(groups) && width.is_multiple_of(2);
            check.holds(fits, "block_out_channels", channels, reason)?;
        }
        let half = channels[0] / 2;
        let reason = format!("expected a number from 0 to below {half}");
        check.holds((0.0..half as f64).contains(&self.freq_shift), "freq_shift", self.freq_shift, reason)?;
        self.check_levels(check)?;
        self.check_addition(check)?;
        self.check_others(check)
    }

    fn check_levels(&self, check: &Check<'_>) -> Result<(), Error> {
        let count = self.block_out_channels.len();
        for (key, types, known) in
            [("down_block_types", &self.down_block_types, DOWN), ("up_block_types", &self.up_block_types, UP)]
        {
            let supported = types.iter().all(|kind| known.contains(&kind.as_str()));
            check.supported(supported, key, types, &known.join(", "))?;
            let reason = format!("expected one for each of block_out_channels, {count}");
            check.holds(types.len() == count, key, types, reason)?;
        }
        let mut mirrored = self.down_block_types.iter().rev().zip(&self.up_block_types);
        let mirrored = mirrored.all(|(down, up)| (down == DOWN[1]) == (up == UP[1]));
        let reason = "expected the down_block_types the other way round".to_owned();
        check.holds(mirrored, "up_block_types", &self.up_block_types, reason)?;
        let depths = &self.transformer_layers_per_block;
        for (key, numbers) in [("attention_head_dim", self.heads_of_levels()), ("transformer_layers_per_block", depths)]
        {
            let fits =
                matches!(numbers, PerLevel::All(_)) || matches!(numbers, PerLevel::Each(all) if all.len() == count);
            check.holds(fits, key, numbers, format!("expected a number, or one for each level, {count}"))?;
        }
        for level in self.levels() {
            check.layers("transformer_layers_per_block", level.depth, 1)?;
            let reason = format!("expected divisors of block_out_channels, {:?}", self.block_out_channels);
            let divides = level.heads > 0 && level.channels.is_multiple_of(level.heads);
            check.holds(divides, "attention_head_dim", level.heads, reason)?;
        }
        Ok(())
    }

    fn check_addition(&self, check: &Check<'_>) -> Result<(), Error> {
        let kind = self.addition_embed_type.as_deref();
        check.supported(matches!(kind, None | Some("text_time")), "addition_embed_type", kind, "null, text_time")?;
        if kind.is_none() {
            return Ok(());
        }
        let number = self.addition_time_embed_dim.unwrap_or(0);
        check.size("addition_time_embed_dim", number)?;
        let even = number.is_multiple_of(2) && self.freq_shift < (number / 2) as f64;
        check.holds(even, "addition_time_embed_dim", number, "expected an even number".into())?;
        let whole = self.projection_class_embeddings_input_dim.unwrap_or(0);
        check.size("projection_class_embeddings_input_dim", whole)?;
        let reason = format!("expected more than {SIZES} × addition_time_embed_dim, {}", SIZES * number);
        check.holds(whole > SIZES * number, "projection_class_embeddings_input_dim", whole, reason)
    }

    /// Other kinds of UNets have the same class.
    fn check_others(&self, check: &Check<'_>) -> Result<(), Error> {
        let null = Value::Null;
        for (key, known) in [
            ("act_fn", json!("silu")),
            ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
            ("resnet_time_scale_shift", json!("default")),
            ("time_embedding_type", json!("positional")),
            ("attention_type", json!("default")),
            ("downsample_padding", json!(1)),
            ("mid_block_scale_factor", json!(1)),
            ("resnet_out_scale_factor", json!(1)),
            ("conv_in_kernel", json!(3)),
            ("conv_out_kernel", json!(3)),
            ("center_input_sample", json!(false)),
            ("dual_cross_attention", json!(false)),
            ("only_cross_attention", json!(false)),
            ("mid_block_only_cross_attention", json!(false)),
            ("resnet_skip_time_act", json!(false)),
            ("class_embeddings_concat", json!(false)),
            ("class_embed_type", null.clone()),
            ("num_class_embeds", null.clone()),
            ("encoder_hid_dim", null.clone()),
            ("encoder_hid_dim_type", null.clone()),
            ("time_embedding_dim", null.clone()),
            ("time_embedding_act_fn", null.clone()),
            ("timestep_post_act", null.clone()),
            ("time_cond_proj_dim", null.clone()),
            ("cross_attention_norm", null.clone()),
            ("reverse_transformer_layers_per_block", null.clone()),
        ] {
            let Some(found) = self.others.get(key) else { continue };
            let same = found.is_null() || *found == known || found.as_f64().is_some_and(|f| known.as_f64() == Some(f));
            check.supported(same, key, found, &known.to_string())?;
        }
        Ok(())
    }

    fn heads_of_levels(&self) -> &PerLevel {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim)
    }

    /// From the outside in.
    pub(crate) fn levels(&self) -> Vec<Level> {
        let of = |numbers: &PerLevel, level: usize| match numbers {
            PerLevel::All(number) => *number,
            PerLevel::Each(all) => all.get(level).copied().unwrap_or(0),
        };
        let kinds = self.block_out_channels.iter().zip(&self.down_block_types).enumerate();
        let level = |(index, (channels, kind)): (usize, (&usize, &String))| Level {
            channels: *channels,
            heads: of(self.heads_of_levels(), index),
            depth: of(&self.transformer_layers_per_block, index),
            attends: kind == DOWN[1],
        };
        kinds.map(level).collect()
    }

    pub(crate) fn addition(&self) -> Option<Addition> {
        self.addition_embed_type.as_ref()?;
        let number = self.addition_time_embed_dim?;
        let pooled = self.projection_class_embeddings_input_dim?.checked_sub(SIZES * number)?;
        Some(Addition { pooled, number })
    }

    /// Of the sinusoids of a timestep.
    pub(crate) fn sinusoids(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0)
    }
}
