//! Stable Diffusion 1, 2 and XL: the conditional UNet. Source: candle-transformers 0.11.1
//! `models/stable_diffusion/{unet_2d,unet_2d_blocks,resnet,attention}.rs`.

use super::Workload;
use super::facts::{Facts, Names};
use super::kernels::{F32, Kernels, max};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unet {
    /// Channels that the input is brought to.
    entry: f64,
    down: Vec<Level>,
    mid: Layer,
    up: Vec<Level>,
}

/// What is done at one size.
#[derive(Clone, Debug, Default, PartialEq)]
struct Level {
    layers: Vec<Layer>,
    /// Followed by a change of size.
    sampler: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Layer {
    from: f64,
    to: f64,
    attention: Option<Attention>,
}

#[derive(Clone, Debug, PartialEq)]
struct Attention {
    heads: f64,
    /// Width of the feed-forward, value and gate.
    inner: f64,
}

impl Unet {
    pub(super) fn of(facts: &Facts<'_>) -> Option<Self> {
        if let Some(names) = facts.around("down_blocks.0.resnets.0.time_emb_proj.weight") {
            return diffusers(facts, names);
        }
        original(facts, facts.around("input_blocks.1.0.emb_layers.1.weight")?)
    }

    /// All outputs of the way down are kept for the way up.
    pub(super) fn peak(&self, workload: &Workload, k: &Kernels) -> f64 {
        let batch = workload.guided_batch();
        let (mut width, mut height) = workload.latents(8);
        let mut peak = 0.0f64;
        let mut sizes = Vec::new();

        let first = batch * width * height * self.entry;
        // For each output its elements; they sum up to `kept`.
        let mut outputs = vec![first];
        let mut kept = first;
        for level in &self.down {
            let pixels = width * height;
            for layer in &level.layers {
                peak = peak.max(k.bytes(kept) + layer.peak(batch, pixels, k));
                outputs.push(batch * pixels * layer.to);
                kept += batch * pixels * layer.to;
            }
            sizes.push((width, height));
            if level.sampler {
                (width, height) = ((width / 2.0).ceil(), (height / 2.0).ceil());
                let to = level.layers.last().map_or(self.entry, |layer| layer.to);
                let (from, smaller) = (batch * pixels * to, batch * width * height * to);
                peak = peak.max(k.bytes(kept) + k.conv3(from, (to, to), smaller));
                outputs.push(smaller);
                kept += smaller;
            }
        }

        // Of two residuals and the attention between them, the input to each.
        let mut x = batch * width * height * self.mid.to;
        peak = peak.max(k.bytes(kept + x) + self.mid.peak(batch, width * height, k));

        for (level, (width, height)) in self.up.iter().zip(sizes.iter().rev()) {
            let pixels = width * height;
            let input = x;
            let mut freed = 0.0;
            for (index, layer) in level.layers.iter().enumerate() {
                freed += outputs.pop().unwrap_or(0.0);
                let joined = batch * pixels * layer.from;
                // The level's input stays; joining has the layer's own input beside it.
                let own = if index == 0 { 0.0 } else { x };
                let layer_peak = k.bytes(joined) + layer.peak(batch, pixels, k);
                peak = peak.max(k.bytes(kept + input) + layer_peak.max(k.bytes(own + joined)));
                x = batch * pixels * layer.to;
            }
            if level.sampler {
                let to = level.layers.last().map_or(self.entry, |layer| layer.to);
                let larger = 4.0 * x;
                peak = peak.max(k.bytes(kept + input + x + larger) + k.conv3(larger, (to, to), larger));
                x = larger;
            }
            kept = (kept - freed).max(0.0);
        }
        peak.max(k.bytes(x) + k.group_norm(x))
    }
}

impl Layer {
    /// A residual, then the attention on its result; without the input of the first.
    fn peak(&self, batch: f64, pixels: f64, k: &Kernels) -> f64 {
        let (from, to) = (batch * pixels * self.from, batch * pixels * self.to);
        let residual = self.residual(from, to, k);
        let attention = self.attention.as_ref().map_or(0.0, |attention| attention.peak(batch, pixels, self.to, k));
        residual.max(k.bytes(to) + attention)
    }

