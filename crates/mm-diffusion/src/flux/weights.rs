//! The two sets of names that weights of FLUX.1 have.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder, linear};

/// Whose names a checkpoint's weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// `transformer_blocks.0.attn.to_q.weight`.
    Diffusers,
    /// Of Black Forest Labs' own files: `double_blocks.0.img_attn.qkv.weight`.
    Original,
}

impl Names {
    pub(crate) fn of(vb: &VarBuilder<'_>) -> Self {
        match vb.contains_tensor("img_in.weight") {
            true => Self::Original,
            false => Self::Diffusers,
        }
    }

    pub(crate) fn pick<T>(self, diffusers: T, original: T) -> T {
        match self {
            Self::Diffusers => diffusers,
            Self::Original => original,
        }
    }

    /// An embedder's two layers.
    pub(crate) fn layers(self) -> (&'static str, &'static str) {
        self.pick(("linear_1", "linear_2"), ("in_layer", "out_layer"))
    }
}

/// Several linear layers of one input, which the original files keep as one. The numbers are the same either way.
pub(crate) enum Projection {
    /// One layer, and how many of its outputs belong to each part.
    Whole(Linear, Vec<usize>),
    Parts(Vec<Linear>),
}

impl Projection {
    /// One name for all parts, or one for each.
    pub(crate) fn load(vb: &VarBuilder<'_>, names: &[&str], input: usize, widths: &[usize]) -> Result<Self> {
        match names {
            [name] => Ok(Self::Whole(linear(input, widths.iter().sum(), vb.pp(name))?, widths.to_vec())),
            _ => {
                let parts = names.iter().zip(widths).map(|(name, width)| linear(input, *width, vb.pp(name)));
                Ok(Self::Parts(parts.collect::<Result<_>>()?))
            }
        }
    }

    /// The output of each part; `N` is as many as there are.
    pub(crate) fn forward<const N: usize>(&self, x: &Tensor) -> Result<[Tensor; N]> {
        let parts = match self {
            Self::Whole(layer, widths) => {
                let (whole, mut start) = (layer.forward(x)?, 0);
                let mut part = |width: &usize| {
                    start += width;
                    whole.narrow(D::Minus1, start - width, *width)
                };
                widths.iter().map(&mut part).collect::<Result<Vec<_>>>()?
            }
            Self::Parts(layers) => layers.iter().map(|layer| layer.forward(x)).collect::<Result<_>>()?,
        };
        exactly(parts)
    }
}

/// A modulation's output, cut into `N`.
pub(crate) fn modulation<const N: usize>(layer: &Linear, conditioning: &Tensor) -> Result<[Tensor; N]> {
    exactly(layer.forward(conditioning)?.unsqueeze(1)?.chunk(N, D::Minus1)?)
}

fn exactly<const N: usize>(parts: Vec<Tensor>) -> Result<[Tensor; N]> {
    parts.try_into().map_err(|parts: Vec<_>| candle_core::Error::Msg(format!("{} parts in place of {N}", parts.len())))
}
