//! VAEs, decoding, in f32. `AutoencoderKL`'s source: candle-transformers 0.11.1 `models/z_image/vae.rs`, which
//! `models/flux/autoencoder.rs` equals. Wan's is derived from Diffusers' `autoencoder_kl_wan.py`: nothing of candle runs it.

use super::Workload;
use super::facts::{Facts, Names};
use super::kernels::{Kernels, max};

/// What a decoder does after its middle, in order.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Residual { from: f64, to: f64 },
    Upsample { from: f64, to: f64, frames: bool },
}

/// The decoder of `AutoencoderKL`: of Stable Diffusion, FLUX and Z-Image.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kl {
    /// Channels in the middle.
    mid: f64,
    steps: Vec<Step>,
}

impl Kl {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        let names = facts.around("decoder.conv_in.weight")?;
        let mid = names.side("decoder.conv_in.weight", 0)?;
        let steps = if names.has("decoder.up_blocks.0.resnets.0.conv1.weight") {
            steps(
                names,
                0..,
                |block| format!("decoder.up_blocks.{block}.resnets"),
                "conv1.weight",
                |block| vec![format!("decoder.up_blocks.{block}.upsamplers.0.conv.weight")],
            )
        } else {
            let blocks =
                (0..).take_while(|block| names.has(&format!("decoder.up.{block}.block.0.conv1.weight"))).count();
            steps(
                names,
                (0..blocks).rev(),
                |block| format!("decoder.up.{block}.block"),
                "conv1.weight",
                |block| vec![format!("decoder.up.{block}.upsample.conv.weight")],
            )
        };
        let planes = names.shape("decoder.conv_in.weight").is_some_and(|shape| shape.len() == 4);
        (planes && !steps.is_empty()).then_some(Self { mid, steps })
    }

    pub(super) fn factor(&self) -> u32 {
        factor(&self.steps)
    }

    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let batch = f64::from(workload.batch);
        let (width, height) = workload.latents(self.factor());
        let mut pixels = batch * width * height;

        // The first convolution, the residual before; norm, copy with channels last, q, k, v; the scores of one head.
        let n = pixels * self.mid;
        let attention = k.bytes(7.0 * n) + k.attention(n, n, pixels * width * height);
        let mut peak = attention.max(k.bytes(2.0 * n) + residual(pixels, self.mid, self.mid, k));

        // A block's input stays alive beside the input of its second and later layers.
        let (mut input, mut own) = (n, 0.0);
        for step in &self.steps {
            match *step {
                Step::Residual { from, to } => {
                    peak = peak.max(k.bytes(input + own) + residual(pixels, from, to, k));
                    own = pixels * to;
                }
                Step::Upsample { from, to, .. } => {
                    pixels *= 4.0;
                    let (larger, out) = (pixels * from, pixels * to);
                    peak = peak.max(k.bytes(input + own + larger) + k.conv3(larger, (from, to), out));
                    (input, own) = (out, 0.0);
                }
            }
        }
        peak.max(k.bytes(input + own) + k.group_norm(own.max(input)))
    }
}

/// A residual block without its input. It is one statement: norm, activation, convolution, twice, all alive at the end.
fn residual(pixels: f64, from: f64, to: f64, k: &Kernels) -> f64 {
    let (a, b) = (pixels * from, pixels * to);
    max([
        k.group_norm(a),
        // The activation has a sigmoid beside it.
        k.bytes(3.0 * a),
        k.bytes(2.0 * a) + k.conv3(a, (from, to), b),
        k.bytes(2.0 * a + b) + k.group_norm(b),
        k.bytes(2.0 * a + 3.0 * b) + k.conv3(b, (to, to), b),
        k.bytes(b) + if from == to { k.bytes(b) } else { k.conv1(a, b) },
    ])
}

/// The decoder of `AutoencoderKLWan`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WanVae {
    mid: f64,
    steps: Vec<Step>,
    /// Pixels along the side of what the last convolution makes values of.
    patch: u32,
}

/// Frames that each causal convolution keeps of the chunk before.
const CACHED: f64 = 2.0;

