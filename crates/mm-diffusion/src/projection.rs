//! Linear layers that one set of names keeps apart, and another as one.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Linear, linear, linear_no_bias};

/// Whose names a transformer's weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// `transformer_blocks.0.attn.to_q.weight`.
    Diffusers,
    /// Of the files that the model's makers publish: `double_blocks.0.img_attn.qkv.weight`.
    Original,
}

impl Names {
    /// Original ones where there is this tensor, and where they begin: files with more than a transformer have a prefix, and
    /// so have some with the names of Diffusers, of which `diffusers` is one.
    pub(crate) fn find<'a>(vb: VarBuilder<'a>, original: &str, diffusers: &str) -> (Self, VarBuilder<'a>) {
        if vb.contains_tensor(original) {
            return (Self::Original, vb);
        }
        let prefixed = vb.pp("model.diffusion_model");
        if prefixed.contains_tensor(original) {
            return (Self::Original, prefixed);
        }
        match prefixed.contains_tensor(diffusers) {
            true => (Self::Diffusers, prefixed),
            false => (Self::Diffusers, vb),
        }
    }

    pub(crate) fn pick<T>(self, diffusers: T, original: T) -> T {
        match self {
            Self::Diffusers => diffusers,
            Self::Original => original,
        }
    }
}

/// Several linear layers of one input. The numbers are the same either way.
pub(crate) enum Projection {
    /// One layer, and how many of its outputs belong to each part.
    Whole(Linear, Vec<usize>),
    /// A layer for each part.
    Parts(Vec<Linear>),
}

impl Projection {
    /// One name for all parts, or one for each.
    pub(crate) fn load(vb: &VarBuilder<'_>, names: &[&str], input: usize, widths: &[usize]) -> Result<Self> {
        Self::layers(vb, names, input, widths, linear)
    }

    /// The same without biases.
    pub(crate) fn load_no_bias(vb: &VarBuilder<'_>, names: &[&str], input: usize, widths: &[usize]) -> Result<Self> {
        Self::layers(vb, names, input, widths, linear_no_bias)
    }

    fn layers(
        vb: &VarBuilder<'_>,
        names: &[&str],
        input: usize,
        widths: &[usize],
        layer: impl Fn(usize, usize, VarBuilder<'_>) -> Result<Linear>,
    ) -> Result<Self> {
        match names {
            [name] => Ok(Self::Whole(layer(input, widths.iter().sum(), vb.pp(name))?, widths.to_vec())),
            _ => {
                let parts = names.iter().zip(widths).map(|(name, width)| layer(input, *width, vb.pp(name)));
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

/// A modulation's output for every item of the batch, cut into `N`.
pub(crate) fn modulation<const N: usize>(layer: &Linear, conditioning: &Tensor) -> Result<[Tensor; N]> {
    exactly(layer.forward(conditioning)?.unsqueeze(1)?.chunk(N, D::Minus1)?)
}

fn exactly<const N: usize>(parts: Vec<Tensor>) -> Result<[Tensor; N]> {
    parts.try_into().map_err(|parts: Vec<_>| candle_core::Error::Msg(format!("{} parts in place of {N}", parts.len())))
}
