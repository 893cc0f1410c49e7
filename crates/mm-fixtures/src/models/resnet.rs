//! The residual block of UNets and VAEs, and the names it goes by.

use crate::builder::Builder;

/// The layers of a residual block in the names of one code.
pub(crate) struct Names {
    norm1: &'static str,
    conv1: &'static str,
    time: &'static str,
    norm2: &'static str,
    conv2: &'static str,
    shortcut: &'static str,
}

pub(crate) const DIFFUSERS: Names = Names {
    norm1: "norm1",
    conv1: "conv1",
    time: "time_emb_proj",
    norm2: "norm2",
    conv2: "conv2",
    shortcut: "conv_shortcut",
};

/// A VAE of the original repositories.
pub(crate) const LDM_VAE: Names = Names { shortcut: "nin_shortcut", ..DIFFUSERS };

/// A UNet of the original repositories.
pub(crate) const LDM_UNET: Names = Names {
    norm1: "in_layers.0",
    conv1: "in_layers.2",
    time: "emb_layers.1",
    norm2: "out_layers.0",
    conv2: "out_layers.3",
    shortcut: "skip_connection",
};

impl Names {
    /// A block that takes the time step as well where `time` is its width.
    pub(crate) fn build(&self, b: &mut Builder, input: usize, output: usize, time: Option<usize>) {
        b.norm(self.norm1, input);
        b.conv(self.conv1, input, output, &[3, 3]);
        if let Some(time) = time {
            b.linear(self.time, time, output);
        }
        b.norm(self.norm2, output);
        b.conv(self.conv2, output, output, &[3, 3]);
        if input != output {
            b.conv(self.shortcut, input, output, &[1, 1]);
        }
    }
}
