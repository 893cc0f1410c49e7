//! What management costs: a pass with everything resident against an unmanaged one, and a swap by the number of its tensors.
//!
//! `LIBTORCH=… OMP_NUM_THREADS=1 cargo bench -p mm-tch --features libtorch`

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../examples/transformer/mod.rs"]
#[allow(unreachable_pub, missing_docs)]
mod transformer;

use common::manager;
use mm_plan::Strategy;
use mm_tch::{Blocks, Component, LoadSpec, load_unmanaged};
use std::{hint::black_box, path::Path, time::Instant};
use tch::{Kind, Tensor, nn::Init};
use transformer::{Config, Transformer};

const PAIRS: usize = 101;

fn main() {
    resident();
    swaps();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Pairs in turn, so that both see the same machine.
fn resident() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes/transformer");
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let files: Vec<_> =
        (1..=3).map(|i| folder.join(format!("diffusion_pytorch_model-0000{i}-of-00003.safetensors"))).collect();
    let spec = LoadSpec::new("transformer", files);
    let manager = manager(64 << 20, Strategy::NoOffload);
    let managed = manager.load(&spec, |path| Transformer::new(&config, path)).unwrap();
    let plain = load_unmanaged(&spec, |path| Transformer::new(&config, path)).unwrap();
    let (latents, caption) = (common::tensor(&[1, 8, 16, 16], 1), common::tensor(&[11, 96], 2));
    let pass = |component: &Component<Transformer>| {
        let start = Instant::now();
        let _y = black_box(component.run(|model| model.forward(&latents, 0.5, &caption)).unwrap());
        start.elapsed().as_secs_f64()
    };
    for _ in 0..10 {
        pass(&managed);
        pass(&plain);
    }
    let pairs: Vec<(f64, f64)> = (0..PAIRS)
        .map(|i| {
            // In turn, who is first.
            if i % 2 == 0 {
                let managed = pass(&managed);
                (managed, pass(&plain))
            } else {
                let plain = pass(&plain);
                (pass(&managed), plain)
            }
        })
        .collect();
    let ratio = median(pairs.iter().map(|(managed, plain)| managed / plain).collect());
    let [with, without] = [0, 1].map(|i| median(pairs.iter().map(|p| if i == 0 { p.0 } else { p.1 }).collect()));
    println!(
        "resident pass: managed {:.3} ms, unmanaged {:.3} ms, ratio of pairs {ratio:.4}",
        with * 1e3,
        without * 1e3
    );
    // Without a kernel: all that a pass costs on top.
    let empty = |component: &Component<Transformer>| {
        let start = Instant::now();
        (0..1000).for_each(|_| component.run(|_| Ok(())).unwrap());
        start.elapsed().as_secs_f64() * 1e3
    };
    println!("empty run: managed {:.2} us, unmanaged {:.2} us", empty(&managed), empty(&plain));
}

/// Two blocks in two slots: a lease then copies nothing, it gives and takes memory.
fn swaps() {
    for tensors in [1usize, 10, 100, 1000] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("w.safetensors");
        let stored = (0..2).flat_map(|b| (0..tensors).map(move |t| format!("layers.{b}.w{t}")));
        let stored: Vec<_> = stored.map(|name| (name, Tensor::zeros([4], (Kind::Float, tch::Device::Cpu)))).collect();
        Tensor::write_safetensors(&stored, &file).unwrap();
        let manager = manager(1 << 30, Strategy::GroupOffload);
        let blocks = manager.load(&LoadSpec::new("w", [file]), |path| {
            Blocks::load(path, "layers", 2, |_, path| {
                Ok((0..tensors).map(|t| path.var(&format!("w{t}"), &[4], Init::Const(0.0))).collect::<Vec<_>>())
            })
        });
        let blocks = blocks.unwrap();
        let lease = blocks.run(|blocks| {
            let mut times = Vec::new();
            for _ in 0..200 {
                let start = Instant::now();
                drop(blocks.get(0).unwrap()?);
                drop(blocks.get(1).unwrap()?);
                times.push(start.elapsed().as_secs_f64() / 2.0);
            }
            Ok(median(times))
        });
        let lease = lease.unwrap() * 1e9;
        println!("lease of {tensors} tensors: {lease:.0} ns, {:.0} ns a tensor", lease / tensors as f64);
    }
}
