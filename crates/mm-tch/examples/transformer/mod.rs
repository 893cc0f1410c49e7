//! `ZImageTransformer2DModel` on tch, for one caption: image and caption are refined apart, then denoised as one sequence.

use mm_tch::{Blocks, Result};
use serde::Deserialize;
use tch::{
    Device, Kind, Tensor,
    nn::{self, Init, Module},
};

/// Side of a patch, in latents.
const PATCH: i64 = 2;
/// Sequences are filled up to a multiple of this with tokens of their own that are attended to.
const MULTIPLE: i64 = 32;
/// Width of the sinusoids, and of the hidden layer above them.
const SINUSOIDS: i64 = 256;
const TIMESTEP_HIDDEN: i64 = 1024;
const QK_NORM_EPS: f64 = 1e-5;
const FINAL_NORM_EPS: f64 = 1e-6;

/// What `transformer/config.json` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    in_channels: i64,
    dim: i64,
    n_layers: usize,
    n_refiner_layers: usize,
    n_heads: i64,
    norm_eps: f64,
    cap_feat_dim: i64,
    rope_theta: f64,
    t_scale: f64,
    axes_dims: Vec<i64>,
}

fn linear(path: nn::Path<'_>, from: i64, to: i64, bias: bool) -> nn::Linear {
    // The weights come from the files: filling them at random would be time for nothing.
    let zero = Init::Const(0.0);
    nn::linear(path, from, to, nn::LinearConfig { ws_init: zero, bs_init: Some(zero), bias })
}

struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn new(path: nn::Path<'_>, width: i64, eps: f64) -> Self {
        Self { weight: path.var("weight", &[width], Init::Const(1.0)), eps }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.rms_norm(self.weight.size(), Some(&self.weight), self.eps)
    }
}

/// What all blocks of a stack share in a pass.
struct Context<'a> {
    rope: &'a (Tensor, Tensor),
    timestep: &'a Tensor,
}

struct Block {
    q: nn::Linear,
    k: nn::Linear,
    v: nn::Linear,
    out: nn::Linear,
    qk_norm: (RmsNorm, RmsNorm),
    attention_norm: (RmsNorm, RmsNorm),
    feed_forward: [nn::Linear; 3],
    feed_forward_norm: (RmsNorm, RmsNorm),
    modulation: Option<nn::Linear>,
    heads: i64,
}

impl Block {
    fn new(config: &Config, modulated: bool, path: &nn::Path<'_>) -> Self {
        let (dim, head) = (config.dim, config.dim / config.n_heads);
        let inner = (dim as f64 / 3.0 * 8.0) as i64;
        let attention = path / "attention";
        let norm = |name: &str| RmsNorm::new(path / name, dim, config.norm_eps);
        let qk_norm = |name: &str| RmsNorm::new(&attention / name, head, QK_NORM_EPS);
        let project = |name: &str| linear(&attention / name, dim, dim, false);
        let feed = path / "feed_forward";
        Self {
            q: project("to_q"),
            k: project("to_k"),
            v: project("to_v"),
            out: linear(&attention / "to_out" / 0, dim, dim, false),
            qk_norm: (qk_norm("norm_q"), qk_norm("norm_k")),
            attention_norm: (norm("attention_norm1"), norm("attention_norm2")),
            feed_forward: [
                linear(&feed / "w1", dim, inner, false),
                linear(&feed / "w3", dim, inner, false),
                linear(&feed / "w2", inner, dim, false),
            ],
            feed_forward_norm: (norm("ffn_norm1"), norm("ffn_norm2")),
            modulation: modulated.then(|| linear(path / "adaLN_modulation" / 0, dim.min(256), 4 * dim, true)),
            heads: config.n_heads,
        }
    }

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Tensor {
        let modulation = self.modulation.as_ref().map(|m| m.forward(context.timestep).unsqueeze(1).chunk(4, -1));
        let scaled = |h: Tensor, part: usize| modulation.as_ref().map_or(h.shallow_clone(), |m| h * (&m[part] + 1.0));
        let gated = |h: Tensor, part: usize| modulation.as_ref().map_or(h.shallow_clone(), |m| h * m[part].tanh());
        let (before, after) = &self.attention_norm;
        let h = after.forward(&self.attend(&scaled(before.forward(x), 0), context));
        let x = x + gated(h, 1);
        let (before, after) = &self.feed_forward_norm;
        let [gate, up, down] = &self.feed_forward;
        let h = scaled(before.forward(&x), 2);
        let h = after.forward(&down.forward(&(gate.forward(&h).silu() * up.forward(&h))));
        x + gated(h, 3)
    }

