//! Bytes that candle's operations have alive at their own peak, the result included, the operands not.
//!
//! Counts are elements as floating-point numbers: they can't overflow, and an estimate needs no more digits. Sources:
//! candle-core 0.11.1 `cpu_backend/{mod,conv2d}.rs`, candle-nn 0.11.1 `{linear,layer_norm,group_norm,ops}.rs`.

use mm_plan::{DType, DeviceKind};

use super::Workload;

/// Bytes of an `f32`.
pub(super) const F32: f64 = 4.0;

/// How things are computed: the element type, and what the device does with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Bytes of an element.
    size: f64,
    /// Matrix products compute in copies of their operands in `f32`.
    widens: bool,
    /// How many tiles of a convolution are computed at a time; none on a card.
    tiles: f64,
}

/// Outputs of a convolution that are one tile.
const TILE: f64 = 512.0;
/// What threads and matrix products keep for themselves.
pub(super) const WORKSPACE: f64 = (4 << 20) as f64;

impl Kernels {
    pub(super) fn of(workload: &Workload) -> Option<Self> {
        let dtype = workload.dtype;
        let float = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::Bf16);
        let host = workload.device == DeviceKind::Host;
        // A host device is this machine.
        let threads = || std::thread::available_parallelism().map_or(1.0, |threads| threads.get() as f64);
        let tiles = if host { threads() } else { 0.0 };
        float.then_some(Self { size: dtype.size() as f64, widens: host && dtype == DType::Bf16, tiles })
    }

    /// The same computing in `f32`, as VAEs do.
    pub(super) fn f32(self) -> Self {
        Self { size: F32, widens: false, ..self }
    }

    /// Bytes of that many elements.
    pub(super) fn bytes(&self, elements: f64) -> f64 {
        self.size * elements
    }

    /// Bytes of a copy in `f32`; nothing where it is `f32` or wider already, as the cast is then the tensor itself.
    pub(super) fn cast(&self, elements: f64) -> f64 {
        if self.size < F32 { F32 * elements } else { 0.0 }
    }

    /// Bytes of elements that are at least `f32`.
    pub(super) fn wide(&self, elements: f64) -> f64 {
        self.size.max(F32) * elements
    }

    /// A matrix product. Widened: both operands, the result, and the result narrowed again.
    pub(super) fn matmul(&self, left: f64, right: f64, out: f64) -> f64 {
        let widened = if self.widens { F32 * (left + right + out) } else { 0.0 };
        widened + self.bytes(out)
    }

    /// A linear layer with a bias: the product and the sum.
    pub(super) fn linear(&self, input: f64, weight: f64, out: f64) -> f64 {
        self.matmul(input, weight, out).max(self.bytes(2.0 * out))
    }

    /// A layer norm or RMS norm without candle's fused kernel (no bias, or not contiguous): in `f32` the cast, the
    /// centred (not for RMS) and the normed; then cast back and scaled.
    pub(super) fn slow_norm(&self, elements: f64, centred: bool) -> f64 {
        let wide = if centred { 2.0 } else { 1.0 } * self.wide(elements) + self.cast(elements);
        let back = if self.size < F32 { self.bytes(elements) } else { 0.0 };
        wide + back + self.bytes(elements)
    }

    /// A group norm: as a layer norm, then scaled and shifted.
    pub(super) fn group_norm(&self, elements: f64) -> f64 {
        self.slow_norm(elements, true) + self.bytes(elements)
    }

    /// Attention over `scores` elements of scores in the compute type: they are scaled into a second tensor, and the
    /// softmax is another beside that. `softmax((q·kᵀ)·scale)·v`.
    pub(super) fn attention(&self, q: f64, k: f64, scores: f64) -> f64 {
        let scale = self.matmul(q, k, scores).max(self.bytes(2.0 * scores));
        scale.max(self.bytes(2.0 * scores) + self.matmul(scores, k, q))
    }

    /// A convolution with a bias and a kernel of 3×3: on the CPU a copy of the input with channels last, one of the
    /// weights and, for each of its threads, the inputs and outputs of a tile. The bias is added into another tensor.
    pub(super) fn conv3(&self, input: f64, channels: (f64, f64), out: f64) -> f64 {
        let (from, to) = channels;
        let tiles = self.tiles.min((out / to / TILE).ceil()) * TILE * (9.0 * from + to);
        self.bytes((input + out + 9.0 * from * to + tiles).max(2.0 * out))
    }

    /// A convolution with a bias and a kernel of 1×1: a copy of the input and the product beside the result.
    pub(super) fn conv1(&self, input: f64, out: f64) -> f64 {
        self.bytes(input + 2.0 * out)
    }
}

/// The largest.
pub(super) fn max(stages: impl IntoIterator<Item = f64>) -> f64 {
    stages.into_iter().fold(0.0, f64::max)
}

impl Workload {
    /// Width and height in latents, rounded up.
    pub(super) fn latents(&self, usual: u32) -> (f64, f64) {
        let factor = self.pixels_per_latent.unwrap_or(usual).max(1);
        (f64::from(self.width.div_ceil(factor)), f64::from(self.height.div_ceil(factor)))
    }

    /// Patches of 2×2 latents.
    pub(super) fn patches(&self, usual: u32) -> f64 {
        let (width, height) = self.latents(usual);
        (width / 2.0).ceil() * (height / 2.0).ceil()
    }

    /// Images in a pass of a denoiser that takes both halves of guidance at once.
    pub(super) fn guided_batch(&self) -> f64 {
        f64::from(self.batch) * if self.guided { 2.0 } else { 1.0 }
    }
}