impl WanVae {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        let (names, entry, steps) = if let Some(names) = facts.around("decoder.up_blocks.0.resnets.0.conv1.weight") {
            let steps = steps(
                names,
                0..,
                |block| format!("decoder.up_blocks.{block}.resnets"),
                "conv1.weight",
                |block| {
                    ["upsamplers.0", "upsampler"]
                        .map(|part| format!("decoder.up_blocks.{block}.{part}.resample.1.weight"))
                        .into()
                },
            );
            (names, "decoder.conv_in.weight", steps)
        } else {
            let names = facts.around("decoder.conv1.weight")?;
            (names, "decoder.conv1.weight", original(names))
        };
        let frames = names.shape(entry).is_some_and(|shape| shape.len() == 5);
        let out = names.side_of(&["decoder.conv_out.weight", "decoder.head.2.weight"], 0)?;
        // Wan 2.2 makes patches of 2×2 pixels.
        let patch = if out >= 12.0 { 2 } else { 1 };
        (frames && !steps.is_empty()).then_some(Self { mid: names.side(entry, 0)?, steps, patch })
    }

    pub(super) fn factor(&self) -> u32 {
        factor(&self.steps).saturating_mul(self.patch)
    }

    /// One latent frame after the other is decoded, and the images are joined. As with `AutoencoderKL`, with a copy of
    /// each convolution's input between the frames kept from before, and those frames.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let batch = f64::from(workload.batch);
        let (width, height) = workload.latents(self.factor());
        let frames = f64::from(if workload.frames == 0 { super::wan::FRAMES } else { workload.frames });
        let mut pixels = batch * width * height;
        let mut chunk = 1.0;
        let n = pixels * self.mid;
        let mut peak = k.bytes(7.0 * n) + k.attention(n, n, pixels * width * height);
        let (mut cached, mut own) = (0.0, n);
        let mut stages = Vec::new();
        for step in &self.steps {
            match *step {
                Step::Residual { from, to } => {
                    let larger = pixels * chunk * from.max(to);
                    stages.push(k.bytes(own + larger * (1.0 + CACHED / chunk)) + residual(pixels * chunk, from, to, k));
                    cached += CACHED * pixels * (from + to);
                    own = pixels * chunk * to;
                }
                Step::Upsample { from, to, frames: doubled } => {
                    chunk *= if doubled && frames > 1.0 { 2.0 } else { 1.0 };
                    pixels *= 4.0;
                    let (larger, out) = (pixels * chunk * from, pixels * chunk * to);
                    stages.push(k.bytes(own + larger) + k.conv3(larger, (from, to), out));
                    own = out;
                }
            }
        }
        if frames <= 1.0 {
            cached = 0.0;
        }
        let images = 2.0 * 3.0 * frames * batch * width * height * f64::from(self.factor()).powi(2);
        peak = peak.max(max(stages));
        peak + k.bytes(cached + images)
    }
}

fn factor(steps: &[Step]) -> u32 {
    let doublings = steps.iter().filter(|step| matches!(step, Step::Upsample { .. })).count();
    // More than these are no image; widths are `u32`.
    1 << doublings.min(16)
}

/// Reads blocks of residuals, each perhaps followed by doubling the size.
fn steps(
    names: Names<'_>,
    blocks: impl Iterator<Item = usize>,
    residuals: impl Fn(usize) -> String,
    convolution: &str,
    upsamplers: impl Fn(usize) -> Vec<String>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in blocks {
        let before = steps.len();
        let at = residuals(block);
        for layer in 0.. {
            let name = format!("{at}.{layer}.{convolution}");
            let (Some(to), Some(from)) = (names.side(&name, 0), names.side(&name, 1)) else { break };
            steps.push(Step::Residual { from, to });
        }
        if steps.len() == before {
            break;
        }
        steps.extend(upsamplers(block).iter().find_map(|name| upsample(names, name)));
    }
    steps
}

fn upsample(names: Names<'_>, name: &str) -> Option<Step> {
    let frames = name.strip_suffix("resample.1.weight").is_some_and(|at| names.has(&format!("{at}time_conv.weight")));
    Some(Step::Upsample { to: names.side(name, 0)?, from: names.side(name, 1)?, frames })
}

/// Wan's own names: residuals and doublings in one list, in 2.2 a list of such lists.
fn original(names: Names<'_>) -> Vec<Step> {
    let one = |at: &str| {
        let residual = format!("{at}.residual.2.weight");
        match (names.side(&residual, 0), names.side(&residual, 1)) {
            (Some(to), Some(from)) => Some(Step::Residual { from, to }),
            _ => upsample(names, &format!("{at}.resample.1.weight")),
        }
    };
    let list = |at: String| (0..).map_while(move |index| one(&format!("{at}.{index}"))).collect::<Vec<_>>();
    let flat = list("decoder.upsamples".to_owned());
    if !flat.is_empty() {
        return flat;
    }
    let nested = (0..).map(|index| list(format!("decoder.upsamples.{index}.upsamples")));
    nested.take_while(|steps| !steps.is_empty()).flatten().collect()
}