    /// Alive at the end: the shortcut where there is one, the first norm, the first convolution without and with the
    /// timestep, the second norm and its activation.
    fn residual(&self, from: f64, to: f64, k: &Kernels) -> f64 {
        let shortcut = if self.from == self.to { 0.0 } else { to };
        let bytes = |elements| k.bytes(shortcut + elements);
        max([
            if shortcut > 0.0 { k.conv1(from, to) } else { 0.0 },
            bytes(0.0) + k.group_norm(from),
            bytes(2.0 * from) + k.conv3(from, (self.from, self.to), to),
            bytes(from + 2.0 * to) + k.group_norm(to),
            bytes(from + 4.0 * to) + k.conv3(to, (self.to, self.to), to),
        ])
    }
}

impl Attention {
    /// A spatial transformer without its input. Alive all along: the group norm and a block's input (2n).
    fn peak(&self, batch: f64, pixels: f64, channels: f64, k: &Kernels) -> f64 {
        let n = batch * pixels * channels;
        let scores = F32 * batch * self.heads * pixels * pixels;
        // The norm; q, k and v, again with heads first (7n), and in f32; the key scaled, then scores and softmax in f32.
        let three = k.bytes(9.0 * n) + 3.0 * k.cast(n);
        let attention = three + max([k.wide(n) + scores, 2.0 * scores + k.wide(n) + k.bytes(n)]);
        // Two sums, a norm; value and gate without and with bias, or activated and multiplied.
        let (m, weight) = (batch * pixels * self.inner, channels * self.inner);
        let mlp = k.bytes(5.0 * n)
            + max([k.linear(n, weight, m), k.bytes(2.0 * m), k.bytes(0.5 * m) + k.linear(0.5 * m, 0.5 * weight, n)]);
        let norm = k.bytes(n) + k.group_norm(n);
        max([norm, attention, mlp])
    }
}

fn diffusers(facts: &Facts<'_>, names: Names<'_>) -> Option<Unet> {
    let level = |direction: &str, sampler: &str, index: usize| {
        let mut level = Level::default();
        while let Some(layer) = layer(
            names,
            &format!("{direction}_blocks.{index}.resnets.{}.conv1.weight", level.layers.len()),
            &format!("{direction}_blocks.{index}.attentions.{}", level.layers.len()),
            |channels, context| {
                facts.heads(channels, context, if direction == "up" { Place::Up(index) } else { Place::Down(index) })
            },
        ) {
            level.layers.push(layer);
        }
        level.sampler = names.has(&format!("{direction}_blocks.{index}.{sampler}.0.conv.weight"));
        (!level.layers.is_empty()).then_some(level)
    };
    let levels = |direction, sampler| (0..).map_while(|index| level(direction, sampler, index)).collect::<Vec<_>>();
    let mid = layer(names, "mid_block.resnets.0.conv1.weight", "mid_block.attentions.0", |channels, context| {
        facts.heads(channels, context, Place::Mid)
    });
    complete(Unet {
        entry: names.side("conv_in.weight", 0)?,
        down: levels("down", "downsamplers"),
        mid: mid?,
        up: levels("up", "upsamplers"),
    })
}

fn original(facts: &Facts<'_>, names: Names<'_>) -> Option<Unet> {
    let read = |index: usize, blocks: &str| {
        let heads = |channels, context| facts.heads(channels, context, Place::Unknown);
        let residual = format!("{blocks}.{index}.0.in_layers.2.weight");
        layer(names, &residual, &format!("{blocks}.{index}.1"), heads)
    };
    let mut down = vec![Level::default()];
    for index in 1.. {
        let last = down.last_mut()?;
        if let Some(layer) = read(index, "input_blocks") {
            last.layers.push(layer);
        } else if names.has(&format!("input_blocks.{index}.0.op.weight")) {
            last.sampler = true;
            down.push(Level::default());
        } else {
            break;
        }
    }
    let mut up = vec![Level::default()];
    for index in 0.. {
        let Some(layer) = read(index, "output_blocks") else { break };
        let last = up.last_mut()?;
        last.layers.push(layer);
        if (1..=2).any(|place| names.has(&format!("output_blocks.{index}.{place}.conv.weight"))) {
            last.sampler = true;
            up.push(Level::default());
        }
    }
    let mid = layer(names, "middle_block.0.in_layers.2.weight", "middle_block.1", |channels, context| {
        facts.heads(channels, context, Place::Unknown)
    });
    complete(Unet { entry: names.side("input_blocks.0.0.weight", 0)?, down, mid: mid?, up })
}

fn complete(unet: Unet) -> Option<Unet> {
    let whole = |levels: &[Level]| !levels.is_empty() && levels.iter().all(|level| !level.layers.is_empty());
    (whole(&unet.down) && whole(&unet.up) && unet.down.len() == unet.up.len()).then_some(unet)
}

fn layer(
    names: Names<'_>,
    convolution: &str,
    attention: &str,
    heads: impl Fn(f64, Option<f64>) -> f64,
) -> Option<Layer> {
    let (to, from) = (names.side(convolution, 0)?, names.side(convolution, 1)?);
    let block = |part: &str| format!("{attention}.transformer_blocks.0.{part}");
    let attention = names.side(&block("ff.net.0.proj.weight"), 0).map(|inner| {
        let context = names.side(&block("attn2.to_k.weight"), 1);
        Attention { heads: heads(to, context), inner }
    });
    Some(Layer { from, to, attention })
}

enum Place {
    Down(usize),
    Mid,
    Up(usize),
    Unknown,
}

/// Width of the context of SD 1, whose heads are eight wherever they are.
const SD1_CONTEXT: f64 = 768.0;
const SD1_HEADS: f64 = 8.0;
/// All later models' heads are this wide.
const HEAD: f64 = 64.0;

impl Facts<'_> {
    /// By configuration (Diffusers calls the number of heads `attention_head_dim`), else by the models there are.
    fn heads(&self, channels: f64, context: Option<f64>, place: Place) -> f64 {
        let configured = ["num_attention_heads", "attention_head_dim"].into_iter().find_map(|key| {
            let value = self.value(key)?;
            let levels = match value.as_array() {
                None => return value.as_u64(),
                Some(levels) => levels,
            };
            match place {
                Place::Down(index) => levels.get(index),
                Place::Mid => levels.last(),
                Place::Up(index) => levels.iter().rev().nth(index),
                Place::Unknown => None,
            }?
            .as_u64()
        });
        match configured.filter(|&heads| heads > 0) {
            Some(heads) => heads as f64,
            None if context == Some(SD1_CONTEXT) => SD1_HEADS,
            None => (channels / HEAD).max(1.0),
        }
    }
}