    fn attend(&self, x: &Tensor, context: &Context<'_>) -> Tensor {
        let (batch, tokens) = (x.size()[0], x.size()[1]);
        let split = |x: Tensor| x.reshape([batch, tokens, self.heads, -1]);
        let q = self.qk_norm.0.forward(&split(self.q.forward(x)));
        let k = self.qk_norm.1.forward(&split(self.k.forward(x)));
        let v = split(self.v.forward(x)).transpose(1, 2);
        let (q, k) = (rotate(&q, context.rope), rotate(&k, context.rope));
        let mixed = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, false, None, false);
        self.out.forward(&mixed.transpose(1, 2).flatten(2, -1))
    }
}

/// Rotates `[batch, tokens, heads, width]` in f32, neighbours are pairs; heads come first afterwards.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
    let pairs = x.to_kind(Kind::Float).transpose(1, 2).unflatten(-1, [-1, 2]);
    let (a, b) = (pairs.select(-1, 0), pairs.select(-1, 1));
    Tensor::stack(&[&a * cos - &b * sin, &a * sin + &b * cos], -1).flatten(-2, -1).to_kind(x.kind())
}

pub struct Transformer {
    config: Config,
    timestep: (nn::Linear, nn::Linear),
    image: nn::Linear,
    caption: (RmsNorm, nn::Linear),
    image_pad: Tensor,
    caption_pad: Tensor,
    noise_refiner: Blocks<Block>,
    context_refiner: Blocks<Block>,
    layers: Blocks<Block>,
    scale: nn::Linear,
    out: nn::Linear,
    kind: Kind,
}

impl Transformer {
    pub fn new(config: &Config, path: &nn::Path<'_>) -> Result<Self> {
        let (dim, small) = (config.dim, config.dim.min(256));
        let patch = PATCH * PATCH * config.in_channels;
        let stack = |name, count, modulated| {
            Blocks::load(path, name, count, |_, path| Ok(Block::new(config, modulated, &path)))
        };
        let (mlp, caption) = (path / "t_embedder" / "mlp", path / "cap_embedder");
        let last = path / "all_final_layer" / "2-1";
        let token = |name: &str| path.var(name, &[1, dim], Init::Const(0.0));
        Ok(Self {
            timestep: (
                linear(&mlp / 0, SINUSOIDS, TIMESTEP_HIDDEN, true),
                linear(&mlp / 2, TIMESTEP_HIDDEN, small, true),
            ),
            image: linear(path / "all_x_embedder" / "2-1", patch, dim, true),
            caption: (
                RmsNorm::new(&caption / 0, config.cap_feat_dim, config.norm_eps),
                linear(&caption / 1, config.cap_feat_dim, dim, true),
            ),
            image_pad: token("x_pad_token"),
            caption_pad: token("cap_pad_token"),
            noise_refiner: stack("noise_refiner", config.n_refiner_layers, true)?,
            context_refiner: stack("context_refiner", config.n_refiner_layers, false)?,
            layers: stack("layers", config.n_layers, true)?,
            scale: linear(&last / "adaLN_modulation" / 1, small, dim, true),
            out: linear(&last / "linear", dim, patch, true),
            kind: path.kind(),
            config: config.clone(),
        })
    }

