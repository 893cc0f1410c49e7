//! What is unloaded gives its memory back to the system, from whichever thread.
//!
//! One test: anonymous memory is the process's.
#![cfg(target_os = "linux")]

mod common;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};
use common::{manager, spec, tensor};
use mm_candle::{Blocks, Component, Manager};
use mm_plan::Strategy;
use std::{fs, path::Path, thread};

const MIB: u64 = 1 << 20;
/// What may stay, whatever was loaded.
const MAY_STAY: u64 = 16 * MIB;
/// Widths of the square layers of the rest: from many to a chunk up to what malloc maps by itself.
const REST: [usize; 9] = [16, 64, 128, 200, 256, 700, 1024, 2048, 3100];
const BLOCKS: usize = 24;
/// Of a block: 4 MiB.
const WIDTH: usize = 1024;

fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

struct Model {
    rest: Vec<Linear>,
    layers: Blocks<Linear>,
}

impl Model {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        let rest = REST.iter().flat_map(|width| (0..copies(*width)).map(move |i| (width, i)));
        Ok(Self {
            rest: rest
                .map(|(width, i)| linear_no_bias(*width, *width, vb.pp(format!("rest.{width}.{i}"))))
                .collect::<Result<_>>()?,
            layers: Blocks::load(vb, "layers", BLOCKS, |_, vb| linear_no_bias(WIDTH, WIDTH, vb))?,
        })
    }

    fn forward(&self) -> Result<f32> {
        let mut sum = 0.0;
        for layer in &self.rest {
            sum += layer.weight().i((0, 0))?.to_scalar::<f32>()?;
        }
        let x = tensor(&[1, WIDTH], 7);
        let y = self.layers.iter().try_fold(x, |x, layer| layer?.forward(&x))?;
        Ok(sum + y.sum_all()?.to_scalar::<f32>()?)
    }
}

/// Up to 8 MiB of each width, at least one and at most as many as a model may have.
const fn copies(width: usize) -> usize {
    match (8 << 20) / (width * width * 4) {
        0 => 1,
        count if count > 200 => 200,
        count => count,
    }
}

fn write(file: &Path) {
    let rest =
        REST.iter().flat_map(|width| (0..copies(*width)).map(move |i| (format!("rest.{width}.{i}.weight"), *width)));
    let layers = (0..BLOCKS).map(|i| (format!("layers.{i}.weight"), WIDTH));
    let tensors = rest
        .chain(layers)
        .map(|(name, width)| (name, Tensor::zeros((width, width), DType::F32, &Device::Cpu).unwrap()));
    candle_core::safetensors::save(&tensors.collect(), file).unwrap();
}

fn load(manager: &Manager, file: &Path, lazy: bool) -> Component<Model> {
    let mut spec = spec("model", file, DType::F32);
    spec.lazy = lazy;
    manager.load(&spec, |vb| Model::new(&vb)).unwrap()
}

/// How the model leaves; what is left of it goes later.
type Way = fn(&Manager, Component<Model>) -> Option<Component<Model>>;

const WAYS: [(&str, Way); 4] = [
    ("dropped", |_, model| {
        drop(model);
        None
    }),
    ("dropped elsewhere", |_, model| {
        thread::spawn(move || drop(model)).join().unwrap();
        None
    }),
    ("released", |manager, model| {
        manager.release(&manager.get_component("model").unwrap()).unwrap();
        Some(model)
    }),
    ("unloaded", |manager, model| {
        manager.unload("model").unwrap();
        Some(model)
    }),
];

#[test]
fn memory_goes_back_to_the_system() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file);
    let weights = file.metadata().unwrap().len();
    let before = anonymous();
    for (strategy, lazy) in [(Strategy::NoOffload, false), (Strategy::NoOffload, true), (Strategy::GroupOffload, false)]
    {
        for (name, way) in WAYS {
            for used_elsewhere in [false, true] {
                let manager = manager(2 * weights, strategy);
                let load = || {
                    let model = load(&manager, &file, lazy);
                    model.run(|model| model.forward()).unwrap();
                    model
                };
                let model = if used_elsewhere { thread::scope(|s| s.spawn(load).join().unwrap()) } else { load() };
                let held = anonymous().saturating_sub(before);
                assert!(held > weights / 3, "it was there: {held} of {weights}");
                let left = way(&manager, model);
                let stays = anonymous().saturating_sub(before);
                assert!(
                    stays <= MAY_STAY,
                    "{strategy} lazy {lazy} {name} {used_elsewhere}: {stays} of {held} bytes stay"
                );
                drop(left);
            }
        }
    }
}
