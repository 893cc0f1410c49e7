//! Building holds at most the rest and one block, or, where a model only keeps its weights, none at all.
//!
//! One test counts allocations, and nothing runs beside it: the counter is the process's.

mod common;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{BatchNorm, Linear, Module, ModuleT, VarBuilder, batch_norm, linear_no_bias};
use candle_transformers::models::with_tracing;
use common::{bits, manager, spec, tensor};
use mm_candle::{Blocks, LoadSpec, load_unmanaged};
use mm_plan::Strategy;
use peak_alloc::PeakAlloc;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

static ALONE: Mutex<()> = Mutex::new(());

const WIDTH: usize = 512;
const BLOCK: usize = WIDTH * WIDTH * 4;
const COUNT: usize = 12;

struct Tower {
    first: Linear,
    layers: Blocks<Linear>,
}

impl Tower {
    fn new(vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        Ok(Self {
            first: linear_no_bias(WIDTH, WIDTH, vb.pp("first"))?,
            layers: Blocks::load(vb, "layers", COUNT, |_, vb| linear_no_bias(WIDTH, WIDTH, vb))?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.layers.iter().try_fold(self.first.forward(x)?, |x, layer| layer?.forward(&x))
    }
}

/// The same, of layers with spans and without [`Blocks`].
struct Unmodified {
    first: Linear,
    layers: Vec<with_tracing::Linear>,
}

impl Unmodified {
    fn new(vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        let layer = |i| with_tracing::linear_no_bias(WIDTH, WIDTH, vb.pp("layers").pp(i));
        let layers = (0..COUNT).map(layer).collect::<candle_core::Result<_>>()?;
        Ok(Self { first: linear_no_bias(WIDTH, WIDTH, vb.pp("first"))?, layers })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.layers.iter().try_fold(self.first.forward(x)?, |x, layer| layer.forward(&x))
    }
}

#[test]
fn building_holds_the_rest_and_one_block() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tower.safetensors");
    let names = (0..COUNT).map(|i| format!("layers.{i}.weight")).chain(["first.weight".to_owned()]);
    let tensors: HashMap<_, _> = names.enumerate().map(|(i, name)| (name, tensor(&[WIDTH, WIDTH], i))).collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    drop(tensors);
    let x = tensor(&[1, WIDTH], 77);
    let mut spec = spec("tower", &file, DType::F32);
    let plain = load_unmanaged(&spec, |vb| Tower::new(&vb)).unwrap();
    let expected = bits(&plain.run(|tower| tower.forward(&x)).unwrap());
    drop(plain);
    for (lazy, spans, most) in [(false, false, 2 * BLOCK), (true, false, 0), (false, true, 2 * BLOCK), (true, true, 0)]
    {
        (spec.lazy, spec.spans) = (lazy, spans);
        if spans {
            holds(&spec, most, &expected, |vb| Unmodified::new(&vb), |tower| tower.forward(&x));
        } else {
            holds(&spec, most, &expected, |vb| Tower::new(&vb), |tower| tower.forward(&x));
        }
    }
}

fn holds<M: Send + 'static>(
    spec: &LoadSpec,
    most: usize,
    expected: &[u32],
    build: impl Fn(VarBuilder<'_>) -> candle_core::Result<M>,
    forward: impl Fn(&M) -> candle_core::Result<Tensor>,
) {
    let manager = manager(3 * BLOCK as u64, Strategy::GroupOffload);
    let baseline = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let tower = manager.load(spec, build).unwrap();
    let (held, how) = (HEAP.peak_usage() - baseline, format!("lazy {}, spans {}", spec.lazy, spec.spans));
    assert!(held <= most + (128 << 10), "{how}: building held {held} bytes of {}", (COUNT + 1) * BLOCK);
    // Said of the first alone: what threads of a manager before it had may go only now.
    assert!(spec.spans || held >= most, "{how}: building held {held} bytes");
    assert_eq!(bits(&tower.run(|tower| forward(tower)).unwrap()), expected);
    let held = HEAP.peak_usage() - baseline;
    assert!(held <= 3 * BLOCK + (256 << 10), "{how}: running held {held} bytes");
}

#[test]
fn a_layer_that_copies_its_weights_runs_where_they_are_read_and_refuses_where_not() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("norm.safetensors");
    let tensors: HashMap<_, _> = [
        ("weight", tensor(&[4], 1)),
        ("bias", tensor(&[4], 2)),
        ("running_mean", tensor(&[4], 3)),
        ("running_var", Tensor::ones(4, DType::F32, &Device::Cpu).unwrap()),
    ]
    .into();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let x = tensor(&[2, 4, 3, 3], 5);
    let build = |vb: VarBuilder<'_>| batch_norm(4, 1e-5, vb);
    let forward = |norm: &mut BatchNorm| norm.forward_t(&x, false)?.sum(D::Minus1);
    let mut spec = spec("norm", &file, DType::F32);
    let expected = bits(&load_unmanaged(&spec, build).unwrap().run(forward).unwrap());
    let manager = manager(1 << 20, Strategy::Auto);
    let eager = manager.load(&spec, build).unwrap();
    assert_eq!(bits(&eager.run(forward).unwrap()), expected);
    drop(eager);
    spec.lazy = true;
    let refused = manager.load(&spec, build).and_then(|norm| norm.run(forward).map(|y| bits(&y)));
    assert!(refused.is_err(), "{refused:?}");
}
