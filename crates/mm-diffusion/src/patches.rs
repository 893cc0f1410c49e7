//! Latents as tokens: a patch of two by two each.

use crate::size::PATCH;
use candle_core::{Result, Tensor};

/// The order of the values in a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Channel by channel.
    ChannelsFirst,
    /// Place by place.
    ChannelsLast,
}

/// `[1, channels, height, width]` to `[patches, values]`.
pub(crate) fn patchify(latents: &Tensor, order: Order) -> Result<Tensor> {
    let (_, channels, height, width) = latents.dims4()?;
    let (rows, columns) = (height / PATCH, width / PATCH);
    let x = latents.reshape((channels, rows, PATCH, columns, PATCH))?;
    let x = match order {
        Order::ChannelsFirst => x.permute((1, 3, 0, 2, 4)),
        Order::ChannelsLast => x.permute((1, 3, 2, 4, 0)),
    };
    x?.reshape((rows * columns, PATCH * PATCH * channels))
}

/// The way back, for `[batch, patches, values]`.
pub(crate) fn unpatchify(x: &Tensor, channels: usize, rows: usize, columns: usize, order: Order) -> Result<Tensor> {
    let batch = x.dim(0)?;
    let x = x.contiguous()?;
    let x = match order {
        Order::ChannelsFirst => {
            x.reshape(&[batch, rows, columns, channels, PATCH, PATCH][..])?.permute(vec![0, 3, 1, 4, 2, 5])
        }
        Order::ChannelsLast => {
            x.reshape(&[batch, rows, columns, PATCH, PATCH, channels][..])?.permute(vec![0, 5, 1, 3, 2, 4])
        }
    };
    x?.reshape((batch, channels, rows * PATCH, columns * PATCH))
}
