//! TorchScript files that share a device with room for one: `LIBTORCH=… cargo run -p mm-tch --features libtorch --example 02-torchscript [FILE]`
//!
//! Any file that `torch.jit.save` wrote and that takes one tensor will do: pass its shape after it, `16` or `1,3,224,224`.

use anyhow::Context;
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use mm_tch::{LoadSpec, Manager};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/script/net.pt");
    let file = args.next().map_or_else(own, PathBuf::from);
    let shape = args.next().unwrap_or_else(|| "16".to_owned());
    let shape: Vec<i64> = shape.split(',').map(str::parse).collect::<Result<_, _>>().context("the shape")?;

    // No more than the file is: one fits, two don't.
    let budget = Some(std::fs::metadata(&file).with_context(|| file.display().to_string())?.len());
    let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
    let manager = Manager::cpu(machine, Policy { strategy: Strategy::ModelOffload, ..Policy::default() })?;
    let load = |name: &str| manager.load_script(&LoadSpec::new(name, []), &file);
    let (teacher, student) = (load("teacher")?, load("student")?);

    let x = Tensor::ones(shape, (Kind::Float, Device::Cpu));
    for (name, model) in [("teacher", &teacher), ("student", &student), ("teacher", &teacher)] {
        let y = model.run(|module| Ok(module.forward_ts(&[&x])?))?;
        let (sum, held) = (f64::try_from(y.sum(Kind::Double))?, manager.memory().in_use);
        println!("{name}: sum {sum:.4}; {held} bytes of weights are there, of {budget:?}");
    }
    Ok(())
}
