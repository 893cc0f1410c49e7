//! A plain pre-norm transformer on `Blocks`, with the names of Z-Image's main stack.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, VarBuilder, linear_no_bias, ops::softmax_last_dim, rms_norm};
use mm_cache::Weights;
use mm_candle::Blocks;

/// Channels of what goes in and comes out.
pub const CHANNELS: usize = 64;

/// The sizes of a model; everything else follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub blocks: usize,
    pub width: usize,
    pub inner: usize,
}

impl Shape {
    /// As the weights say; `None` where they are no such model's.
    pub fn of(weights: &Weights) -> Option<Self> {
        let [inner, width] = *weights.get("layers.0.feed_forward.w1.weight")?.shape() else { return None };
        let blocks = (0..).take_while(|i| weights.get(&format!("layers.{i}.ffn_norm1.weight")).is_some()).count();
        Some(Self { blocks, width, inner })
    }

    /// Names and shapes of all weights, in the order of a forward.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (width, inner) = (self.width, self.inner);
        let mut tensors = vec![("x_embedder.weight".to_owned(), vec![width, CHANNELS])];
        for i in 0..self.blocks {
            let mut put =
                |name: &str, shape: &[usize]| tensors.push((format!("layers.{i}.{name}.weight"), shape.to_vec()));
            put("attention_norm1", &[width]);
            for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                put(&format!("attention.{name}"), &[width, width]);
            }
            put("ffn_norm1", &[width]);
            put("feed_forward.w1", &[inner, width]);
            put("feed_forward.w2", &[width, inner]);
            put("feed_forward.w3", &[inner, width]);
        }
        tensors.push(("final_layer.linear.weight".to_owned(), vec![CHANNELS, width]));
        tensors
    }

    /// Parameters of all weights.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}

pub struct Transformer {
    embed: Linear,
    pub layers: Blocks<Block>,
    last: Linear,
}

pub struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    ffn_norm: RmsNorm,
    gate: Linear,
    down: Linear,
    up: Linear,
}

impl Transformer {
    pub fn new(shape: Shape, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            embed: linear_no_bias(CHANNELS, shape.width, vb.pp("x_embedder"))?,
            layers: Blocks::load(vb, "layers", shape.blocks, |_, vb| Block::new(shape, &vb))?,
            last: linear_no_bias(shape.width, CHANNELS, vb.pp("final_layer.linear"))?,
        })
    }

    /// `[tokens, CHANNELS]` in and out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.embed.forward(x)?;
        for block in self.layers.iter() {
            x = block?.forward(&x)?;
        }
        self.last.forward(&x)
    }
}

impl Block {
    fn new(Shape { width, inner, .. }: Shape, vb: &VarBuilder<'_>) -> Result<Self> {
        let (attention, feed_forward) = (vb.pp("attention"), vb.pp("feed_forward"));
        let project = |name: &str| linear_no_bias(width, width, attention.pp(name));
        Ok(Self {
            attention_norm: rms_norm(width, 1e-5, vb.pp("attention_norm1"))?,
            q: project("to_q")?,
            k: project("to_k")?,
            v: project("to_v")?,
            out: project("to_out.0")?,
            ffn_norm: rms_norm(width, 1e-5, vb.pp("ffn_norm1"))?,
            gate: linear_no_bias(width, inner, feed_forward.pp("w1"))?,
            down: linear_no_bias(inner, width, feed_forward.pp("w2"))?,
            up: linear_no_bias(width, inner, feed_forward.pp("w3"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attend(&self.attention_norm.forward(x)?)?)?;
        let h = self.ffn_norm.forward(&x)?;
        &x + self.down.forward(&(self.gate.forward(&h)?.silu()? * self.up.forward(&h)?)?)?
    }

    /// One head at a time: the scores of all heads together would be the largest activation by far.
    fn attend(&self, h: &Tensor) -> Result<Tensor> {
        let width = h.dim(D::Minus1)?;
        let size = if width.is_multiple_of(128) { 128 } else { width };
        let (q, k, v) = (self.q.forward(h)?, self.k.forward(h)?, self.v.forward(h)?);
        let head = |x: &Tensor, index: usize| x.narrow(1, index * size, size)?.contiguous();
        let heads = (0..width / size).map(|index| {
            let scores = (head(&q, index)?.matmul(&head(&k, index)?.t()?)? * (size as f64).powf(-0.5))?;
            softmax_last_dim(&scores)?.matmul(&head(&v, index)?)
        });
        self.out.forward(&Tensor::cat(&heads.collect::<Result<Vec<_>>>()?, 1)?)
    }
}