    /// Latents `[1, channels, height, width]` at time `t` (0 noise, 1 image) towards a caption `[tokens, width]`; in f32.
    pub fn forward(&self, latents: &Tensor, t: f64, caption: &Tensor) -> Result<Tensor> {
        let size = latents.size();
        let (channels, rows, columns) = (size[1], size[2] / PATCH, size[3] / PATCH);
        let (patches, tokens) = (rows * columns, caption.size()[0]);
        let (image_padding, caption_padding) = (padding(patches), padding(tokens));
        let timestep = self.embed_timestep(t);

        let x = latents.to_kind(self.kind).reshape([channels, rows, PATCH, columns, PATCH]);
        let x = x.permute([1, 3, 2, 4, 0]).reshape([patches, -1]);
        let mut image = pad(self.image.forward(&x), &self.image_pad, image_padding).unsqueeze(0);
        let after = tokens + caption_padding + 1;
        let grid = (0..rows).flat_map(|row| (0..columns).map(move |column| [after, row, column]));
        let image_at: Vec<_> = grid.chain(std::iter::repeat_n([0; 3], image_padding as usize)).collect();
        let image_rope = self.rope(&image_at);
        for block in self.noise_refiner.iter() {
            image = block?.forward(&image, &Context { rope: &image_rope, timestep: &timestep });
        }

        let embedded = self.caption.1.forward(&self.caption.0.forward(&caption.to_kind(self.kind)));
        let mut caption = pad(embedded, &self.caption_pad, caption_padding).unsqueeze(0);
        let caption_at: Vec<_> = (1..after).map(|i| [i, 0, 0]).collect();
        let caption_rope = self.rope(&caption_at);
        for block in self.context_refiner.iter() {
            caption = block?.forward(&caption, &Context { rope: &caption_rope, timestep: &timestep });
        }

        let mut x = Tensor::cat(&[image, caption], 1);
        let rope = self.rope(&[image_at, caption_at].concat());
        for block in self.layers.iter() {
            x = block?.forward(&x, &Context { rope: &rope, timestep: &timestep });
        }

        let x = x.narrow(1, 0, patches);
        let scale = (self.scale.forward(&timestep.silu()) + 1.0).unsqueeze(1);
        let x = x.layer_norm([self.config.dim], None::<Tensor>, None::<Tensor>, FINAL_NORM_EPS, false) * scale;
        let x = self.out.forward(&x).reshape([1, rows, columns, PATCH, PATCH, channels]);
        let x = x.permute([0, 5, 1, 3, 2, 4]).reshape([1, channels, rows * PATCH, columns * PATCH]);
        Ok(x.to_kind(Kind::Float))
    }

    /// `[1, width]`; the sinusoids are computed in f32 whatever the compute kind.
    fn embed_timestep(&self, t: f64) -> Tensor {
        let half = SINUSOIDS / 2;
        let steps = Tensor::arange(half, (Kind::Float, Device::Cpu));
        let angles = (steps * (-(10_000f64.ln()) / half as f64)).exp() * (t * self.config.t_scale);
        let sinusoids = Tensor::cat(&[angles.cos(), angles.sin()], 0).unsqueeze(0).to_kind(self.kind);
        self.timestep.1.forward(&self.timestep.0.forward(&sinusoids).silu())
    }

    /// Cosine and sine of every token's angles, `[tokens, width / 2]` each, in f32.
    fn rope(&self, positions: &[[i64; 3]]) -> (Tensor, Tensor) {
        let frequency = |dim: i64, i: i64| self.config.rope_theta.powf(-((2 * i) as f64 / dim as f64));
        let angles: Vec<f32> = (positions.iter())
            .flat_map(|position| self.config.axes_dims.iter().zip(position))
            .flat_map(|(&dim, &at)| (0..dim / 2).map(move |i| (at as f64 * frequency(dim, i)) as f32))
            .collect();
        let angles = Tensor::from_slice(&angles).reshape([positions.len() as i64, -1]);
        (angles.cos(), angles.sin())
    }
}

/// How many tokens fill a sequence up.
fn padding(tokens: i64) -> i64 {
    (MULTIPLE - tokens % MULTIPLE) % MULTIPLE
}

/// Appends `count` copies of a token.
fn pad(tokens: Tensor, token: &Tensor, count: i64) -> Tensor {
    if count == 0 { tokens } else { Tensor::cat(&[tokens, token.repeat([count, 1])], 0) }
}
